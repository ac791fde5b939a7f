"""A search for good options of ``fit``: its space, its storage, and its trials, by means of Optuna."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from toolagent_pl.callbacks import Pictures, SampleEpisodes
from toolagent_pl.cli import LogConfig, ToolAgentCLI
from toolagent_pl.cli import main as command_line

SCORE = "hp/score"  # beside the hyper-parameters in TensorBoard
LIMITS = {"low", "high", "log", "step"}
BEST, JOURNAL = "best.yaml", "study.journal"
FIRST = b'{"op_code":'  # how a journal begins
STUDY = "sweep"
CONFIG, ERROR, SETTINGS = "config", "error", "settings"  # attributes of a trial, of a trial that failed, of the study
HOST, PROCESS, SEEN = "host", "process", "seen"  # attributes of a trial: who runs it, and when it was last seen


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; whole ones if both are.

    Attributes:
        log: As many between 1 and 10 as between 10 and 100.
        step: Distance of neighbours.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: optuna.Trial, option: str) -> str:
        """A number, as a word of the command line."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(option, self.low, self.high, step=int(self.step or 1), log=self.log))
        return str(trial.suggest_float(option, self.low, self.high, step=self.step, log=self.log))

    def ends(self) -> list[str]:
        """The least and the largest."""
        return [str(self.low), str(self.high)]

    def parameter(self, value: Any) -> Any:
        """A value of the option as Optuna has it; None if it is not in the range."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and self.low <= value <= self.high else None


@dataclass(frozen=True)
class Choices:
    """A list of values of any kind, lists and classes among them."""

    words: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, option: str) -> str:
        """One of them, as a word of the command line."""
        return str(trial.suggest_categorical(option, self.words))

    def ends(self) -> list[str]:
        """All of them."""
        return list(self.words)

    def parameter(self, value: Any) -> Any:
        """A value of the option as Optuna has it; None if it is none of the choices."""
        return _word(value) if _word(value) in self.words else None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=list)


def read_space(space: Mapping[str, Any], path: str = "") -> dict[str, Range | Choices]:
    """What is searched, by option of ``fit``.

    Args:
        space: By option, or nested as in a configuration: a list of choices, or ``low`` and ``high`` with ``log`` or
            ``step``.

    Raises:
        ValueError: If it is neither; names the option.
    """
    found: dict[str, Range | Choices] = {}
    for key, given in space.items():
        option = f"{path}{key}"
        if isinstance(given, list) and given:
            found[option] = Choices(tuple(_word(value) for value in given))
        elif isinstance(given, Mapping) and "low" not in given and "high" not in given and given:
            found |= read_space(given, f"{option}.")
        else:
            found[option] = _range(option, given)
    return found


def _range(option: str, given: Any) -> Range:
    wanted = f"space.{option}: got {given}, expected a list of choices, or low and high, and maybe log: true or a step"
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given) <= LIMITS:
        raise ValueError(wanted)
    numbers = [given[key] for key in ("low", "high", "step") if given.get(key) is not None]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
        raise ValueError(wanted)
    one = Range(**given)
    if (
        not one.low < one.high
        or (one.log and (one.low <= 0 or one.step is not None))
        or (one.step is not None and one.step <= 0)
    ):
        raise ValueError(f"{wanted}; low below high, a step above 0, and low above 0 without a step where log is true")
    return one


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
        storage: File or database URL that processes share; null for a file in the directory.
        stale_after: Seconds after which a trial on another machine that reports nothing counts as killed.
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
    stale_after: float = 600.0

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError("space: got nothing, expected options of fit and what to choose from")
        for option, least in (("trials", 1), ("prune_after", 0), ("stale_after", 0)):
            value = getattr(self, option)
            if value is not None and not value >= least:
                raise ValueError(f"{option}: got {value}, expected at least {least}")
        self.options = read_space(self.space)
        self.root = Path(self.directory).expanduser()

    def words(self, chosen: Mapping[str, str]) -> list[str]:
        """The command line with these values."""
        return ["fit", *self.fit, *(f"--{option}={value}" for option, value in chosen.items())]

    def check(self) -> dict[str, Any]:
        """Build runs from all ends of the space without running them, so that no trial fails for a wrong option.

        Returns:
            The settings as they are without the sweep, as Optuna's parameters; none if they are not in the space.
        """
        ends = {option: one.ends() for option, one in self.options.items()}
        for i in range(max(map(len, ends.values()))):
            command_line(self.words({option: words[i % len(words)] for option, words in ends.items()}), DryCLI)
        plain = command_line(self.words({}), DryCLI)
        flat = vars(plain.config.fit.clone().as_flat())
        found = {}
        for option, one in self.options.items():
            group, _, name = option.rpartition(".")
            values = [flat[key] for key in (option, f"{group}.init_args.{name}") if key in flat]
            values += [str(flat[key]).rpartition(".")[2] for key in (f"{option}.class_path",) if key in flat]
            if values and (parameter := one.parameter(values[0])) is not None:
                found[option] = parameter
        return found if len(found) == len(self.options) else {}

    def open(self) -> optuna.Study:
        """The study, begun or gone on with.

        Raises:
            ValueError: If it cannot be read or written, or is one of another sweep.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"directory: got {self.root}, expected a folder ({error.strerror})") from error
        place = self.storage or str(self.root / JOURNAL)
        settings = {key: getattr(self, key) for key in ("space", "fit", "metric", "score", "direction")}
        settings = json.loads(json.dumps(settings))
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if self.prune_after is not None:
            pruner = optuna.pruners.MedianPruner(n_warmup_steps=self.prune_after)
        try:
            storage: Any = place
            if "://" not in place:
                if Path(place).exists() and not Path(place).is_file():  # a device may have no end
                    raise ValueError("it is no file")
                _mend(place)
                storage = optuna.storages.JournalStorage(JournalFileBackend(place))
            study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                direction=self.direction,
                load_if_exists=True,
                pruner=pruner,
                sampler=optuna.samplers.TPESampler(constant_liar=True),  # so that processes do not try the same
            )
            before = study.user_attrs.get(SETTINGS)
            if before is None:
                study.set_user_attr(SETTINGS, settings)
        except Exception as error:  # a file of anything, or a database that nobody knows
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"storage: got {place}, expected a file or database of a sweep ({reason})") from error
        if before not in (None, settings):
            changed = [key for key, value in settings.items() if before.get(key) != value]
            raise ValueError(f"storage: got {place} of a sweep with another {changed[0]}, expected another directory")
        self.check_best(study)
        return study

    def check_best(self, study: optuna.Study) -> None:
        """Refuse a directory whose ``best.yaml`` is something else than this sweep has written.

        Raises:
            ValueError: If it is.
        """
        file = self.root / BEST
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if file.exists() and file.read_bytes() not in {self.best_yaml(trial).encode() for trial in done}:
            raise ValueError(f"directory: got {self.root}, whose {BEST} is not of this sweep; expected another")

    def best_yaml(self, trial: FrozenTrial) -> str:
        """What is written of a trial if it is the best one."""
        line = f"# Trial {trial.number} of a sweep: {self.score} of {self.metric} is {trial.value}.\n"
        return line + trial.user_attrs.get(CONFIG, "")


def _mend(path: str) -> None:
    """Drop half a line that a process left when it was killed: what is written behind it could not be read.

    Raises:
        ValueError: If the file is something else than a journal, of which not a byte is dropped.
    """
    file = Path(path)
    if not file.is_file():
        return
    lock = JournalFileSymlinkLock(path)
    lock.acquire()
    try:
        with file.open("rb+") as journal:
            text = journal.read()
            if not text.startswith(FIRST[: len(text)]):
                raise ValueError("it is something else")
            if not text.endswith(b"\n"):
                journal.truncate(text.rfind(b"\n") + 1)
    finally:
        lock.release()


class DryCLI(ToolAgentCLI):
    """Builds everything, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            self.check_run(subcommand)
            if (devices := self.trainer.world_size) > 1:
                raise ValueError(
                    f"trainer.devices: got {devices}, expected 1: start the sweep once for each device instead"
                )
        except ValueError as error:
            self.parser.error(str(error), error)


class LogTrial(LogConfig):
    """Saves the configuration with the trial, too, and shows in TensorBoard what was searched."""

    def __init__(self, *args: Any, trial: optuna.Trial, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trial = trial

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, and hand it to the loggers."""
        assert self.folder is not None
        config = self.config.clone()
        config.trainer.default_root_dir = config.trainer.enable_progress_bar = None  # they are those of the sweep
        text = self.parser.dump(config, skip_none=False)
        (self.folder / self.config_filename).write_text(text, encoding="utf-8")
        self.trial.set_user_attr(CONFIG, text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(self.trial.params), {SCORE: 0.0})


class Report(Callback):
    """Reports the score after each validation, and ends a trial that is not worth going on with.

    Attributes:
        pruned: Whether it was ended so.
    """

    def __init__(self, sweep: Sweep, trial: optuna.Trial, progress: Callable[[int, float], None]) -> None:
        self.sweep, self.trial, self.progress = sweep, trial, progress
        self.values: list[float] = []
        self.pruned = False

    @property
    def score(self) -> float:
        """What the trial has come to so far.

        Raises:
            ValueError: If there was no validation.
        """
        if not self.values:
            raise ValueError(f"metric: got {self.sweep.metric}, expected a validation before training ends")
        return self.values[-1] if self.sweep.score == "last" else sum(self.values) / len(self.values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report. A run that ends early, since all is solved, counts as if its last value had lasted."""
        metrics = trainer.callback_metrics
        there = [name for name in metrics if name.startswith("val/")]
        if not there:
            return  # validations are rarer than epochs
        found = [float(metrics[name]) for name in there if fnmatch(name, self.sweep.metric)]
        if not found:
            raise ValueError(f"metric: got {self.sweep.metric}, expected one of {', '.join(there)}, or a pattern")
        self.values.append(sum(found) / len(found))
        if trainer.should_stop and trainer.max_epochs and trainer.max_epochs > 0:
            self.values += [self.values[-1]] * (trainer.max_epochs - len(self.values))
        step = len(self.values)
        self.trial.report(self.score, step)
        self.trial.set_user_attr(SEEN, time.time())
        self.progress(step, self.score)
        if not trainer.should_stop and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class TrialCLI(ToolAgentCLI):
    """``fit`` without pictures, samples and a test at the end, and with the report of a trial."""

    def __init__(self, args: list[str] | None = None, *, report: Report, **options: Any) -> None:
        self.report = report
        super().__init__(args, **options)

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Build the trainer."""
        trainer = super().instantiate_trainer(**options)
        kept = [one for one in trainer.callbacks if not isinstance(one, Pictures | SampleEpisodes)]  # type: ignore[attr-defined]
        trainer.callbacks = [*kept, self.report]  # type: ignore[attr-defined]
        return trainer

    def after_fit(self) -> None:
        """Show in TensorBoard what the trial came to."""
        for logger in self.trainer.loggers:
            logger.log_metrics({SCORE: self.report.score}, self.model.batches_seen)

    def after_stop(self) -> None:
        """Say nothing: the sweep is gone on with, not the trial."""


def run_trials(sweep: Sweep, study: optuna.Study, progress: Callable[[int, int, float], None]) -> Iterator[FrozenTrial]:
    """Run trials until there are as many as wanted, those that other processes run among them.

    Args:
        progress: Told the number of a trial, how many validations it has had, and its score.

    Yields:
        Each trial that has ended.
    """
    while True:
        retry_killed(study, sweep.stale_after)
        if sum(_counts(trial) for trial in study.get_trials(deepcopy=False)) >= sweep.trials:
            return
        trial = study.ask()
        yield _run_trial(sweep, study, trial, progress)
        _write_best(sweep, study)


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial has ended, or will; those that were killed have not, and are tried again."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING) or ERROR in trial.user_attrs


def _run_trial(
    sweep: Sweep, study: optuna.Study, trial: optuna.Trial, progress: Callable[[int, int, float], None]
) -> FrozenTrial:
    for name, fact in ((HOST, socket.gethostname()), (PROCESS, os.getpid()), (SEEN, time.time())):
        trial.set_user_attr(name, fact)
    chosen = {option: one.suggest(trial, option) for option, one in sweep.options.items()}
    report = Report(sweep, trial, lambda step, score: progress(trial.number, step, score))
    own = [f"--trainer.default_root_dir={sweep.root / f'trial_{trial.number}'}", "--trainer.enable_progress_bar=false"]
    state, values = TrialState.COMPLETE, None  # or what becomes of it below
    try:
        command_line(
            [*sweep.words(chosen), *own],
            TrialCLI,
            report=report,
            save_config_callback=LogTrial,
            save_config_kwargs={"save_to_log_dir": False, "trial": trial},
        )
        if report.pruned:
            state = TrialState.PRUNED
        elif math.isnan(report.score):
            trial.set_user_attr(ERROR, f"the {sweep.score} of {sweep.metric} is not a number")
            state = TrialState.FAIL
        else:
            values = report.score
    except SystemExit as stopped:
        if isinstance(stopped.code, int) and stopped.code > 128:  # by a signal
            _retry(study, trial.number)
            raise
        trial.set_user_attr(ERROR, str(stopped.code))
        if isinstance(stopped.code, int):  # no option of this trial alone is wrong
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        state = TrialState.FAIL
    except KeyboardInterrupt:
        _retry(study, trial.number)
        raise
    return study.tell(trial, values, state, skip_if_finished=True)


def retry_killed(study: optuna.Study, stale_after: float) -> None:
    """Put those trials to be tried again whose processes are gone."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        attributes = trial.user_attrs
        gone = False
        if attributes.get(HOST) == socket.gethostname():
            # This process runs no trial now: what has its number is from before a restart.
            gone = attributes[PROCESS] == os.getpid() or not _runs(attributes[PROCESS])
        else:
            seen = attributes.get(SEEN) or (trial.datetime_start.timestamp() if trial.datetime_start else 0.0)
            gone = time.time() - seen > stale_after
        if gone:
            _retry(study, trial.number)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _retry(study: optuna.Study, number: int) -> None:
    trial = study.get_trials(deepcopy=False)[number]
    try:
        study.tell(number, state=TrialState.FAIL)
    except (ValueError, RuntimeError):  # another process was faster
        return
    study.enqueue_trial(trial.params)


def _write_best(sweep: Sweep, study: optuna.Study) -> None:
    """Write the configuration of the best trial so far, if there is one."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if done and CONFIG in (best := study.best_trial).user_attrs:
        sweep.check_best(study)
        written = sweep.root / f".{BEST}.{os.getpid()}"
        written.write_bytes(sweep.best_yaml(best).encode())
        os.replace(written, sweep.root / BEST)  # never half of it


def ranked(study: optuna.Study) -> Sequence[FrozenTrial]:
    """The trials that have ended, best first; behind them those that were pruned or failed."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1

    def key(trial: FrozenTrial) -> tuple[bool, bool, float]:
        complete = trial.state == TrialState.COMPLETE
        score = trial.value if complete else trial.intermediate_values.get(trial.last_step or 0)
        return not complete, trial.state != TrialState.PRUNED, sign * (score or 0.0)

    ended = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and _counts(t)]
    return sorted(ended, key=key)
