"""The command line of Lightning: ``python -m toolagent_pl fit | validate | test | predict``."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import toolagent_pl.envs.countdown  # so that its classes are known by their names
import toolagent_pl.envs.tutorial  # noqa: F401  # as are these
from toolagent_pl.cli import options as given_options
from toolagent_pl.cli.errors import USAGE_ERROR, in_one_message, own_error, prefixed, show_custom, stop
from toolagent_pl.cli.options import by_name, check_dropped
from toolagent_pl.cli.report import finish, print_how_to_go_on, print_table
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.files import read_tensors
from toolagent_pl.training import runs
from toolagent_pl.training.checkpoint_callback import Checkpoint
from toolagent_pl.training.checkpoints import CheckpointError, check_settings, restored_header, settings_of
from toolagent_pl.training.data import ProblemDataModule
from toolagent_pl.training.media import Pictures, PredictionWriter, SampleEpisodes
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.monitors import NonFiniteError, RanksDisagreeError
from toolagent_pl.training.ranks import ending_with_parent, keep_freed_memory, meet, threads_for, wait_for_ranks
from toolagent_pl.training.schedule import Annealing, CurriculumCallback, StopWhenSolved
from toolagent_pl.training.trainer import NOT_OFFERED, check_devices, options_of_run, silence

CALLBACKS = {
    "curriculum": CurriculumCallback,
    "annealing": Annealing,
    "solved": StopWhenSolved,
    "checkpoint": Checkpoint,
    "samples": SampleEpisodes,
    "pictures": Pictures,
    "predictions": PredictionWriter,
}
OWNERS = {kind.__name__: group for group, kind in CALLBACKS.items()}
OWNERS |= {"ToolAgent": "model", "ProblemDataModule": "data"}


class ArgumentParser(LightningArgumentParser):
    """Says in one line what is wrong, instead of printing all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": given_options.PARSER_MODE, "allow_abbrev": False, **kwargs})

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, **kwargs: Any) -> Any:
        """Leave out what is not offered."""
        if nested_key == "trainer":
            kwargs["skip"] = {*kwargs.get("skip", ()), *NOT_OFFERED}
        return super().add_class_arguments(theclass, nested_key, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the line and exit with code 2."""
        if not self.exit_on_error:  # a parser of a nested class: the one around it wants the exception
            super().error(message, ex)
        show_custom(ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [option[2:] for action in parser._actions for option in action.option_strings]
        stop(in_one_message(message, known), USAGE_ERROR)


class ToolAgentCLI(LightningCLI):
    """LightningCLI with an environment, this project's callbacks, and a report at the end of ``fit``.

    Args:
        args: Words of the command line; None for those that the process was started with.
        kwargs: Those of LightningCLI.
    """

    def __init__(self, args: list[str] | None = None, **kwargs: Any) -> None:
        self.words = list(sys.argv[1:] if args is None else args)
        try:
            self.given = given_options.given(self.words)
        except Exception as error:  # a file of anything
            stop(own_error(error) or f"config: cannot be read\n{error}", USAGE_ERROR)
        super().__init__(ToolAgent, ProblemDataModule, args=self.words, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Those of Lightning that there are here; if one of them is run, no options are made for the others."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self.words[:1] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the environment and the callbacks that have options, and tie together what must agree."""
        parser.add_subclass_arguments(Env, "env", help="The environment, a class, and its options.")
        for group, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, group)
        for group in ("model", "data"):
            parser.link_arguments("env", f"{group}.env", apply_on="instantiate")
            parser.link_arguments("seed_everything", f"{group}.seed", int)
        if given_options.named_env(self.given).rpartition(".")[2] == given_options.DEFAULT_ENV.rpartition(".")[2]:
            parser.set_defaults(given_options.default_options())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint before anything is built."""
        words, named = self._with_configuration(self.words), self.given
        self.config = parser.parse_args(words)
        options = self.config[self.config.subcommand]
        fits = self.config.subcommand == "fit"
        # The default curriculum is one for the default stages: others are trained on in their order.
        if "env.stages" in named and "curriculum.stages" not in named:
            options.curriculum.stages = None
        if {"env.stages", "curriculum.stages"} & set(named) and "curriculum.ent_targets" not in named:
            options.curriculum.ent_targets = None
        if "env.stages" in named and "env.unseen" not in named and not fits and "unseen" in options.env.init_args:
            options.env.init_args.unseen = []  # whoever names the stages to try means these and no others
        if "verbose" in options and "verbose" not in named:
            options.verbose = False  # Lightning's table has no counts: there is one that has
        self.options, self.header = by_name(options), {}
        try:
            self.settings = settings_of(self.options, options.trainer.precision)
            check_dropped(words, self.options)
            if isinstance(seed := options.seed_everything, bool) or not 0 <= seed < 2**32:
                raise ValueError(f"seed_everything: got {seed}, expected a number from 0 to {2**32 - 1}")
            if options.get("lr_scheduler") and not options.optimizer:
                raise ValueError(f"lr_scheduler: got {options.lr_scheduler.class_path}, expected --optimizer beside it")
            place = options.trainer.default_root_dir, options.checkpoint.dirpath
            options.ckpt_path = runs.found_checkpoint(options.ckpt_path, *place, fits)
            if options.ckpt_path:
                self.header = restored_header(read_tensors(options.ckpt_path, mmap=True))
                check_settings(self.header["settings"] if fits else {}, self.settings)
        except (ValueError, OSError) as error:
            parser.error(str(error), error)

    def _with_configuration(self, words: list[str]) -> list[str]:
        """Words of ``validate``, ``test`` or ``predict`` with the checkpoint's configuration, if they have none."""
        place = ("ckpt_path", "trainer.default_root_dir", "checkpoint.dirpath")
        path = runs.resolved(*map(self.given.get, place))
        kept = runs.configuration_for(path) if path and words[0] != "fit" and "config" not in self.given else {}
        return [words[0], f"--config={json.dumps(kept)}", *words[1:]] if kept else words

    def instantiate_classes(self) -> None:
        """Build everything."""
        with self._in_a_line():
            super().instantiate_classes()
        self.model.settings = self.settings

    @contextmanager
    def _in_a_line(self) -> Iterator[None]:
        """Errors about options, ours and Lightning's, end the command in a line; others keep their traceback."""
        try:
            yield
        except (ValueError, TypeError, MisconfigurationException) as error:
            own = own_error(error)
            if own is None and not isinstance(error, MisconfigurationException):
                raise
            show_custom(own or error)
            stop(prefixed(own, self.options, OWNERS) if own else error, USAGE_ERROR)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what every run has."""
        options = self.config_init[self.subcommand].trainer
        try:
            return super().instantiate_trainer(**options_of_run(options, self.subcommand == "fit"), **kwargs)
        except Exception as error:  # Lightning raises any kind
            show_custom(error)
            stop(f"trainer: {error}", USAGE_ERROR)

    def check_run(self, subcommand: str) -> None:
        """Refuse what cannot be run, before anything is written, or any other rank is started.

        Raises:
            ValueError: If it cannot; names the option.
        """
        check_devices(self.trainer)
        self.datamodule.check_split(self.trainer.world_size)
        if subcommand == "fit":
            runs.callback_of(self.trainer, CurriculumCallback).check(self.model)
            runs.callback_of(self.trainer, StopWhenSolved).check(self.model)

    # The one place around all that a command does: LightningCLI has hooks before and after it, and none around it.
    def _run_subcommand(self, subcommand: str) -> None:
        data, trainer, options = self.datamodule, self.trainer, self.config_init[subcommand]
        failed = True
        try:
            with self._in_a_line():
                self.check_run(subcommand)
                batch = data.batch_size // trainer.world_size if subcommand == "fit" else data.eval_batch_size
                folder: AbstractContextManager[None] = nullcontext()  # other commands write into none
                if subcommand == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                    curves = options.trainer.logger in (None, True)
                    folder = runs.own_folder(trainer, options.ckpt_path, self.header.get("batches_seen"), curves)
                with folder, threads_for(batch):
                    meet()
                    super()._run_subcommand(subcommand)
            failed = False
        except RanksDisagreeError as error:
            stop(error) if trainer.is_global_zero else sys.exit(1)  # all ranks know it: one of them says it
        except (NonFiniteError, CheckpointError) as error:
            stop(error)
        except RuntimeError as error:  # gloo's, on the ranks that are left
            if trainer.world_size == 1 or "by peer" not in str(error):
                raise
            stop(f"step {self.model.batches_seen}: another rank is gone ({str(error).splitlines()[0]})")
        except OSError as error:
            if error.filename is None:
                raise
            stop(f"cannot write {error.filename} ({error.strerror})")
        except SystemExit as stopped:
            told = isinstance(stopped.code, int) and stopped.code > 128
            if told and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.after_stop()
            raise
        finally:
            wait_for_ranks(trainer, failed)

    def after_fit(self) -> None:
        """Test, and print what comes of it."""
        if self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trained = self.model.batches_seen > self.header.get("batches_seen", 0)
        finish(self.trainer, self.model, self.datamodule, trained)

    def after_stop(self) -> None:
        """Say what a run that was told to stop has saved, and how to go on with it."""
        print_how_to_go_on(runs.callback_of(self.trainer, Checkpoint), runs.callback_of(self.trainer, runs.LogConfig))

    def after_test(self) -> None:
        """Print how many problems of each stage were tried, and were right."""
        if self.trainer.is_global_zero:
            print_table(self.model, self.model.last_results, self.header["stages"])

    after_validate = after_test


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
    silence()
    with ending_with_parent():
        settings: dict[str, Any] = {
            "save_config_callback": runs.LogConfig,
            "save_config_kwargs": {"save_to_log_dir": False},
            "seed_everything_default": 0,
            "parser_class": ArgumentParser,
            "trainer_defaults": given_options.default_run()["trainer"],
            "load_from_checkpoint_support": False,
        }
        return cli(args, **settings | options)
