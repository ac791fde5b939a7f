"""Checkpoints to resume from: every few updates, at the end, and when the run is told to stop."""

import signal
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from torch import Tensor, distributed

from toolagent_pl.rl.checks import check_range
from toolagent_pl.training.checkpoints import OWN_LINE, AtomicCheckpointIO, check_moments

LAST = "last.ckpt"
STOP_SIGNALS = [signal.Signals[name] for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class Checkpoint(LightningCheckpoint):
    """Keeps ``last.ckpt``, from which a run goes on as if it had never stopped.

    It is written every few batches and at the end of training; where that falls into the middle of an epoch, it holds
    the state after the last batch, since an epoch that was cut short has not ended. On SIGTERM, SIGUSR1 (sent by SLURM
    before it takes a machine away) and Ctrl-C it is written after the batch under way, and the process ends with
    128 plus the number of the signal. A second signal ends it at once. Of several ranks it is enough if one
    gets the signal: all of them stop after the same batch, one or two later.

    Args:
        every_n_batches: Training batches between two checkpoints, 1 or more.
        dirpath: Where to write, in place of ``checkpoints`` in the directory of the run.
    """

    def __init__(self, every_n_batches: int = 50, dirpath: str | None = None) -> None:
        check_range(at_least=1, every_n_batches=every_n_batches)
        self.every_n_batches = every_n_batches
        self.dirpath = None if dirpath is None else Path(dirpath).expanduser()
        self.last_path: Path | None = None
        self._unsaved = False  # whether anything was done since the last checkpoint
        self._signal = 0
        self._ranks: distributed.ProcessGroup | None = None
        self._asked: tuple[Tensor, distributed.Work] | None = None  # the ranks: has any of them got a signal?

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on a place, and see to it that files are whole or not there."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the default
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        folder = self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        self.last_path = Path(trainer.strategy.broadcast(str(folder))) / LAST

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say in a line that a checkpoint cannot be restored: what a file of the right format holds can be anything."""
        functions = [frame.name for frame in traceback.extract_tb(exception.__traceback__)]
        restoring = any(name.startswith(("resume_start", "restore_")) for name in functions)
        if restoring and isinstance(exception, Exception) and not OWN_LINE.match(str(exception)):
            reason = " ".join(f"{type(exception).__name__}: {exception}".split())
            expected = f"expected a checkpoint of such a run; it cannot be restored ({reason})"
            raise ValueError(f"ckpt_path: got {trainer.ckpt_path}, {expected}") from exception

    def save_now(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, unless this is a trial of a few batches."""
        assert self.last_path is not None
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.last_path, weights_only=False)
            self._unsaved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals. Lightning puts back the handlers that were there when the run ends."""
        check_moments(trainer.optimizers)
        epoch: Any = trainer.fit_loop.epoch_progress.current
        if epoch.ready == epoch.processed:
            # With `max_steps`, Lightning takes an epoch that has ended for one to go on with, and ends it once more.
            trainer.fit_loop.epoch_loop.restarting = False
        if trainer.world_size > 1:
            self._ranks = distributed.new_group(backend="gloo")
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Something is being done that is not saved."""
        self._unsaved = True

    on_validation_start = on_train_batch_start

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Note the signal: inside an update there is no state to save."""
        self._signal = number
        signal.signal(number, signal.SIG_DFL)

    def _ask(self) -> None:
        """Let the ranks find out whether any of them was told to stop: all must stop after the same batch.

        That is done in the background, and over the CPU: none waits longer than the update itself makes it wait.
        """
        if self._ranks is not None:
            mine = torch.tensor(self._signal)
            self._asked = mine, distributed.all_reduce(mine, distributed.ReduceOp.MAX, self._ranks, async_op=True)

    def _told(self) -> int:
        """The signal that this rank got, or any of several had got when they asked; 0 for none."""
        if self._ranks is None or self._asked is None:
            return self._signal if self._ranks is None else 0
        (answer, work), self._asked = self._asked, None
        work.wait()
        return int(answer)

    def _stop_if_told(self, trainer: Trainer) -> None:
        if told := self._told():
            self.save_now(trainer)
            raise SystemExit(128 + told)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Save if it is time, or if the run is told to stop, or comes to an end before the epoch does.

        ``StopIteration`` ends it in the middle of an epoch: Lightning would validate first, and so add points to the
        curves that a run has not that is not stopped here.
        """
        limit = trainer.max_steps
        cut = not pl_module.epoch_is_whole and (trainer.should_stop or 0 <= limit <= trainer.global_step)
        due = pl_module.batches_seen % self.every_n_batches == 0
        if cut or (due and not pl_module.epoch_is_whole):
            self.save_now(trainer)
        self._stop_if_told(trainer)
        if cut:
            raise StopIteration
        self._ask()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save if that was due at the last batch, after the hooks of the module and of all other callbacks.

        Saved before, a curve would have points twice after a kill between the validation and the end of the epoch.
        """
        if pl_module.epoch_is_whole and pl_module.batches_seen % self.every_n_batches == 0:
            self.save_now(trainer)
            self._unsaved = True  # that the epoch has ended

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop if told; the resumed run repeats the validation. Several ranks stop in the next update.

        They cannot ask each other here, since they need not have equally many batches.
        """
        if self._ranks is None:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what training ended with, and stop if told."""
        if self._unsaved and pl_module.epoch_is_whole:
            self.save_now(trainer)
        told = self._told()
        if not told:
            self._ask()
            told = self._told()
        if told:
            raise SystemExit(128 + told)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See to it that what is due, or not finished, is done after resuming, and what has ended is not done again.

        Lightning takes a validation for made when it is due at the very update that is saved, and with it drops the end
        of the epoch, at which the curriculum moves on; and an epoch for unfinished while its last hooks run.
        """
        state, validation = checkpoint["loops"]["fit_loop"], "epoch_loop.val_loop.batch_progress"
        if trainer.validating:
            progress = state[validation]
            begins = not progress["is_last_batch"] or progress["current"]["completed"] < progress["current"]["ready"]
        else:
            # As Lightning decides it, which keeps that to itself.
            epochs, batches = trainer.check_val_every_n_epoch or 1, trainer.val_check_batch or float("inf")
            due = (trainer.current_epoch + 1) % epochs == 0 and (trainer.fit_loop.batch_idx + 1) % batches == 0
            progress = state["epoch_loop.batch_progress"]["current"]
            in_batch = trainer.training and progress["completed"] < progress["processed"]
            begins = trainer.enable_validation and due and in_batch
            ended = state["epoch_progress"]["current"]["ready"] == state["epoch_progress"]["current"]["processed"]
            for name in ["epoch_loop.batch_progress"] * begins + ["epoch_progress"] * ended:
                for count in state[name]["total"], state[name]["current"]:
                    count["completed"] = count["processed"]
        if begins:
            fresh = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            state[validation] = {"total": dict(fresh), "current": dict(fresh), "is_last_batch": False}
