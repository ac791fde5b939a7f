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
from jsonargparse import ActionConfigFile
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich import box
from rich.console import Console
from rich.table import Table

from toolagent_pl.cli.errors import own_error, stop
from toolagent_pl.cli.main import ArgumentParser, ToolAgentCLI
from toolagent_pl.cli.main import main as command_line
from toolagent_pl.rl.checks import check_range
from toolagent_pl.training.media import Pictures, SampleEpisodes
from toolagent_pl.training.runs import LogConfig

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import RDBStorage, RetryFailedTrialCallback
    from optuna.study import MaxTrialsCallback, StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    stop("sweep: got no optuna, expected it to be installed: pip install 'toolagent_pl[sweep]'")

SCORE = "hp/score"  # beside the hyper-parameters in TensorBoard
BEST = "best.yaml"
CONFIG, ERROR = "config", "error"  # attributes of a trial, of one that failed
SETTINGS = ("space", "fit", "metric", "score", "direction")  # that all processes must have alike
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # in the order of the table; killed ones are tried again
SHOWN = 10  # trials in the table
MARK = "# The best of a sweep, trial "  # how the file with its configuration begins
EPILOG = "Start the command several times to run several trials at once; start it again to go on with a sweep."


def distributions(space: Mapping[str, Any], path: str = "") -> dict[str, BaseDistribution]:
    """What is searched, by option of ``fit``.

    Args:
        space: By option, or nested as in a configuration: a list of choices, or ``low`` and ``high`` with ``log`` or
            ``step``; whole numbers if both are.

    Raises:
        ValueError: If it is neither; names the option.
    """
    found: dict[str, BaseDistribution] = {}
    for key, given in space.items():
        option = f"{path}{key}"
        if isinstance(given, list) and given:
            words = [value if isinstance(value, str) else json.dumps(value, default=list) for value in given]
            found[option] = CategoricalDistribution(words)
        elif isinstance(given, Mapping) and given and not {"low", "high"} & set(given):
            found |= distributions(given, f"{option}.")
        else:
            try:
                whole = all(isinstance(given[end], int) for end in ("low", "high"))
                found[option] = IntDistribution(**{"step": 1, **given}) if whole else FloatDistribution(**given)
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
        if not self.space:
            raise ValueError("space: got nothing, expected options of fit and what to choose from")
        check_range(at_least=1, trials=self.trials, stale_after=self.stale_after)
        check_range(at_least=0, prune_after=self.prune_after)
        self.options = distributions(self.space)
        self.root = Path(self.directory).expanduser()

    def words(self, chosen: Mapping[str, Any]) -> list[str]:
        """The command line with these values."""
        return ["fit", *self.fit, *(f"--{option}={value}" for option, value in chosen.items())]

    def check(self) -> None:
        """Build runs from all ends of the space without running them, so that no trial fails for a wrong option."""
        ends = {option: getattr(one, "choices", None) or (one.low, one.high) for option, one in self.options.items()}
        for i in range(max(map(len, ends.values()))):
            command_line(self.words({option: values[i % len(values)] for option, values in ends.items()}), DryCLI)

    def open(self) -> optuna.Study:
        """The study, begun or gone on with.

        Raises:
            ValueError: If it cannot be read or written, is one of another sweep, or ``best.yaml`` is something else.
        """
        best = self.root / BEST
        if best.exists() and not best.read_bytes().startswith(MARK.encode()):
            raise ValueError(f"directory: got {self.root}, whose {BEST} is not of a sweep; expected another")
        settings = json.loads(json.dumps({key: getattr(self, key) for key in SETTINGS}))
        pruners, never = optuna.pruners, self.prune_after is None
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
                    pruner=pruners.NopPruner() if never else pruners.MedianPruner(n_warmup_steps=self.prune_after),
                    sampler=optuna.samplers.TPESampler(constant_liar=True),  # so that processes do not try the same
                )
                before = study.user_attrs.get("settings") or settings
                study.set_user_attr("settings", before)
        except Exception as error:  # a file of anything, or a database that nobody knows
            raise ValueError(f"storage: got {url}, expected the database of a sweep ({error})") from error
        if changed := [key for key, value in settings.items() if before.get(key) != value]:
            raise ValueError(f"storage: got {url} of a sweep with another {changed[0]}, expected another directory")
        return study


class DryCLI(ToolAgentCLI):
    """Builds everything, and runs nothing."""

    def before_fit(self) -> None:
        """Refuse what cannot be run as a trial."""
        self.check_run()
        if (devices := self.trainer.world_size) > 1:
            expected = "1: start the sweep once for each device instead"
            raise ValueError(f"trainer.devices: got {devices}, expected {expected}")

    def fit(self, **options: Any) -> None:
        """Train nothing."""

    def after_fit(self) -> None:
        """Test nothing."""


class TrialCLI(ToolAgentCLI):
    """``fit`` without pictures, samples and a test at the end, and with the report of a trial."""

    def __init__(self, args: list[str] | None = None, *, report: "Report", **options: Any) -> None:
        self.report = report
        super().__init__(args, **options)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Build the trainer."""
        trainer: Any = super().instantiate_trainer(**options)
        kept = [one for one in trainer.callbacks if not isinstance(one, Pictures | SampleEpisodes)]
        trainer.callbacks = [*kept, self.report]
        return trainer

    def after_fit(self) -> None:
        """Show in TensorBoard what the trial came to."""
        for logger in self.trainer.loggers:
            logger.log_metrics({SCORE: self.report.score}, self.model.batches_seen)

    def after_stop(self) -> None:
        """Say nothing: the sweep is gone on with, not the trial."""


class LogTrial(LogConfig):
    """Saves the configuration with the trial, too, and shows in TensorBoard what was searched."""

    def __init__(self, trial: optuna.Trial, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trial = trial
        # They are those of the sweep.
        self.config.trainer.default_root_dir = self.config.trainer.enable_progress_bar = None

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it, and hand it to the loggers."""
        assert self.folder is not None
        config = self.parser.dump(self.config, skip_none=False)
        self.trial.set_user_attr(CONFIG, config)
        (self.folder / self.config_filename).write_text(config, encoding="utf-8")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(self.trial.params), {SCORE: 0.0})


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
            known = ", ".join(there)
            raise ValueError(f"metric: got {self.sweep.metric}, expected one of {known}, or a pattern")
        self.values.append(sum(found) / len(found))
        if trainer.should_stop and trainer.max_epochs:
            self.values += [self.values[-1]] * (trainer.max_epochs - len(self.values))
        self.trial.report(self.score, len(self.values))
        if not trainer.should_stop and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def run_trial(sweep: Sweep, trial: optuna.Trial) -> float:
    """Train with what a trial suggests, and return its score.

    Raises:
        TrialPruned: If it is worse than the others, or has failed, as with options that do not go together.
    """
    chosen = {option: _suggested(trial, option, one) for option, one in sweep.options.items()}
    report = Report(sweep, trial)
    place = f"--trainer.default_root_dir={sweep.root / f'trial_{trial.number}'}"
    try:
        command_line(
            [*sweep.words(chosen), place, "--trainer.enable_progress_bar=false"],
            partial(TrialCLI, report=report),
            save_config_callback=partial(LogTrial, trial),
        )
    except SystemExit as stopped:
        if isinstance(stopped.code, int) and stopped.code > 128:  # by a signal: its heart beats no more
            raise
        trial.set_user_attr(ERROR, f"ended with exit code {stopped.code}")
        raise optuna.TrialPruned from stopped
    if math.isnan(report.score):
        trial.set_user_attr(ERROR, f"the {sweep.score} of {sweep.metric} is not a number")
    if report.pruned or math.isnan(report.score):
        raise optuna.TrialPruned
    return report.score


def _suggested(trial: optuna.Trial, option: str, one: BaseDistribution) -> Any:
    if isinstance(one, CategoricalDistribution):
        return trial.suggest_categorical(option, one.choices)
    assert isinstance(one, IntDistribution | FloatDistribution)
    suggest: Any = trial.suggest_int if isinstance(one, IntDistribution) else trial.suggest_float
    return suggest(option, one.low, one.high, step=one.step, log=one.log)


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status.

    Args:
        arguments: The words after ``sweep``.
    """
    parser = ArgumentParser(
        prog="python -m toolagent_pl sweep", description="Search for good options of fit.", epilog=EPILOG
    )
    parser.add_argument("--config", action=ActionConfigFile, help="file with any of these options")
    parser.add_class_arguments(Sweep)
    options = parser.parse_args(list(arguments)).as_dict()
    del options["config"]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        sweep = Sweep(**options)
        sweep.check()
        _run(sweep, sweep.open())
    except ValueError as error:
        if own_error(error) is not error:
            raise
        stop(error)
    return 0


def _run(sweep: Sweep, study: optuna.Study) -> None:
    console = Console(highlight=False, soft_wrap=True)

    def told(study: optuna.Study, trial: FrozenTrial) -> None:
        number, score, state, took, *values = _row(trial, sweep)
        chosen = ", ".join(map(" ".join, zip(sweep.options, values, strict=True)))
        console.print(f"trial {number}: {score}, {state} after {took} s: {chosen}", markup=False)
        if trial.state == TrialState.COMPLETE:
            _write_best(sweep, study.best_trial)

    if len(study.get_trials(deepcopy=False, states=ENDED)) < sweep.trials:
        study.optimize(partial(run_trial, sweep), callbacks=[told, MaxTrialsCallback(sweep.trials, ENDED)])
    trials = study.get_trials(deepcopy=False, states=ENDED)
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    trials.sort(key=lambda trial: (ENDED.index(trial.state), ERROR in trial.user_attrs, sign * (trial.value or 0.0)))
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        raise ValueError(f"trials: got {len(trials)}, none of which came to its end, expected one that does")
    if running := study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        console.print(f"{len(running)} more run elsewhere; the last process to end knows all.")
    table = Table("trial", box=box.SIMPLE_HEAD, title=f"{sweep.score} of {sweep.metric}", title_justify="left")
    short = [name.rpartition(".")[2] for name in sweep.options]
    for column in ("score", "state", "seconds", *(short if len(set(short)) == len(short) else sweep.options)):
        table.add_column(column, justify="right", overflow="fold")
    for trial in trials[:SHOWN]:
        table.add_row(*_row(trial, sweep))
    console.print(table)
    console.print(f"The best of them: python -m toolagent_pl fit --config {sweep.root / BEST}", markup=False)
    console.print(f"All of them: tensorboard --logdir {sweep.root}", markup=False)


def _row(trial: FrozenTrial, sweep: Sweep) -> list[str]:
    """Number, score, state, seconds, and parameters of a trial."""
    return [
        str(trial.number),
        "-" if trial.value is None else f"{trial.value:.4f}",
        trial.user_attrs.get(ERROR) or trial.state.name.lower(),
        f"{trial.duration.total_seconds():.0f}" if trial.duration else "-",
        *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in map(trial.params.get, sweep.options)),
    ]


def _write_best(sweep: Sweep, best: FrozenTrial) -> None:
    """Write the configuration of the best trial so far."""
    line = f"{MARK}{best.number}: {sweep.score} of {sweep.metric} is {best.value}.\n"
    written = sweep.root / f".{BEST}.{os.getpid()}"
    written.write_text(line + best.user_attrs[CONFIG], encoding="utf-8")
    os.replace(written, sweep.root / BEST)  # never half of it
