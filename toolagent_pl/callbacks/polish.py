"""Explore, then polish: what changes once all stages are mastered."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from toolagent_pl.callbacks.curriculum import CurriculumCallback
from toolagent_pl.metrics import log_metrics
from toolagent_pl.module import ToolAgent

COST_ENDS_AT = 0.8  # share of the polishing after which a step costs only a quarter
LEAST_COST = 0.25
LEAST_LEARNING_RATE = 0.02


class Polish(Callback):
    """Lets an agent explore until it has mastered all stages, and polishes it then, for a number of batches.

    While it explores there is much entropy, and steps cost nothing: a cost from the start makes an agent stop trying.
    While it is polished, steps cost something, entropy is brought down to a tenth of its target, and the learning rate
    to a fiftieth, all of it slowly. The cost falls, too, to a quarter: late in training it would pay for shortcuts that
    fail now and then. It does not fall to nothing, since then calls that do nothing are repeated for ever.

    Args:
        at: Validation accuracy on every stage at which polishing begins, once the curriculum has come to its last
            stage; null for never.
        batches: How long it takes; training stops at the end of the epoch.
        ent_target: Entropy, in nats, that the weight of its bonus is steered to at first; null to leave it alone.
        step_cost: What each step costs at first.
        anneal: Let the learning rate, the entropy target and the cost fall; otherwise all stay as at first, and
            training goes on.

    Raises:
        ValueError: If a number is out of range.

    Attributes:
        since: Batches seen when polishing began; None while the agent explores.
        over: Whether it has come to its end.
    """

    def __init__(
        self,
        at: float | None = None,
        batches: int = 200,
        ent_target: float | None = None,
        step_cost: float = 0.0,
        anneal: bool = True,
    ) -> None:
        if at is not None and not 0 < at <= 1:
            raise ValueError(f"polish.at: got {at}, expected more than 0 and at most 1, or null")
        if batches < 1:
            raise ValueError(f"polish.batches: got {batches}, expected at least 1")
        for option, number in (("ent_target", ent_target), ("step_cost", step_cost)):
            if number is not None and not 0 <= number < float("inf"):
                raise ValueError(f"polish.{option}: got {number}, expected a number of at least 0")
        self.at, self.batches, self.ent_target, self.step_cost = at, batches, ent_target, step_cost
        self.anneal = anneal
        self.since: int | None = None
        self.over = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed when all was done has nothing left to do."""
        trainer.should_stop |= self.over

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Set what follows from how far the polishing is."""
        assert isinstance(pl_module, ToolAgent)
        if self.since is None:
            return
        left = 1.0
        if self.anneal:
            left = max(0.0, 1 - (pl_module.batches_seen - self.since) / self.batches)
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    rate = group.setdefault("lr_before_polish", group["lr"])  # saved with the optimizer
                    group["lr"] = rate * max(LEAST_LEARNING_RATE, left)
        pl_module.step_cost = self.step_cost * max(LEAST_COST, 1 - (1 - left) / COST_ENDS_AT)
        if self.ent_target is not None:
            pl_module.ent_target = self.ent_target * max(0.1, left)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or end. All ranks decide alike: validation is synchronised."""
        assert isinstance(pl_module, ToolAgent)
        if not pl_module.epoch_is_whole:
            return
        log_metrics(trainer, {"train/polishing": float(self.since is not None)}, pl_module.batches_seen - 1)
        if self.since is not None:
            if self.anneal and pl_module.batches_seen - self.since >= self.batches:
                rank_zero_info(f"Polished after {pl_module.batches_seen} batches.")
                self.over = trainer.should_stop = True
            return
        if self.at is None:
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set where Lightning connects them
        if not all(c.at_last_stage for c in callbacks if isinstance(c, CurriculumCallback)):
            return
        names = pl_module.stages.names[: pl_module.trained_stages]
        accuracies = [trainer.callback_metrics.get(f"val/{name}_accuracy") for name in names]
        if all(accuracy is not None and accuracy >= self.at for accuracy in accuracies):
            self.since = pl_module.batches_seen
            rank_zero_info(f"All stages are mastered after {self.since} batches: polishing.")

    def state_dict(self) -> dict[str, Any]:
        """When the polishing began, and whether it is over."""
        return {"since": self.since, "over": self.over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: If it is no such state.
        """
        since, over = state_dict["since"], state_dict["over"]
        if (since is not None and (type(since) is not int or since < 0)) or type(over) is not bool:
            raise ValueError(f"polishing is at {state_dict!r}")
        self.since, self.over = since, over
