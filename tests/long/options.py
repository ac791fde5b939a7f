"""Generated options: of all that there are one or two, with values at boundaries, of wrong types, and own classes."""

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Boundaries, wrong types, and places where nothing can be written.
VALUES = ["-1", "0", "1", "2", "3", "7", "-0.5", "0.0", "0.5", "0.001", "1.0", "1e30", "-1e30", ".nan", ".inf"]
VALUES += [str(2**31), str(2**63), "null", "true", "false", "foo", "''", "[]", "{}", "[1]", "[1, 2]", "{a: 1}", "é"]
VALUES += ["nowhere/deep", ".", "/dev/full", "/dev/null", "/proc/nothing", "options.yaml", "~/there", "x" * 300]
NUMBERS = {int: ["0", "1", "2", "3", "5", "8", "16"], float: ["0.0", "0.01", "0.3", "0.9", "1.0", "2.5"]}
CHOICES = {
    "trainer.accelerator": ["cpu", "auto", "gpu", "tpu", "mps"],
    "trainer.strategy": ["auto", "ddp_spawn", "fsdp", "deepspeed", "DDPStrategy", "SingleDeviceStrategy", "xla"],
    "trainer.precision": ["32", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "transformer-engine"],
    "trainer.logger": ["true", "false", "CSVLogger", "TensorBoardLogger", "WandbLogger"],
    "trainer.callbacks": ["EarlyStopping", "ModelCheckpoint", "Timer", "LearningRateMonitor", "BatchSizeFinder"],
    "trainer.profiler": ["simple", "advanced", "xla"],
    "trainer.max_time": ["00:00:00:30", "00:00:00:00", "1", "00:00:00:00:01"],
    "model.agent": ["Reader", "BlindAgent", "TransformerReader", "Agent", "own_parts.Wide"],
    "model.env": ["CalculatorEnv", "TutorialEnv", "Env", "own_parts.Shrinks"],
    "model.reward": ["OutcomeReward", "ProgressReward", "TutorialReward", "own_parts.Broken"],
    "model.algorithm": ["A2C", "PPO", "GRPO", "RLOO", "TutorialA2C"],
    "optimizer": ["SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "Optimizer"],
    "lr_scheduler": ["StepLR", "CosineAnnealingLR", "ReduceLROnPlateau", "OneCycleLR"],
    "ckpt_path": ["last", "auto", "best", "options.yaml"],
    "data.stages": ["[T0]", "[E1]", "[{name: A, pattern: a-b}]", "[{name: B, operators: 2, digits: 3}]", "[X]"],
    "data.tools": ["[ADD]", "[MUL,ADD,SUB,own_parts.MAX]", "[own_parts.BAD]", "[own_parts.NONE]", "[own_parts.RAISES]"],
}
# Of these, large values are within bounds, and only take memory and time; and several processes take a machine.
LEFT_OUT = {"config", "print_config", "help", "data.num_workers", "trainer.devices", "trainer.num_nodes"}
LEFT_OUT |= {"model.compile_step"}  # it compiles for minutes
HEAD = """
import torch
from lightning.pytorch import Callback
from torch.utils._pytree import tree_map_only

from toolagent_pl import CalculatorEnv, Tool
from toolagent_pl.agents import BlindAgent, Policy
from toolagent_pl.learning import A2C, OutcomeReward


def wrong(how, value):
    if how == "error":
        raise KeyError("own")
    changes = {
        "shape": lambda x: x.unsqueeze(-1),
        "rows": lambda x: x[:1],
        "type": lambda x: x.float() if x.dtype == torch.int64 else x.to(torch.int64),
        "device": lambda x: x.to("meta"),
        "nan": lambda x: x * float("nan"),
    }
    return tree_map_only(torch.Tensor, changes[how], value) if how in changes else None


class Wide(BlindAgent):
    def decode(self, *args):
        policy, cache = super().decode(*args)
        return Policy(policy.logits.repeat(1, 2), policy.value), cache

class Shrinks(CalculatorEnv):
    def step(self, state, action):
        return super().step(state, action)._replace(steps=state.steps[:1])

class Broken(OutcomeReward):
    def __init__(self):
        raise AttributeError("broken")

MAX = Tool("MAX", "max", 3, torch.maximum)
BAD = Tool("BAD", "bad", 3, lambda a, b: a.float() / 0)
NONE = Tool("NONE", "none", 3, lambda a, b: None)
RAISES = Tool("RAISES", "raises", 3, lambda a, b: {}[a])
"""
METHODS = {  # of one's own, each of which goes wrong in each way
    "model.agent": ("BlindAgent", ["prefill", "decode", "forward", "after_update"]),
    "model.env": ("CalculatorEnv", ["horizon", "reset", "step", "observe", "outcome"]),
    "model.reward": ("OutcomeReward", ["__call__"]),
    "model.algorithm": ("A2C", ["advantages", "loss"]),
    "trainer.callbacks": ("Callback", ["on_train_batch_start", "on_validation_end", "on_save_checkpoint"]),
}
WAYS = ["error", "none", "shape", "rows", "type", "device", "nan"]
OWN_PARTS = HEAD
for _option, (_base, _methods) in METHODS.items():
    for _method in _methods:
        for _how in WAYS:
            _name = f"{_base}_{_method.strip('_')}_{_how}"
            OWN_PARTS += f"\nclass {_name}({_base}):\n    def {_method}(self, *args):\n"
            OWN_PARTS += f"        return wrong({_how!r}, super().{_method}(*args))\n"
            CHOICES[_option] = [*CHOICES[_option], f"own_parts.{_name}"]
UPDATES = 2  # batches of an epoch, and steps of the optimizer: the base configuration makes one in each


def words(rng: random.Random, defaults: Mapping[str, Any]) -> list[str]:
    """One option or two, of all that there are; now and then an abbreviation.

    Args:
        defaults: Options and their values; most values that are drawn are of the same type.
    """
    found = []
    for _ in range(rng.choice([1, 2])):
        name = rng.choice(list(defaults) if rng.random() < 0.7 else list(CHOICES))
        default, value = defaults.get(name), rng.choice(VALUES)
        if name in CHOICES and rng.random() < 0.8:
            value = rng.choice(CHOICES[name])
        elif isinstance(default, int | float) and rng.random() < 0.8:
            value = rng.choice(["true", "false"] if isinstance(default, bool) else NUMBERS[type(default)])
        if rng.random() < 0.03:
            name = name[: -rng.randrange(1, 4)]
        found.append(f"--{name}={value}")
    return found


def own_words(rng: random.Random, run: Sequence[str]) -> list[str]:
    """Words of a command that is not Lightning's, with an option or two that hardly ever fit.

    Args:
        run: Words of ``fit``, for the trials of a sweep.
    """
    command = rng.choice(["solve", "export", "sweep"])
    right = {
        "solve": {"ckpt_path": "last", "html": "page.html"},
        "export": {"ckpt_path": "last", "format": "safetensors", "output": "out", "test_problems": "0"},
        "sweep": {
            "fit": json.dumps([*run, "--trainer.max_epochs=1"]), "space": '{"model.learning_rate": [0.01, 0.001]}',
            "trials": "1", "metric": "val/*_accuracy", "score": "mean", "direction": "maximize", "prune_after": "1",
            "directory": "sweep", "storage": "sweep.journal", "stale_after": "600",
        },
    }[command]  # fmt: skip
    needed = {"export": ["format"], "sweep": ["fit", "space", "trials"]}.get(command, [])
    given = {name: right[name] for name in needed}
    for name in rng.choices(list(right), k=rng.choice([1, 2])):
        given[name] = right[name] if rng.random() < 0.3 else rng.choice(VALUES)
    words = [f"--{name[: -1 if rng.random() < 0.02 else None]}={value}" for name, value in given.items()]
    if command == "solve":
        words = [*words, rng.choice(["2*(3+4)", "1-(2-3)", "1/2", "", "é"]), *rng.choice([[], ["--json"]])]
    return [command, *words]


def without_effect(given: dict[str, str], directory: Path) -> str | None:
    """What a run that was taken did not do, although it was asked for.

    Args:
        given: Options of ``fit``, beside those of the base configuration.
        directory: Where it ran.
    """
    if given.get("trainer.fast_dev_run", "false") not in ("false", "0", "null"):
        return None
    path = directory / "lightning_logs/version_0/checkpoints/last.ckpt"
    for option, below in (("checkpoint.dirpath", ""), ("trainer.default_root_dir", path.relative_to(directory).parent)):
        if given.get(option, "null") != "null":
            path = Path(os.path.expanduser(given[option])) / below / "last.ckpt"
            break
    if not path.exists():
        return f"no {path}"
    run = Path(os.path.expanduser(given.get("trainer.default_root_dir", "null")))
    run = (directory if run.name == "null" else run) / "lightning_logs/version_0"
    if not (run / "config.yaml").exists():
        return f"no {run / 'config.yaml'}"
    if (option := _not_written(given, yaml.safe_load((run / "config.yaml").read_text()))) and "config" not in given:
        return f"another {option} in config.yaml"
    state = torch.load(path, weights_only=True)
    header, group = state["toolagent_pl"], state["optimizer_states"][0]["param_groups"][0]
    rates = ("optimizer", "lr_scheduler", "polish", "ckpt_path", "config")
    rate = float(given.get("model.learning_rate", "0.004"))
    if not any(name.startswith(rates) for name in given):
        if group["lr"] != rate:
            return f"a learning rate of {group['lr']} in place of {rate}"
        if given.get("trainer.log_every_n_steps") == "1" and "trainer.logger" not in given:
            events = EventAccumulator(str(run))
            shown = [event.value for event in events.Reload().Scalars("train/learning_rate")]
            if not shown or any(value != pytest.approx(rate) for value in shown):
                return f"a curve of learning rates {shown} in place of {rate}"
    counted = {"trainer.max_epochs", "trainer.max_steps", "data.batch_size", "model.learning_rate", "model.betas"}
    if set(given) <= counted | {"trainer.log_every_n_steps", "data.val_problems"}:
        batches = int(given.get("trainer.max_epochs", "1")) * UPDATES
        steps = int(given.get("trainer.max_steps", "-1"))
        batches = min(batches, steps) if steps > 0 and batches > 0 else max(batches, steps)
        if header["batches_seen"] != batches or state["global_step"] != batches:
            return f"{header['batches_seen']} batches in place of {batches}"
    return None


def _not_written(given: dict[str, str], config: dict[str, Any]) -> str | None:
    """The first option with a plain value that the configuration of the run has not."""
    for name, text in given.items():
        value = yaml.safe_load(text)
        if not isinstance(value, int | float | bool) or value != value:
            continue
        found: Any = config
        for key in name.split("."):
            found = found.get("init_args", found).get(key) if isinstance(found, dict) else None
        if found != value and str(found) != text:
            return name
    return None


def not_predicted(given: dict[str, str], checkpoint: Path) -> str | None:
    """What ``predict`` did not write, although it was asked for: two stages, so many problems of each."""
    path = Path(os.path.expanduser(given.get("predictions.path", "null")))
    if path.name == "null":
        path = checkpoint.with_suffix(".predictions.jsonl")
    if not path.exists():
        return f"no {path}"
    if path.is_file() and set(given) <= {"predictions.path", "data.predict_problems", "data.eval_batch_size"}:
        lines = sum(1 for _ in path.open())
        expected = 2 * int(given.get("data.predict_problems", "100"))
        if lines != expected:
            return f"{lines} predictions in place of {expected}"
    return None
