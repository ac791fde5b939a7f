"""Options of Lightning's trainer that are refused, and why: one table.

They have no meaning here, or cannot be kept exact, so that a run would not do what they say.
"""

import json
import pkgutil
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

MOST_DEVICES, MOST_NODES = 1024, 65536  # Lightning makes lists of them before anything can be checked
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")
PRECISION_ALIASES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
ACCELERATORS = ("auto", "cpu", "gpu")
PROFILERS = ("simple", "advanced", "pytorch")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


class Rule(NamedTuple):
    """What is accepted of an option of the trainer.

    Attributes:
        option: Its name.
        accepts: Whether a value is.
        expected: What is, and why nothing else.
    """

    option: str
    accepts: Callable[[Any], bool]
    expected: str


def only(*values: Any) -> Callable[[Any], bool]:
    """None, or one of these values, of the same type: 1 is one batch, and 1.0 all of them."""
    return lambda value: value is None or any(value == one and type(value) is type(one) for one in values)


def at_least(least: int, *others: int) -> Callable[[Any], bool]:
    """None, a number of at least ``least``, or one of the others."""
    return lambda value: value is None or value >= least or value in others


def is_duration(value: Any) -> bool:
    """Whether it is a time that has not passed at once."""
    if isinstance(value, str):
        parts = re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d):(\d\d)", value)
        return bool(parts) and any(map(int, parts.groups()))  # type: ignore[union-attr]
    if isinstance(value, dict):
        try:
            value = timedelta(**value)
        except (TypeError, OverflowError):
            return False
    return value is None or value > timedelta(0)


def is_strategy(value: Any) -> bool:
    """Whether all ranks are processes of their own, with all of the weights each."""
    if isinstance(value, Namespace):
        try:
            kind = pkgutil.resolve_name(value.class_path)
        except (ImportError, AttributeError, ValueError):
            return True  # refused elsewhere
        spawns = (value.get("init_args") or {}).get("start_method", "popen") != "popen"
        return isinstance(kind, type) and issubclass(kind, DDPStrategy | SingleDeviceStrategy) and not spawns
    return value in STRATEGIES


def is_precision(value: Any) -> bool:
    """Whether training is tested with it."""
    return value is None or PRECISION_ALIASES.get(str(value), str(value)) in PRECISIONS


def is_accelerator(value: Any) -> bool:
    """Whether it has numbers of 64 bits, which an Apple GPU has not, and was tried."""
    return value is None or isinstance(value, Namespace) or value in (*ACCELERATORS, "cuda")


def is_profiler(value: Any) -> bool:
    """Whether it can be made here."""
    return value is None or isinstance(value, Namespace) or value in PROFILERS


def are_devices(value: Any) -> bool:
    """Whether it is a number of devices, or names some."""
    if isinstance(value, int):
        return value == -1 or 1 <= value <= MOST_DEVICES
    if isinstance(value, str):
        one = re.fullmatch(r"-?\d+", value)
        return are_devices(int(value)) if one else re.fullmatch(r"auto|\d+(, ?\d+)*,?", value) is not None
    return value is None or bool(value)


TABLE = (
    # What another option does here.
    Rule("accumulate_grad_batches", only(1), "model.accumulate in its place"),
    Rule("gradient_clip_val", only(None), "model.max_grad_norm in its place"),
    Rule("gradient_clip_algorithm", only(None), "model.max_grad_norm in its place"),
    Rule("limit_train_batches", only(1.0), "data.batches_per_epoch in its place"),
    Rule("limit_val_batches", only(1.0), "data.val_problems in its place"),
    Rule("limit_test_batches", only(1.0), "data.test_problems in its place"),
    Rule("limit_predict_batches", only(1.0), "data.predict_problems in its place"),
    Rule("val_check_interval", only(1.0), "data.batches_per_epoch in its place: each epoch ends with a validation"),
    Rule("check_val_every_n_epoch", lambda value: value == 1, "1, and data.batches_per_epoch in its place"),
    # What has no meaning here.
    Rule("overfit_batches", lambda value: value == 0, "0: problems are made afresh, and none comes twice"),
    Rule("reload_dataloaders_every_n_epochs", only(0), "0: problems are made afresh in any case"),
    Rule("use_distributed_sampler", only(True), "true: nothing is sampled, each rank makes its part of a batch"),
    Rule("enable_autolog_hparams", only(True), "true: what a run was started with is part of its results"),
    Rule("model_registry", only(None), "null: checkpoints stay in the directory of the run"),
    Rule("barebones", only(False), "false: a run without curves and checkpoints leaves nothing"),
    Rule("enable_checkpointing", only(True), "true: a run without last.ckpt could not go on"),
    # What could not be kept exact when a run goes on.
    Rule("min_epochs", only(None), "null: that a run was told to stop before is not in its checkpoint"),
    Rule("min_steps", only(None), "null: that a run was told to stop before is not in its checkpoint"),
    # Numbers that leave nothing to do, or nothing to report.
    Rule("max_epochs", at_least(1, -1), "at least 1, or -1 for no limit"),
    Rule("max_steps", at_least(1, -1), "at least 1, or -1 for no limit"),
    Rule("max_time", is_duration, "days:hours:minutes:seconds, such as 00:01:30:00, and more than none"),
    Rule("log_every_n_steps", at_least(1), "at least 1"),
    Rule("num_sanity_val_steps", at_least(0, -1), "at least 0, or -1 for all batches"),
    Rule("fast_dev_run", at_least(0), "a number of batches, true or false"),
    Rule("profiler", is_profiler, f"{', '.join(PROFILERS)}, or a class: xla is for TPUs"),
    # What was never tried with manual optimisation, clipping and checkpoints of this project.
    Rule("num_nodes", lambda value: 1 <= value <= MOST_NODES, f"at least 1, and at most {MOST_NODES}"),
    Rule("accelerator", is_accelerator, f"{', '.join(ACCELERATORS)}: of others none was tried"),
    Rule("devices", are_devices, f"auto, 1 to at most {MOST_DEVICES}, or -1 for all"),
    Rule("precision", is_precision, ", ".join(PRECISIONS)),
    Rule("strategy", is_strategy, f"{', '.join(STRATEGIES)}, or a class derived from DDPStrategy that starts no fork"),
)
CALLBACKS = {  # what would change training behind its back, and what does it instead
    "GradientAccumulationScheduler": "model.accumulate in its place",
    "StochasticWeightAveraging": "polish.anneal in its place",
    "BatchSizeFinder": "data.batch_size in its place",
    "LearningRateFinder": "model.learning_rate in its place",
}
OPTIMIZERS = {  # that cannot make a step here
    "LBFGS": "an optimizer that needs the loss once",
    "SparseAdam": "an optimizer of dense gradients",
}


def check_trainer_options(trainer: Namespace, command: str) -> None:
    """Refuse what the table refuses.

    Args:
        trainer: Options of the trainer.
        command: ``fit`` or another.

    Raises:
        ValueError: Names the option, its value, and what is accepted.
    """
    for rule in TABLE:
        value = trainer.get(rule.option)
        if not rule.accepts(value):
            raise ValueError(f"trainer.{rule.option}: got {shown(value)}, expected {rule.expected}")
    if trainer.fast_dev_run and command != "fit":
        raise ValueError(f"trainer.fast_dev_run: got {shown(trainer.fast_dev_run)}, expected false: it is for fit")
    callbacks = trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = _class_name(callback)
        if name in CALLBACKS:
            raise ValueError(f"trainer.callbacks: got {name}, expected {CALLBACKS[name]}")


def check_optimizer(optimizer: Namespace | None) -> None:
    """Refuse an optimizer that cannot make a step here.

    Raises:
        ValueError: Names it.
    """
    name = _class_name(optimizer)
    if name in OPTIMIZERS:
        raise ValueError(f"optimizer: got {name}, expected {OPTIMIZERS[name]}")


def check_monitor(option: str, monitor: Any, stages: tuple[str, ...]) -> None:
    """Refuse to wait for a metric that no validation has.

    Args:
        stages: Names of those that are trained on.

    Raises:
        ValueError: Names the option, and the metrics that there are.
    """
    there = [f"val/{stage}_{metric}" for stage in stages for metric in ("accuracy", "plan_length", "reward")]
    if monitor not in there:
        raise ValueError(f"{option}: got {shown(monitor)}, expected {', '.join(there)}")


def shown(value: Any) -> str:
    """A value as one would write it."""
    if isinstance(value, Namespace):
        return _class_name(value)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _class_name(value: Any) -> str:
    path = value.get("class_path", "") if isinstance(value, Namespace) else type(value).__name__
    return str(path).rpartition(".")[2]
