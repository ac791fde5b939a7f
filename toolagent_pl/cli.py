"""The command line of Lightning: ``python -m toolagent_pl fit | validate | test | predict``."""

import argparse
import difflib
import json
import logging
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from toolagent_pl.blame import described, own_classes, own_method, refused_value
from toolagent_pl.callbacks import (
    Checkpoint,
    CurriculumCallback,
    EpochLines,
    Pictures,
    Polish,
    PredictionWriter,
    ProgressBar,
    RanksAgree,
    SampleEpisodes,
    StopOnNonFinite,
    StopWhenSolved,
    Throughput,
)
from toolagent_pl.callbacks.agreement import RanksDisagreeError
from toolagent_pl.callbacks.checkpoint import LAST
from toolagent_pl.callbacks.finite import NonFiniteError
from toolagent_pl.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointError,
    batches_seen,
    check_origin,
    guard_restoring,
    read_header,
)
from toolagent_pl.configuration import (
    PARSER_MODE,
    allow_own_modules,
    check_groups,
    check_options_of_classes,
    check_parts,
    load_yaml,
)
from toolagent_pl.messages import names_option, one_line, with_accepted
from toolagent_pl.metrics import result_metrics
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule
from toolagent_pl.process import keep_freed_memory, threads_for
from toolagent_pl.ranks import check_meeting_place, ending_with_parent, wait_for_ranks
from toolagent_pl.report import print_report, print_table
from toolagent_pl.resuming import check_settings, settings_of
from toolagent_pl.run_folder import take_next, writing_alone
from toolagent_pl.saved import configuration_of
from toolagent_pl.tools import TOOLS
from toolagent_pl.torchrun import check_restarts, meet_again
from toolagent_pl.trainer_options import check_monitor, check_optimizer, check_trainer_options, shown

LOG_NAME = "lightning_logs"
SOLVED = "hp/solved"  # share of all problems solved in the end, shown beside the hyper-parameters
USAGE_ERROR = 2
RANK_IS_GONE = "Connection (closed|reset) by peer"  # what gloo raises on the ranks that are left
COMMANDS = "fit, validate, test, predict, solve, export or sweep"
LEARNED, SAMPLE = 0.9, 1000  # validation accuracy of a stage below which so many problems of each are tested after fit
DEFAULT_STAGES = ["T0", "T1", "T2", "E1", "E2", "E3", "E4", "E5"]
DEFAULT_CURRICULUM = ["E1", ["E2", "T0"], ["E3", "T1"], ["E4", "T2"], "E5"]
DEFAULT_ENT_TARGETS = [1.0, 1.25, 1.0, 0.7, 0.7]
SHOW_TRACEBACK = "TOOLAGENT_TRACEBACK"  # environment variable: 1 to see where an error comes from
GROUPS = (
    "trainer",
    "model",
    "data",
    "curriculum",
    "polish",
    "solved",
    "checkpoint",
    "samples",
    "pictures",
    "predictions",
)


def show_traceback(error: BaseException | None) -> None:
    """Print where an error comes from, if that is asked for."""
    if error is not None and os.environ.get(SHOW_TRACEBACK) == "1":
        traceback.print_exception(error)


def stop(error: BaseException, line: str | None = None) -> NoReturn:
    """Print an error in one line and exit with code 1.

    Args:
        line: What to say in place of its message.
    """
    show_traceback(error)
    sys.exit(f"error: {one_line(line or str(error))}")


class ArgumentParser(LightningArgumentParser):
    """Says in one line what is wrong, instead of printing all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs = {"parser_mode": PARSER_MODE, "allow_abbrev": False, **kwargs}
        super().__init__(*args, **kwargs)

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, **kwargs: Any) -> Any:
        """Leave out the tools of the environment, which are those of the data."""
        if nested_key == "model":
            kwargs["skip"] = {*kwargs.get("skip", ()), "env.init_args.tools"}
        return super().add_class_arguments(theclass, nested_key, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the line and exit with code 2."""
        if not self.exit_on_error:  # a parser of a nested class: the one around it wants the exception
            options = [action.dest for action in self._actions if not action.dest.endswith("help")]
            super().error(with_accepted(message, options), ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        if match := re.match(r"[Uu]nrecognized arguments: --([\w.+-]+)|.*does not accept option '([\w.]+)'", message):
            unknown = match[1] or match[2]
            options = [o[2:] for action in parser._actions for o in action.option_strings if o.startswith("--")]
            near = difflib.get_close_matches(unknown, options, n=2, cutoff=0.8)
            hint = f", did you mean --{' or --'.join(near)}?" if near else "; --help lists all of them"
            message = f"unknown option --{unknown}{hint}"
        if match := re.match(r"argument subcommand: invalid choice: '(.*)' \(choose", message):
            message = f"command: got {match[1]}, expected {COMMANDS}"
        elif message.startswith('expected "subcommand" to be one of'):
            message = f"command: got none, expected {COMMANDS}; --help tells what they do"
        show_traceback(ex)
        self.exit(USAGE_ERROR, f"error: {one_line(message)}\n")


class Started(Callback):
    """Tells errors of the configuration, which come before the work, from errors while working."""

    def __init__(self) -> None:
        self.started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The work begins."""
        self.started = True

    on_validation_start = on_test_start = on_predict_start = on_train_start


class NoProfiler(PassThroughProfiler):
    """Does nothing around ninety hooks an update, and that in less time than Lightning's, which makes generators."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return self.nothing


class LogConfig(SaveConfigCallback):
    """Saves the configuration of a run as a file in its directory, and among TensorBoard's hyper-parameters.

    Attributes:
        folder: Directory of the run, None if it has none. Without a logger Lightning would write into the working
            directory, over what is there.
    """

    folder: Path | None = None

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, and hand it to the loggers."""
        begins = False
        if self.folder is not None:
            file = self.folder / self.config_filename
            begins = not file.exists()
            # One: for several it would change the working directory, in which TensorBoard's thread writes meanwhile.
            self.parser.save(self.config, file, skip_none=False, overwrite=True, multifile=False)
        flat = {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in vars(self.config.clone().as_flat()).items()
            if value is not None and not key.startswith(("config", "trainer.callbacks", "ckpt_path"))
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # it shows hyper-parameters beside a metric, or not at all
                logger.log_hyperparams(flat, {SOLVED: 0.0} if stage == "fit" and begins else None)
                logger.save()  # now: it is not logged again where a run that was killed goes on
            else:
                logger.log_hyperparams(flat)


class ToolAgentCLI(LightningCLI):
    """LightningCLI with this project's callbacks, one-line errors, and a report at the end of ``fit``.

    Args:
        args: Words of the command line; None for those that the process was started with.
        kwargs: Those of LightningCLI.
    """

    def __init__(self, args: list[str] | None = None, **kwargs: Any) -> None:
        self.command_line = args
        super().__init__(ToolAgent, ProblemDataModule, args=args, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Build the options of the command that is run; those of the others would take another 0.2 s."""
        words = sys.argv[1:] if self.command_line is None else self.command_line
        if words and words[0] in self.subcommands() and words[0] != subcommand:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # Lightning's table has no counts: there is one that has
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that have options, and tie together what must agree."""
        parser.add_lightning_class_args(CurriculumCallback, "curriculum")
        parser.add_lightning_class_args(Polish, "polish")
        parser.add_lightning_class_args(StopWhenSolved, "solved")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(SampleEpisodes, "samples")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        for option in ("stages", "unseen", "tools"):
            parser.link_arguments(f"data.{option}", f"model.{option}")
        parser.link_arguments("seed_everything", "data.seed", int)
        parser.link_arguments("seed_everything", "model.seed", int)
        parser.set_defaults(
            {
                "model.agent": {"class_path": "Reader"},
                "model.env": {"class_path": "CalculatorEnv", "init_args": {"max_steps": "auto"}},
                "model.reward": {"class_path": "OutcomeReward"},
                "model.algorithm": {
                    "class_path": "PPO",
                    "init_args": {"minibatches": 2, "ent_coef": 0.15, "ent_target": 1.0},
                },
                "model.learning_rate": 4e-3,
                "model.betas": (0.9, 0.98),
                "data.stages": DEFAULT_STAGES,
                "data.unseen": ["E6", "E8", "E10", "E12"],
                "data.batch_size": 1024,
                "data.val_problems": 256,
                "curriculum.stages": DEFAULT_CURRICULUM,
                "curriculum.advance_at": 0.9,
                "curriculum.review": 0.3,
                "curriculum.ent_targets": DEFAULT_ENT_TARGETS,
                "polish.at": 0.95,
                "polish.batches": 150,
                "polish.ent_target": 0.4,
                "polish.step_cost": 0.02,
                "solved.accuracy": None,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint before anything is built."""
        words = sys.argv[1:] if args is None else args
        try:
            words = self._with_configuration(words)
            allow_own_modules(words)
            self.config = parser.parse_args(words)
            options = self.config[self.config.subcommand]
            check_groups(words, GROUPS)
            check_parts(options)
            check_options_of_classes(words, options)
        except Exception as error:  # what a foreign file may hold makes jsonargparse fail in any way
            if names_option(str(error)):
                parser.error(str(error), error)
            parser.error(f"config: cannot be read ({type(error).__name__}: {error})", error)
        curriculum = options.curriculum
        if list(options.data.stages) != DEFAULT_STAGES and curriculum.stages == DEFAULT_CURRICULUM:
            curriculum.stages = None  # it is one for other stages: these are trained on in their order
        if curriculum.stages != DEFAULT_CURRICULUM and curriculum.ent_targets == DEFAULT_ENT_TARGETS:
            curriculum.ent_targets = None  # they are those of its entries
        named = {word.partition("=")[0] for word in words}
        if self.config.subcommand != "fit" and "--data.stages" in named and "--data.unseen" not in named:
            # Whoever names the stages to try means these and no others, not even those of the configuration.
            options.data.unseen = options.model.unseen = []
        seed = options.seed_everything
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            parser.error(f"seed_everything: got {shown(seed)}, expected a number from 0 to {2**32 - 1}")
        try:
            check_trainer_options(options.trainer, self.config.subcommand)
            check_optimizer(options.optimizer)
        except ValueError as error:
            parser.error(str(error), error)
        if options.get("lr_scheduler") and not options.optimizer:
            parser.error(f"lr_scheduler: got {options.lr_scheduler.class_path}, expected --optimizer beside it")
        if options.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            parser.error(f"trainer.accelerator: got {options.trainer.accelerator}, expected auto or cpu: no GPU here")
        self._check_folders(options)
        self.settings = settings_of(options)
        if options.ckpt_path in ("last", "auto"):
            options.ckpt_path = self._last_checkpoint(options)
        if options.ckpt_path:
            options.ckpt_path = os.path.expanduser(options.ckpt_path)
            self._check_checkpoint(options.ckpt_path)
        elif self.config.subcommand != "fit":
            parser.error("ckpt_path: got none, expected the path of a checkpoint, or last")

    def _with_configuration(self, words: list[str]) -> list[str]:
        """Words of ``validate``, ``test`` or ``predict`` with the configuration of the checkpoint, if they have none.

        It says what the agent is, and its problems; how the run was trained, and on what, is left out.
        """
        if not words or words[0] not in ("validate", "test", "predict"):
            return words
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for option in ("config", "ckpt_path", "checkpoint.dirpath", "trainer.default_root_dir"):
            parser.add_argument(f"--{option}", nargs="?")
        given = vars(parser.parse_known_args(words)[0])
        path = given["ckpt_path"]
        if path in ("last", "auto"):
            path = _newest(given["trainer.default_root_dir"], given["checkpoint.dirpath"])
        file = configuration_of(Path(path).expanduser()) if path and given["config"] is None else None
        if file is None:
            return words
        config = load_yaml(file.read_text(encoding="utf-8"))
        kept = {name: config[name] for name in ("seed_everything", "model", "data")}
        kept["model"].pop("weights", None)  # where the run began
        return [words[0], f"--config={json.dumps(kept)}", *words[1:]]

    def _check_folders(self, options: Namespace) -> None:
        """Refuse places where nothing can be written, before anything is done."""
        places = [
            ("trainer.default_root_dir", options.trainer.default_root_dir),
            ("checkpoint.dirpath", options.checkpoint.dirpath),
        ]
        loggers = options.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace):
                places.append(("trainer.logger.save_dir", (logger.get("init_args") or {}).get("save_dir")))
        for option, place in places:
            if place is not None and not _can_hold_files(Path(place).expanduser()):
                self.parser.error(f"{option}: got {place}, expected a folder that can be written to")
        if self.config.subcommand == "predict" and (path := options.predictions.path):
            file = Path(path).expanduser()
            if file.is_dir() or not file.parent.is_dir() or not _can_hold_files(file.parent):
                self.parser.error(f"predictions.path: got {path}, expected a file in a folder that can be written to")

    def _last_checkpoint(self, options: Namespace) -> str | None:
        """The newest ``last.ckpt`` among the runs below the root directory; with "auto", None if there is none.

        Each rank looks for itself. No rank trains, and so none saves, before all of them have looked.
        """
        dirpath = options.checkpoint.dirpath
        found = _newest(options.trainer.default_root_dir, dirpath)
        if found is None and (options.ckpt_path == "last" or self.config.subcommand != "fit"):
            runs = _runs(options.trainer.default_root_dir)
            expected = f"{LAST} in {dirpath}" if dirpath else f"checkpoints/{LAST} in {runs}"
            self.parser.error(f"ckpt_path: got {options.ckpt_path}, expected a run with {expected}")
        return found

    def _check_checkpoint(self, path: str) -> None:
        if not os.path.isfile(path):
            self.parser.error(f"ckpt_path: got {path}, expected a file that exists")
        try:
            self.checkpoint = read_header(path)
            saved = check_origin(self.checkpoint).get("settings")
            if saved is not None and self.config.subcommand == "fit":
                check_settings(saved, self.settings)
        except ValueError as error:
            self.parser.error(str(error), error)

    def _parse_ckpt_path(self) -> None:
        """Leave the options alone: Lightning would let those in a checkpoint override the command line."""

    def instantiate_classes(self) -> None:
        """Build everything; what cannot be built is an error of the configuration."""
        try:
            super().instantiate_classes()
        except Exception as error:  # a class of one's own may fail in any way
            self._refuse(error)
        self.model.settings = self.settings

    def _refuse(self, error: Exception) -> NoReturn:
        """End in one line about something that cannot be built."""
        text = str(error)
        if not names_option(text):
            line = own_method(error) or refused_value(error, self.config[self.config.subcommand])
            if line is None and not isinstance(error, ValueError | TypeError | MisconfigurationException):
                line = described(error)
            text = line or text
        self.parser.error(text, error)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what every run has."""
        options = self.config_init[self.subcommand].trainer
        self.started = Started()
        own = options.callbacks or []
        own = own if isinstance(own, list) else [own]
        callbacks = [*own, StopOnNonFinite(), RanksAgree(), self.started]
        if self.subcommand == "fit":
            callbacks.append(Throughput())
        if options.enable_progress_bar is not False:
            terminal = sys.stderr.isatty()
            callbacks.append(ProgressBar() if terminal else EpochLines())
            kwargs["enable_progress_bar"] = terminal
        if options.default_root_dir is not None:
            kwargs["default_root_dir"] = os.fspath(Path(options.default_root_dir).expanduser())
        if options.logger in (None, True):
            kwargs["logger"] = False  # it comes with the folder of the run
        if options.accelerator == "auto" and not torch.cuda.is_available():
            kwargs["accelerator"] = "cpu"  # Lightning would take an Apple GPU, which has no numbers of 64 bits
        if options.profiler is None:
            kwargs["profiler"] = NoProfiler()
        plugins = options.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopWhenSolved):
                self.solved = callback
        return trainer

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Take ``lightning_logs/version_N`` below the root directory, whatever the logger, for what is written there.

        It is that of the run to go on with, or the next, which the first rank makes; the others hear of it where the
        loggers and ``Checkpoint`` are set up.

        Raises:
            ValueError: If another run writes there.
        """
        options, trainer = self.config_init[self.subcommand], self.trainer
        fits = self.subcommand == "fit"
        if trainer.fast_dev_run or not (fits or options.trainer.logger is True):  # type: ignore[attr-defined]
            yield
            return
        root, path = _runs(options.trainer.default_root_dir), Path(options.ckpt_path or "").resolve()
        goes_on = bool(options.ckpt_path) and fits and path.parent.parent.parent == root.resolve()
        run = root / path.parent.parent.name if goes_on else take_next(root) if trainer.is_global_zero else root
        with ExitStack() as stack:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, LogConfig):
                    callback.folder = run
                elif isinstance(callback, Checkpoint):
                    option = "checkpoint.dirpath" if callback.dirpath else "ckpt_path"
                    callback.dirpath = callback.dirpath or run / "checkpoints"
                    if fits and trainer.is_global_zero:
                        stack.enter_context(writing_alone(callback.dirpath, option))
                        self._check_dirpath()  # a run that began with this one may be over
            if options.trainer.logger in (None, True):
                trainer.logger = self._logger(run, batches_seen(self.checkpoint) if goes_on else None)
            yield

    def _logger(self, run: Path, step: int | None) -> TensorBoardLogger:
        """Curves in the directory of the run.

        What was logged after a checkpoint is logged again on going on from it: TensorBoard drops the old points.
        It reads files in the order of their names, which begin with the second of their making: one that is made in
        the same second as another may come before it, and points of both would be lost.

        Args:
            step: Of the checkpoint that the run goes on from.
        """
        if any(run.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(1 - time.time() % 1)
        return TensorBoardLogger(
            run.parent.parent, run.parent.name, version=run.name, default_hp_metric=False, purge_step=step
        )

    def _run_subcommand(self, subcommand: str) -> None:
        data = self.datamodule
        failed = True
        try:
            self.check_run(subcommand)
            check_restarts()
            check_meeting_place(self.trainer.world_size)
            batch = data.batch_size // self.trainer.world_size if subcommand == "fit" else data.eval_batch_size
            with self._own_folder(), threads_for(batch):
                meet_again(self.trainer.strategy)
                super()._run_subcommand(subcommand)
            failed = False
        except Exception as error:
            self._end(error)
        except SystemExit as stopped:
            told = isinstance(stopped.code, int) and stopped.code > 128
            if told and self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.after_stop()
            raise
        finally:
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                wait_for_ranks(launcher.procs, failed)

    def check_run(self, subcommand: str) -> None:
        """Refuse what cannot be run, before anything is written, or any other rank is started.

        Raises:
            ValueError: If it cannot; names the option.
        """
        data = self.datamodule
        data.check_split(self.trainer.world_size)
        guard_restoring(self.trainer)
        if subcommand == "fit":
            self._get(self.config_init, "curriculum").check_stages(data.stages.names)
            self._check_monitors(data.stages.names)
            self._check_dirpath()

    def _end(self, error: Exception) -> NoReturn:
        """End in one line, unless it is an error of this program."""
        text = str(error)
        if isinstance(error, RanksDisagreeError) and not self.trainer.is_global_zero:
            sys.exit(1)  # all ranks know it: one of them says it
        if isinstance(error, NonFiniteError | CheckpointError | RanksDisagreeError):
            stop(error)
        if isinstance(error, TypeError) and re.match(r"\w+\.\w+: got ", text):  # what a class of one's own returned
            stop(error)
        if isinstance(error, ValueError) and names_option(text):
            self.parser.error(text, error)
        if self.model.compile_step:
            from torch._dynamo.exc import TorchDynamoException  # not needed otherwise, and takes a second

            if isinstance(error, TorchDynamoException):
                inner = getattr(error, "inner_exception", error)
                reason = one_line(str(inner).strip().partition("\n")[0] or type(inner).__name__)
                stop(error, f"model.compile_step: got true, which torch.compile cannot do here ({reason})")
        gone = re.search(RANK_IS_GONE, text)
        if self.trainer.world_size > 1 and gone and isinstance(error, RuntimeError):
            stop(error, f"step {self.model.batches_seen}: another rank is gone ({gone[0]}); its own output tells why")
        if "not used in producing the loss" in text:  # in this update, as they were in the first
            if not self.trainer.is_global_zero:
                sys.exit(USAGE_ERROR)  # all ranks know it
            got, expected = self.config[self.subcommand].trainer.strategy, "ddp_find_unused_parameters_true"
            why = "not every update uses the same weights of the agent"
            self.parser.error(f"trainer.strategy: got {got}, expected {expected}, since {why}", error)
        if "EADDRINUSE" in text:
            port = os.environ.get("MASTER_PORT")
            self.parser.error(f"MASTER_PORT: got {port}, expected a port that is free", error)
        if line := own_method(error):
            stop(error, line)
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            place = f" {error.filename}" if error.filename else ""
            stop(error, f"cannot write{place} ({error.strerror or error})")
        if not self.started.started:
            self._refuse(error)
        options = self.config[self.subcommand]
        if isinstance(error, ZeroDivisionError | ValueError) and (line := refused_value(error, options)):
            self.parser.error(line, error)  # a schedule, in its first step
        parts = (self.model.agent, self.model.env, self.model.reward, self.model.algorithm)
        own = own_classes(*parts, *self.trainer.callbacks)  # type: ignore[attr-defined]
        own += [f"tool {tool.name}" for tool in self.model.env.vocabulary.tools if tool not in TOOLS]
        if own:
            stop(error, f"{described(error)} in a run with {', '.join(own)}; {SHOW_TRACEBACK}=1 shows where")
        if isinstance(error, MisconfigurationException):
            stop(error)
        raise error

    def _check_monitors(self, stages: tuple[str, ...]) -> None:
        """Refuse what waits for a metric that there is not.

        Raises:
            ValueError: Names the option.
        """
        scheduler = self.config[self.subcommand].lr_scheduler
        if scheduler and scheduler.class_path.endswith("ReduceLROnPlateau"):
            check_monitor("lr_scheduler.monitor", scheduler.init_args.monitor, stages)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if (monitor := getattr(callback, "monitor", None)) is not None:
                check_monitor(f"{type(callback).__name__}.monitor", monitor, stages)

    def _check_dirpath(self) -> None:
        """Refuse to begin a run where another one keeps its checkpoint.

        Raises:
            ValueError: If there is one.
        """
        options = self.config_init[self.subcommand]
        folder = options.checkpoint.dirpath
        if folder and not options.ckpt_path and (Path(folder).expanduser() / LAST).exists():
            raise ValueError(
                f"checkpoint.dirpath: got {folder}, where another run has its {LAST}; expected another folder, or "
                "--ckpt_path=last to go on with that run"
            )

    def after_fit(self) -> None:
        """Print what comes out of the test, made here if it was not made to end the run."""
        if self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        results = self.solved.results
        logged = result_metrics("test", results)
        if not results:
            self._sample_unless_learned()
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)  # logs its results itself
            results, logged = self.model.last_results, {}
        trained = self.model.stages.names[: self.model.trained_stages]
        right = sum(one.correct for one in results if one.name in trained)
        tried = sum(one.tried for one in results if one.name in trained)
        logged[SOLVED] = right / tried if tried else 0.0
        for logger in self.trainer.loggers:
            logger.log_metrics(logged, self.model.batches_seen)
            logger.save()  # Lightning has finished with it
        if self.trainer.is_global_zero:
            print_report(self.model, results)

    def after_stop(self) -> None:
        """Say what a run that was told to stop has saved, and how to go on with it."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        (path,) = (callback.last_path for callback in callbacks if isinstance(callback, Checkpoint))
        folder = next(callback.folder for callback in callbacks if isinstance(callback, LogConfig) and callback.folder)
        words = shlex.join(["fit", f"--config={folder / 'config.yaml'}", f"--ckpt_path={path}"])
        print(f"Stopped; all is saved in {path}. To go on: python -m toolagent_pl {words}", flush=True)

    def after_test(self) -> None:
        """Print how many problems of each stage were tried, and were right."""
        if self.trainer.is_global_zero:
            stages = check_origin(self.checkpoint).get("stages")
            trained = stages if isinstance(stages, list) else None
            print_table(self.model, self.model.last_results, trained=trained)

    after_validate = after_test

    def _sample_unless_learned(self) -> None:
        """Test a sample where the agent has not learned its stages: with all problems, it takes longer than training.

        ``test`` tries all of them in any case, and so does going on with a run that is over.
        """
        if self.config_init[self.subcommand].ckpt_path and self.model.batches_seen == batches_seen(self.checkpoint):
            return
        metrics = self.trainer.callback_metrics
        names = self.model.stages.names[: self.model.trained_stages]
        if all(float(metrics.get(f"val/{name}_accuracy", 0)) >= LEARNED for name in names):
            return
        self.datamodule.most_tested = SAMPLE
        if self.trainer.is_global_zero:
            print(
                f"Not all stages are known to be learned: the test that follows tries at most {SAMPLE:,} problems of "
                "each; `test --ckpt_path last` tries all.",
                flush=True,
            )


def _can_hold_files(folder: Path) -> bool:
    """Whether a folder, or the nearest that it would be made in, can be written to."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, ValueError):  # a name that is too long, or no name at all
        return False


def _runs(root: str | None) -> Path:
    """Where all runs below a root directory are."""
    return Path(root or ".").expanduser() / LOG_NAME


def _newest(root: str | None, dirpath: str | None) -> str | None:
    """The newest ``last.ckpt`` of the runs below the root directory, or the one in ``dirpath``; None without one."""
    found = [Path(dirpath).expanduser() / LAST] if dirpath else _runs(root).glob(f"version_*/checkpoints/{LAST}")
    there = [path for path in found if path.is_file()]
    return str(max(there, key=lambda path: path.stat().st_mtime)) if there else None


def main(
    args: list[str] | None = None, cli: Callable[..., ToolAgentCLI] = ToolAgentCLI, **options: Any
) -> ToolAgentCLI:
    """Run a command.

    Args:
        args: Words of the command line; None for those that the process was started with.
        cli: What runs it.
        options: Of that, in place of the ones here.

    Returns:
        What has run it.
    """
    keep_freed_memory()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()  # advertisements
    )
    warnings.filterwarnings("ignore", message=".*configure_optimizers` will be overridden")  # as --optimizer says
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*Timer")  # max_time may change
    warnings.filterwarnings("ignore", message=".*dirpath has changed")  # each command logs into its own directory
    warnings.filterwarnings("ignore", message=".*infer the batch indices")  # there are none: problems are numbered
    # What is logged was averaged over ranks already, or is the same on all of them.
    warnings.filterwarnings("ignore", message=r".*self.log\('(val/|test/|train/stage).*sync_dist")
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated", category=FutureWarning)  # Lightning's
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # Lightning's, not ours
    with ending_with_parent():
        settings: dict[str, Any] = {
            "save_config_callback": LogConfig,
            "save_config_kwargs": {"save_to_log_dir": False},
            "seed_everything_default": 0,
            "parser_class": ArgumentParser,
            "trainer_defaults": {
                "max_epochs": 300,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
        }
        return cli(args, **settings | options)
