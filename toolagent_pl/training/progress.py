"""How a run shows that it is alive: a progress bar in a terminal, a line for each epoch elsewhere."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn

from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.schedule import Annealing, CurriculumCallback

MESSAGES = logging.getLogger("lightning.pytorch.utilities.rank_zero")
SHOWN = {"reward": ("train/reward", "{:.3f}"), "tokens/s": ("throughput/tokens_per_second", "{:,.0f}")}
SHOWN |= {"episodes/s": ("throughput/episodes_per_second", "{:,.0f}"), "MFU": ("throughput/mfu", "{:.1%}")}
BAR = "{desc}  {remaining} left at most |{bar}|"


class ProgressBar(TQDMProgressBar):
    """The whole run as a bar: the stage that is learned, its accuracy at the last validation, and the time left.

    That is the time to the last epoch there may be, so it is "at most": runs end earlier, once all is learned.
    """

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin."""
        super().on_train_start(trainer)
        MESSAGES.addFilter(self._make_room)

    def on_train_end(self, *_: Any) -> None:
        """Leave the bar as it is."""
        MESSAGES.removeFilter(self._make_room)
        super().on_train_end()

    def _make_room(self, message: logging.LogRecord) -> bool:
        """Take the bar away, so that a message gets a line of its own; the bar comes back below."""
        self.train_progress_bar.clear()
        return True

    def init_train_tqdm(self) -> Tqdm:
        """One bar for all epochs."""
        module: Any = self.trainer.lightning_module
        return Tqdm(
            initial=module.batches_seen,
            disable=self.is_disabled,
            dynamic_ncols=True,
            miniters=1,  # batches differ in length: the clock alone says when to draw again
            smoothing=0.05,  # the speed of the last seconds: stages differ in it
            bar_format=BAR,
        )

    def init_validation_tqdm(self) -> Tqdm:
        """In a run it is over in a moment, and has no bar."""
        return Tqdm(disable=True) if self.trainer.state.fn == TrainerFn.FITTING else super().init_validation_tqdm()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Show the stage that comes next before the first batch is over, and go on by a batch after each."""
        self._show(trainer)

    on_train_batch_end = on_train_epoch_start  # type: ignore[assignment]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the accuracy."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._show(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to show."""

    def _show(self, trainer: Trainer) -> None:
        module: Any = trainer.lightning_module
        bar, metrics = self.train_progress_bar, trainer.callback_metrics
        epoch, epochs = trainer.num_training_batches, trainer.max_epochs or -1
        bar.total = int(epoch * epochs) if epochs > 0 and epoch != float("inf") else None
        names = list(module.env.stages)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set where Lightning connects them
            if isinstance(callback, CurriculumCallback):
                names = [module.env.stages[callback.stage]]
            elif isinstance(callback, Annealing) and callback.since is not None and callback.decay and bar.total:
                bar.total = min(bar.total, callback.since + int(-(-callback.batches // epoch) * epoch))
        known = {name: float(metrics.get(f"val/{name}_accuracy", "nan")) for name in names}
        name = min(known, key=lambda name: known[name])
        accuracy = "-" if math.isnan(known[name]) else f"{100 * known[name]:.1f}%"
        said = f"{name}  {accuracy} right  epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")
        if (speed := metrics.get("throughput/tokens_per_second")) is not None:
            said += f"  {float(speed) / 1000:,.0f}k tok/s"
        bar.set_description_str(said, refresh=False)
        bar.update(module.batches_seen - bar.n)


class EpochLines(Callback):
    """A line for each epoch, where a bar would fill a log file with its redrawings."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print it."""
        if trainer.is_global_zero and pl_module.epoch_is_whole:
            shown = ", ".join(f"{name} {value}" for name, value in _headline(trainer, pl_module).items())
            print(f"epoch {trainer.current_epoch}, step {pl_module.batches_seen}: {shown}", flush=True)


def _headline(trainer: Trainer, module: ToolAgent) -> dict[str, str]:
    """The stage, the mean reward, the speed, and the accuracy of each stage at the last validation."""
    items, metrics = {}, {name: float(value) for name, value in trainer.callback_metrics.items()}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set where Lightning connects them
        if isinstance(callback, CurriculumCallback):
            items["stage"] = module.env.stages[callback.stage]
    items |= {name: form.format(metrics[metric]) for name, (metric, form) in SHOWN.items() if metric in metrics}
    for stage in module.env.stages:
        if (accuracy := metrics.get(f"val/{stage}_accuracy")) is not None:
            reward = metrics[f"val/{stage}_reward"]
            shaped = abs(reward - accuracy) > 1e-6  # it tells something else
            items[stage] = f"{100 * accuracy:.1f}%" + (f" (reward {reward:.3f})" if shaped else "")
    return items
