"""What the trainer of every run has, and which options of Lightning's trainer are not offered."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from toolagent_pl.training.monitors import RanksAgree, StopOnNonFinite, Throughput
from toolagent_pl.training.progress import EpochLines, ProgressBar

# Options that would do nothing here, or could not be kept exact.
NOT_OFFERED = {
    "accumulate_grad_batches": "model.accumulate does it here",
    **dict.fromkeys(("gradient_clip_val", "gradient_clip_algorithm"), "model.max_grad_norm does it here"),
    "limit_train_batches": "data.batches_per_epoch does it here",
    "limit_val_batches": "data.val_problems does it here",
    "limit_test_batches": "data.test_problems does it here",
    "limit_predict_batches": "data.predict_problems does it here",
    **dict.fromkeys(
        ("val_check_interval", "check_val_every_n_epoch"),
        "each epoch ends with a validation; data.batches_per_epoch says when",
    ),
    "overfit_batches": "problems are made afresh, and none comes twice",
    "reload_dataloaders_every_n_epochs": "problems are made afresh in any case",
    "use_distributed_sampler": "nothing is sampled: each rank makes its part of a batch",
    "enable_autolog_hparams": "what a run was started with is part of its results",
    "model_registry": "checkpoints stay in the directory of the run",
    "barebones": "a run without curves and checkpoints leaves nothing",
    "enable_checkpointing": "a run without last.ckpt could not go on",
    **dict.fromkeys(("min_epochs", "min_steps"), "that a run was told to stop before is not in its checkpoint"),
}
SILENCED = (
    ".*configure_optimizers` will be overridden",  # as --optimizer says
    ".*callbacks used to create the checkpoint.*Timer",  # max_time may change
    ".*dirpath has changed",  # each command logs into its own directory
    r".*self.log\('(val/|test/|train/stage).*sync_dist",  # averaged over ranks already
    ".*all_gather is deprecated",  # Lightning's, as the next one
    ".*LeafSpec.*",
    ".*args parameter is intended to run from within",
)


def silence() -> None:
    """Keep Lightning from warning of what is meant so here, and from advertising."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)


def options_of_run(given: Any, fits: bool) -> dict[str, Any]:
    """Options of the trainer of a run, which trains or not, that follow from those that were given, its attributes."""
    custom: Sequence[Callback] = given.callbacks or []
    callbacks = [*(custom if isinstance(custom, list) else [custom]), StopOnNonFinite(), RanksAgree()]
    options: dict[str, Any] = {"callbacks": callbacks}
    if fits:
        callbacks.append(Throughput())
    if given.enable_progress_bar is not False:
        terminal = sys.stderr.isatty()
        callbacks.append(ProgressBar() if terminal else EpochLines())
        options["enable_progress_bar"] = terminal
    if given.default_root_dir is not None:
        options["default_root_dir"] = os.fspath(Path(given.default_root_dir).expanduser())
    if given.logger in (None, True):
        options["logger"] = False  # it comes with the folder of the run
    if given.accelerator == "auto" and not torch.cuda.is_available():
        options["accelerator"] = "cpu"  # Lightning would take an Apple GPU, which has no numbers of 64 bits
    return options


def check_devices(trainer: Trainer) -> None:
    """Raise a ValueError for devices, and ways to share work, with which training is not what it says."""
    strategy = trainer.strategy
    # Private, for want of another: only its ranks are processes that run the command.
    forks = strategy.launcher is not None and not isinstance(strategy.launcher, _SubprocessScriptLauncher)
    if forks or not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ValueError(f"trainer.strategy: got {type(strategy).__name__}, expected auto or ddp, each rank a process")
    if strategy.root_device.type not in ("cpu", "cuda"):
        raise ValueError(f"trainer.accelerator: got {strategy.root_device.type}, expected auto, cpu or gpu")
