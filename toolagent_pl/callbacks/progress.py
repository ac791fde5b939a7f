"""How a run shows that it is alive: a progress bar in a terminal, a line for each epoch elsewhere."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from toolagent_pl.callbacks.curriculum import CurriculumCallback
from toolagent_pl.module import ToolAgent


def headline(trainer: Trainer) -> dict[str, str]:
    """The stage, the mean reward, the speed, and the accuracy of each stage at the last validation or test."""
    items = {}
    metrics = trainer.callback_metrics
    if trainer.training or trainer.validating:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set where Lightning connects them
            if isinstance(callback, CurriculumCallback):
                items["stage"] = callback.stage_name(trainer)
        if "train/reward" in metrics:
            items["reward"] = f"{float(metrics['train/reward']):.3f}"
        if "throughput/tokens_per_second" in metrics:
            items["tokens/s"] = f"{float(metrics['throughput/tokens_per_second']):,.0f}"
            items["episodes/s"] = f"{float(metrics['throughput/episodes_per_second']):,.0f}"
            items["MFU"] = f"{100 * float(metrics['throughput/mfu']):.1f}%"
    for name, value in metrics.items():
        prefix, _, rest = name.partition("/")
        if prefix in ("val", "test") and rest.endswith("_accuracy"):
            stage = rest.removesuffix("_accuracy")
            items[stage] = f"{100 * float(value):.1f}%"
            reward = metrics.get(f"{prefix}/{stage}_reward")
            if reward is not None and abs(reward - value) > 1e-6:  # shaped: it tells something else
                items[stage] += f" (reward {float(reward):.3f})"
    return items


class ProgressBar(TQDMProgressBar):
    """A bar with the headline behind it.

    Args:
        refresh_rate: Batches between two updates of the bar.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        return {**headline(trainer)}


class EpochLines(Callback):
    """A line for each epoch, where a bar would fill a log file with its redrawings."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it."""
        assert isinstance(pl_module, ToolAgent)
        if trainer.is_global_zero and pl_module.epoch_is_whole:
            shown = ", ".join(f"{name} {value}" for name, value in headline(trainer).items())
            print(f"epoch {trainer.current_epoch}, step {pl_module.batches_seen}: {shown}", flush=True)
