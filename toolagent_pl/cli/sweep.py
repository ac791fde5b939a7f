"""``python -m toolagent_pl sweep``: a search for good options of ``fit``, by Optuna."""

import json
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich import box
from rich.console import Console
from rich.table import Table

from toolagent_pl.cli.errors import own_error, stop
from toolagent_pl.cli.main import ArgumentParser, ToolAgentCLI
from toolagent_pl.cli.main import main as command_line
from toolagent_pl.cli.options import default_run
from toolagent_pl.rl.checks import check_range
from toolagent_pl.training.runs import LogConfig, callback_of

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import RDBStorage, RetryFailedTrialCallback
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    stop("sweep: got no optuna, expected it to be installed: pip install 'toolagent_pl[sweep]'")

SCORE = "hp/score"  # beside the hyper-parameters in TensorBoard
MARK = "# The best of a sweep, trial "  # how the file with its configuration begins
CONFIG, ERROR = "config", "error"  # attributes of a trial, of one that failed
SETTINGS = ("space", "fit", "metric", "score", "direction")  # that all processes must have alike
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # and not FAIL: trials that were killed are tried again
SHOWN = 10  # trials in the table
EPILOG = "Start the command several times to run several trials at once; start it again to go on with a sweep."

Distribution = CategoricalDistribution | IntDistribution | FloatDistribution


def distributions(space: Mapping[str, Any], path: str = "") -> dict[str, Distribution]:
    """What is searched, by option of ``fit``.

    Args:
        space: By option, or nested as in a configuration: a list of choices, or ``low`` and ``high`` with ``log`` or
            ``step``; whole numbers if both are.

    Raises:
        ValueError: If it is neither; names the option.
    """
    found: dict[str, Distribution] = {}
    for key, given in space.items():
        option = f"{path}{key}"
        if isinstance(given, Mapping) and not {"low", "high"} & set(given):
            found |= distributions(given, f"{option}.")
            continue
        try:
            if isinstance(given, list):
                words = [value if isinstance(value, str) else json.dumps(value, default=list) for value in given]
                found[option] = CategoricalDistribution(words)
            else:
                whole = isinstance(given["low"], int) and isinstance(given["high"], int)
                found[option] = IntDistribution(**given) if whole else FloatDistribution(**given)
        except (TypeError, KeyError, ValueError) as error:
            expected = "a list of choices, or low and high, and maybe log: true or a step"
            raise ValueError(f"space.{option}: got {given}, expected {expected} ({error})") from None
    return found


@dataclass
class Sweep:
    """What is searched, and how.

    Args:
        space: Options of ``fit`` and what to choose from: a list, or ``low`` and ``high`` with ``log`` or ``step``.
        fit: Words of the command line of ``fit`` that all trials have.
        trials: How many, over all processes and all times that the sweep is gone on with.
        metric: Of validation, its name or a pattern that names several, whose mean is taken.
        score: What a trial comes to: the last value, or the mean over all validations, which prefers who learns fast.
        direction: Whether large scores are good, or small ones.
        prune_after: Validations after which a trial ends that is worse than the median of the others then; null for
            never.
        directory: Where the trials log, and the best configuration is written.
        storage: Database URL that processes share; null for a file in the directory.
        stale_after: Seconds after which a trial whose process gives no sign of life counts as killed, and is tried
            again.
    """

    space: dict[str, Any] = field(default_factory=dict)
    fit: list[str] = field(default_factory=list)
    trials: int = 20
    metric: str = "val/*_accuracy"
    score: Literal["last", "mean"] = "mean"
    direction: Literal["maximize", "minimize"] = "maximize"
    prune_after: int | None = 5
    directory: str = "sweep"
    storage: str | None = None
    stale_after: int = 120

    def __post_init__(self) -> None:
        self.options = distributions(self.space)
        if not self.options:
            raise ValueError("space: got nothing, expected options of fit and what to choose from")
        check_range(at_least=1, trials=self.trials, stale_after=self.stale_after)
        check_range(at_least=0, prune_after=self.prune_after)
        self.root = Path(self.directory).expanduser()
        self.best = self.root / "best.yaml"

    def words(self, chosen: Mapping[str, Any]) -> list[str]:
        """The command line with these values."""
        return ["fit", *self.fit, *(f"--{option}={value}" for option, value in chosen.items())]

    def check(self) -> None:
        """Build runs from all ends of the space without running them, so that no trial fails for a wrong option."""
        ends = {
            option: one.choices if isinstance(one, CategoricalDistribution) else (one.low, one.high)
            for option, one in self.options.items()
        }
        for i in range(max(map(len, ends.values()))):
            command_line(self.words({option: values[i % len(values)] for option, values in ends.items()}), DryCLI)

    def open(self) -> optuna.Study:
        """The study, begun or gone on with.

        Raises:
            ValueError: If it cannot be read or written, is one of another sweep, or ``best.yaml`` is something else.
        """
        if self.best.exists() and not self.best.read_bytes().startswith(MARK.encode()):
            raise ValueError(f"directory: got {self.root}, whose {self.best.name} is not of a sweep; expected another")
        settings = json.loads(json.dumps({key: getattr(self, key) for key in SETTINGS}))
        url = self.storage or f"sqlite:///{self.root / 'study.db'}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock", timeout=60):  # two that make the tables at once fail
                storage = RDBStorage(
                    url,
                    engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                    heartbeat_interval=max(1, self.stale_after // 4),
                    grace_period=self.stale_after,
                    failed_trial_callback=RetryFailedTrialCallback(),
                )
                study = optuna.create_study(
                    storage=storage,
                    study_name="sweep",
                    direction=self.direction,
                    load_if_exists=True,
                    pruner=optuna.pruners.MedianPruner(n_warmup_steps=self.prune_after or 0),
                    sampler=optuna.samplers.TPESampler(constant_liar=True),  # so that processes do not try the same
                )
                before = study.user_attrs.get("settings") or settings
                study.set_user_attr("settings", before)
        except Exception as error:  # a file of anything, or a database that nobody knows
            raise ValueError(f"storage: got {url}, expected the database of a sweep ({error})") from error
        if changed := [key for key in SETTINGS if before[key] != settings[key]]:
            raise ValueError(f"storage: got {url} of a sweep with another {changed[0]}, expected another directory")
        return study


class TrialCLI(ToolAgentCLI):
    """``fit`` without a test at the end."""

    def after_fit(self) -> None:
        """Test nothing."""

    def after_stop(self) -> None:
        """Say nothing: the sweep is gone on with, not the trial."""


class DryCLI(TrialCLI):
    """Builds everything, and runs nothing."""

    def before_fit(self) -> None:
        """Refuse what cannot be run as a trial."""
        self.check_run()
        if (devices := self.trainer.world_size) > 1:
            expected = "1: start the sweep once for each device instead"
            raise ValueError(f"trainer.devices: got {devices}, expected {expected}")

    def fit(self, **options: Any) -> None:
        """Train nothing."""


class LogTrial(LogConfig):
    """Saves the configuration with the trial, too, and shows in TensorBoard what was searched."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it, and hand it to the loggers."""
        assert self.folder is not None
        trial = callback_of(trainer, Report).trial
        self.config.trainer.default_root_dir = self.config.trainer.enable_progress_bar = None  # those of the sweep
        trial.set_user_attr(CONFIG, self.parser.dump(self.config, skip_none=False))
        (self.folder / self.config_filename).write_text(trial.user_attrs[CONFIG], encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(trial.params), {SCORE: 0.0})


class Report(Callback):
    """Reports the score after each validation, and ends a trial that is not worth going on with.

    Attributes:
        pruned: Whether it was ended so.
    """

    def __init__(self, sweep: Sweep, trial: optuna.Trial) -> None:
        self.sweep, self.trial = sweep, trial
        self.values: list[float] = []
        self.pruned = False

    @property
    def score(self) -> float:
        """What the trial has come to so far; not a number without a validation."""
        values = self.values[-1:] if self.sweep.score == "last" else self.values
        return sum(values) / len(values) if values else math.nan

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Report. A run that ends early, since all is solved, counts as if its last value had lasted."""
        if not pl_module.epoch_is_whole:
            return  # it was cut short, without a validation
        there = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        found = [value for name, value in there.items() if fnmatch(name, self.sweep.metric)]
        if not found:
            expected = f"one of {', '.join(there)}, or a pattern"
            raise ValueError(f"metric: got {self.sweep.metric}, expected {expected}")
        self.values.append(sum(found) / len(found))
        if trainer.should_stop and trainer.max_epochs:
            self.values += [self.values[-1]] * (trainer.max_epochs - len(self.values))
        self.trial.report(self.score, len(self.values))
        if self.sweep.prune_after is not None and not trainer.should_stop and self.trial.should_prune():
            self.pruned = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Show in TensorBoard what the trial came to."""
        for logger in trainer.loggers:
            logger.log_metrics({SCORE: self.score}, pl_module.batches_seen)


def run_trial(sweep: Sweep, trial: optuna.Trial) -> float:
    """Train with what a trial suggests, and return its score.

    Raises:
        TrialPruned: If it is worse than the others, or has failed, as with options that do not go together.
    """
    report = Report(sweep, trial)
    chosen = {option: _suggested(trial, option, one) for option, one in sweep.options.items()}
    place = f"--trainer.default_root_dir={sweep.root / f'trial_{trial.number}'}"
    try:
        command_line(
            [*sweep.words(chosen), place, "--trainer.enable_progress_bar=false"],
            TrialCLI,
            save_config_callback=LogTrial,
            trainer_defaults={**default_run()["trainer"], "callbacks": [report]},
        )
        failed = f"the {sweep.score} of {sweep.metric} is not a number" if math.isnan(report.score) else None
    except SystemExit as stopped:
        if isinstance(stopped.code, int) and stopped.code > 128:  # by a signal: its heart beats no more
            raise
        failed = f"ended with exit code {stopped.code}"
    if failed:
        trial.set_user_attr(ERROR, failed)
    if failed or report.pruned:
        raise optuna.TrialPruned(failed)
    return report.score


def _suggested(trial: optuna.Trial, option: str, one: Distribution) -> Any:
    if isinstance(one, CategoricalDistribution):
        return trial.suggest_categorical(option, one.choices)
    suggest: Any = trial.suggest_int if isinstance(one, IntDistribution) else trial.suggest_float
    return suggest(option, one.low, one.high, step=one.step, log=one.log)


def main(arguments: Sequence[str]) -> int:
    """Run the command with these words, and return its exit status."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
    for category in (optuna.exceptions.ExperimentalWarning, FutureWarning):  # of heartbeats
        warnings.simplefilter("ignore", category)
    shown = {"prog": "python -m toolagent_pl sweep", "description": "Search for good options of fit.", "epilog": EPILOG}
    parse: Any = partial(auto_cli, Sweep, config_help="file with any of these options", return_instance=True)
    try:
        sweep = parse(args=list(arguments), parser_class=ArgumentParser, **shown)
        sweep.check()
        _run(sweep, sweep.open())
    except ValueError as error:
        if (own := own_error(error)) is None:
            raise
        stop(own)
    return 0


def _run(sweep: Sweep, study: optuna.Study) -> None:
    if len(_ended(study)) < sweep.trials:
        enough = optuna.study.MaxTrialsCallback(sweep.trials, ENDED)
        study.optimize(partial(run_trial, sweep), callbacks=[partial(_write_best, sweep), enough])
    trials = _ended(study)
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        raise ValueError(f"trials: got {len(trials)}, none of which came to its end, expected one that does")
    sign = -1 if sweep.direction == "maximize" else 1
    trials.sort(key=lambda one: (ENDED.index(one.state), ERROR in one.user_attrs, sign * (one.value or 0.0)))
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("trial", "score", "state", *sweep.options):
        table.add_column(column, overflow="fold")
    for one in trials[:SHOWN]:
        score = "-" if one.value is None else f"{one.value:.4f}"
        state = one.user_attrs.get(ERROR) or one.state.name.lower()
        values = map(one.params.get, sweep.options)
        chosen = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        table.add_row(str(one.number), score, state, *chosen)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    if running := len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
        console.print(f"{running} more run elsewhere; the last process to end knows all.")
    console.print(f"The best of them: python -m toolagent_pl fit --config {sweep.best}")
    console.print(f"All of them: tensorboard --logdir {sweep.root}")


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=ENDED)


def _write_best(sweep: Sweep, study: optuna.Study, trial: FrozenTrial) -> None:
    """Write the configuration of the best trial so far."""
    if trial.state == TrialState.COMPLETE:
        best, written = study.best_trial, sweep.root / f".best.{os.getpid()}"
        line = f"{MARK}{best.number}: {sweep.score} of {sweep.metric} is {best.value}.\n"
        written.write_text(line + best.user_attrs[CONFIG], encoding="utf-8")
        written.replace(sweep.best)  # never half of it
