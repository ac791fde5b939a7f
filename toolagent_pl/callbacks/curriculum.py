"""The curriculum: which stages the problems of an epoch come from."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from toolagent_pl.problems.datamodule import ProblemDataModule


class CurriculumCallback(Callback):
    """Goes through a list of stages, by the clock, by mastery, or by whichever comes first.

    Args:
        stages: Positions in the data's list of stages, in the order in which to train on them; a stage that is
            listed twice gets twice the time.
        every_n_epochs: Go on to the next entry after this many epochs; None for never.
        advance_at: Go on to the next other stage once validation accuracy on this one is at least this;
            None for never.
        review: Share of problems from the stages that came before, in equal parts.

    Raises:
        ValueError: If there is no way to go on, or a number is out of range.
    """

    def __init__(
        self,
        stages: Sequence[int] = (0, 1, 2),
        every_n_epochs: int | None = None,
        advance_at: float | None = None,
        review: float = 0.0,
    ) -> None:
        if not stages or min(stages) < 0:
            raise ValueError(f"curriculum.stages: got {list(stages)}, expected positions from 0 in data.stages")
        if every_n_epochs is None and advance_at is None:
            raise ValueError("curriculum: got neither every_n_epochs nor advance_at, expected at least one of them")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"curriculum.every_n_epochs: got {every_n_epochs}, expected at least 1, or null")
        if advance_at is not None and not 0 < advance_at <= 1:
            raise ValueError(f"curriculum.advance_at: got {advance_at}, expected more than 0 and at most 1, or null")
        if not 0 <= review < 1:
            raise ValueError(f"curriculum.review: got {review}, expected at least 0 and less than 1")
        self.stages = list(stages)
        self.every_n_epochs, self.advance_at, self.review = every_n_epochs, advance_at, review
        self.entry = 0  # position in ``stages``
        self.epochs = 0  # finished in this entry

    @property
    def stage(self) -> int:
        """The current stage, as a position in the data's list of stages."""
        return self.stages[self.entry]

    def stage_name(self, trainer: Trainer) -> str:
        """Name of the current stage."""
        return self._data(trainer).ladder.names[self.stage]

    def mixture(self, ladder_length: int) -> list[float]:
        """Share of each stage of the ladder."""
        earlier = set(self.stages[: self.entry]) - {self.stage}
        shares = [0.0] * ladder_length
        for stage in earlier:
            shares[stage] = self.review / len(earlier)
        shares[self.stage] = 1.0 - sum(shares)
        return shares

    def check_ladder(self, names: Sequence[str]) -> None:
        """Refuse stages that the data does not have.

        Args:
            names: Of the stages in the data.

        Raises:
            ValueError: If a position is not one of theirs.
        """
        if max(self.stages) >= len(names):
            raise ValueError(
                f"curriculum.stages: got {self.stages}, expected positions from 0 to {len(names) - 1} "
                f"in data.stages, {list(names)}"
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the stages before the run; other commands than ``fit`` have no use for them."""
        if stage != "fit":
            return
        self.check_ladder(self._data(trainer).ladder.names)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start where the state says, which may come from a checkpoint. Later, workers would have begun."""
        self._apply(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the stage, and go on if it is time. All ranks decide alike: validation is synchronised."""
        pl_module.log("train/stage", float(self.stage))
        self.epochs += 1
        accuracy = trainer.callback_metrics.get(f"val/{self.stage_name(trainer)}_accuracy")
        if self.advance_at is not None and accuracy is not None and accuracy >= self.advance_at:
            others = [i for i in range(self.entry, len(self.stages)) if self.stages[i] != self.stage]
            if others:
                self.entry, self.epochs = others[0], 0
        elif (
            self.every_n_epochs is not None and self.epochs >= self.every_n_epochs and self.entry + 1 < len(self.stages)
        ):
            self.entry, self.epochs = self.entry + 1, 0
        self._apply(trainer)

    def _apply(self, trainer: Trainer) -> None:
        data = self._data(trainer)
        data.mixture = self.mixture(len(data.ladder))

    @staticmethod
    def _data(trainer: Trainer) -> ProblemDataModule:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, not declared
        if not isinstance(data, ProblemDataModule):
            raise ValueError(f"datamodule: got {type(data).__name__}, expected ProblemDataModule for a curriculum")
        return data

    def state_dict(self) -> dict[str, Any]:
        """Where in the list the run is."""
        return {"entry": self.entry, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: If the list is now too short for it.
        """
        entry, epochs = state_dict["entry"], state_dict["epochs"]
        if type(entry) is not int or type(epochs) is not int:
            raise ValueError(f"the curriculum is at {entry!r} since {epochs!r} epochs")
        if not 0 <= entry < len(self.stages):
            raise ValueError(
                f"curriculum.stages: got {self.stages}, expected more than {entry} of them, "
                "as in the checkpoint to resume from"
            )
        self.entry, self.epochs = entry, epochs
