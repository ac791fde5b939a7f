"""The command line of Lightning: ``python -m toolagent_pl fit | validate | test | predict``."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import toolagent_pl.envs.countdown  # so that its classes are known by their names
import toolagent_pl.envs.tutorial  # noqa: F401  # as are these
from toolagent_pl.cli.errors import in_one_message, own_error, prefixed, show_custom, stop
from toolagent_pl.cli.options import by_name, check_dropped, default_options, default_run, given, has_default_env
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
FAILED = 1


class ArgumentParser(LightningArgumentParser):
    """Says in one line what is wrong, instead of printing all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

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
        stop(in_one_message(message, by_name(getattr(ex, "subcommand_parser", self).get_defaults())))


class ToolAgentCLI(LightningCLI):
    """LightningCLI with an environment, this project's callbacks, and a report at the end of ``fit``."""

    def __init__(self, args: list[str] | None = None, **kwargs: Any) -> None:
        self.words = list(sys.argv[1:] if args is None else args)
        self.options: dict[str, Any] = {}
        failed = True
        try:
            with ExitStack() as self.during_run:
                self.given = given(self.words)
                super().__init__(ToolAgent, ProblemDataModule, args=self.words, **kwargs)
            failed = False
        except RanksDisagreeError as error:
            stop(error, FAILED) if self.trainer.is_global_zero else sys.exit(FAILED)  # all ranks know it: one says it
        except (NonFiniteError, CheckpointError) as error:
            stop(error, FAILED)
        except RuntimeError as error:
            if "by peer" not in str(error):  # gloo's, on the ranks that are left
                raise
            stop(f"step {self.model.batches_seen}: another rank is gone ({str(error).splitlines()[0]})", FAILED)
        except OSError as error:
            if error.filename is None or "trainer" not in vars(self):
                raise
            stop(f"cannot write {error.filename} ({error.strerror})", FAILED)
        except (ValueError, TypeError, MisconfigurationException) as error:  # about options, ours and Lightning's
            own = own_error(error)
            if own is None and not isinstance(error, MisconfigurationException):
                raise
            show_custom(own or error)
            stop(prefixed(own, self.options, OWNERS) if own else error)
        except SystemExit as stopped:
            if isinstance(stopped.code, int) and stopped.code > 128:
                self.after_stop()
            raise
        finally:
            if "trainer" in vars(self):
                wait_for_ranks(self.trainer, failed)

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
        if has_default_env(self.given):
            parser.set_defaults(default_options())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the checkpoint before anything is built."""
        words, named = self._with_configuration(), self.given
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

    def _with_configuration(self) -> list[str]:
        """Words of ``validate``, ``test`` or ``predict`` with the checkpoint's configuration, if they have none."""
        place = ("ckpt_path", "trainer.default_root_dir", "checkpoint.dirpath")
        path = runs.resolved(*map(self.given.get, place))
        command, *words = self.words or [""]
        kept = runs.configuration_for(path) if path and command != "fit" and "config" not in self.given else {}
        return [command, f"--config={json.dumps(kept)}", *words] if kept else self.words

    def after_instantiate_classes(self) -> None:
        """Have the options in its checkpoints."""
        self.model.settings = self.settings

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what every run has."""
        options = self.config_init[self.subcommand].trainer
        try:
            return super().instantiate_trainer(**options_of_run(options, self.subcommand == "fit"), **kwargs)
        except Exception as error:  # Lightning raises any kind
            show_custom(error)
            stop(f"trainer: {error}")

    def check_run(self) -> None:
        """Refuse what cannot be run, by a ValueError, before anything is written or any other rank is started."""
        check_devices(self.trainer)
        self.datamodule.check_split(self.trainer.world_size)
        if self.subcommand == "fit":
            runs.callback_of(self.trainer, CurriculumCallback).check(self.model)
            runs.callback_of(self.trainer, StopWhenSolved).check(self.model)

    def before_fit(self) -> None:
        """Take the folder of the run, and threads for its batches, and have the ranks meet."""
        self.check_run()
        data, trainer, options = self.datamodule, self.trainer, self.config_init[self.subcommand]
        fits = self.subcommand == "fit"
        if fits and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # other commands write into no folder
            curves = options.trainer.logger in (None, True)
            batches = self.header.get("batches_seen")
            self.during_run.enter_context(runs.own_folder(trainer, options.ckpt_path, batches, curves))
        batch = data.batch_size // trainer.world_size if fits else data.eval_batch_size
        self.during_run.enter_context(threads_for(batch))
        meet()

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        """Test, and print what comes of it."""
        if self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trained = self.model.batches_seen > self.header.get("batches_seen", 0)
        finish(self.trainer, self.model, self.datamodule, trained)

    def after_stop(self) -> None:
        """Say what a run that was told to stop has saved, and how to go on with it."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print_how_to_go_on(self.trainer)

    def after_test(self) -> None:
        """Print how many problems of each stage were tried, and were right."""
        if self.trainer.is_global_zero:
            print_table(self.model, self.model.last_results, self.header["stages"])

    after_validate = after_test


def main(
    args: list[str] | None = None, cli: Callable[..., ToolAgentCLI] = ToolAgentCLI, **options: Any
) -> ToolAgentCLI:
    """Run a command, by what ``cli`` makes of its words and these options, and return that.

    Args:
        args: Words of the command line; None for those that the process was started with.
    """
    keep_freed_memory()
    silence()
    settings: dict[str, Any] = {
        "save_config_callback": runs.LogConfig,
        "save_config_kwargs": {"save_to_log_dir": False},
        "seed_everything_default": 0,
        "parser_class": ArgumentParser,
        "trainer_defaults": default_run()["trainer"],
        "load_from_checkpoint_support": False,
    }
    with ending_with_parent():
        return cli(args, **settings | options)
