"""The curriculum: which stages the problems of an epoch come from."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from toolagent_pl.metrics import log_metrics
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.datamodule import ProblemDataModule

LEAST_PRIORITY = 0.05  # of a stage that is mastered, or out of reach; the highest is 0.25 more


class CurriculumCallback(Callback):
    """Goes through a list of stages, by the clock, by mastery, or by whichever comes first.

    Args:
        stages: Names of the data's stages, in the order in which to train on them, each entry as long as the others;
            null for all of the data's in their order. An entry may be a list: the first of its stages is trained on,
            the others join those that came before.
        every_n_epochs: Go on to the next entry after this many epochs; null for never.
        advance_at: Go on to the next other stage once validation accuracy on this one is at least this;
            null for never.
        review: Share of problems from the stages that came before, in equal parts.
        window: Train on the stages of the last so many entries in equal parts, in place of ``review``; null for
            ``review``. With ``advance_at`` it is the window of difficulty of Zeng et al., "RLVE", 2025.
        prioritize: Train on all of these stages, each the more the more there is to learn from it: in proportion to
            ``p (1 - p) + 0.05`` for a validation accuracy p, the variance of an episode's outcome. Source: Rutherford
            et al., "No Regrets", NeurIPS 2024 (learnability), with a floor that, like the staleness of
            Jiang et al., "Prioritized Level Replay", ICML 2021, lets no stage be forgotten.
        ent_targets: Entropy, in nats, that the weight of its bonus is steered to, for each entry; null to leave it to
            the algorithm.

    Raises:
        ValueError: If there is no way to go on, or a number is out of range.
    """

    def __init__(
        self,
        stages: Sequence[str | Sequence[str]] | None = None,
        every_n_epochs: int | None = None,
        advance_at: float | None = None,
        review: float = 0.0,
        ent_targets: Sequence[float] | None = None,
        window: int | None = None,
        prioritize: bool = False,
    ) -> None:
        if stages is not None and (not stages or not all(stages)):
            raise ValueError(f"curriculum.stages: got {stages}, expected names of stages, or null for all")
        if every_n_epochs is None and advance_at is None:
            raise ValueError("curriculum: got neither every_n_epochs nor advance_at, expected at least one of them")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"curriculum.every_n_epochs: got {every_n_epochs}, expected at least 1, or null")
        if advance_at is not None and not 0 < advance_at <= 1:
            raise ValueError(f"curriculum.advance_at: got {advance_at}, expected more than 0 and at most 1, or null")
        if not 0 <= review < 1:
            raise ValueError(f"curriculum.review: got {review}, expected at least 0 and less than 1")
        if window is not None and window < 1:
            raise ValueError(f"curriculum.window: got {window}, expected at least 1, or null")
        if ent_targets is not None and not all(0 <= target < float("inf") for target in ent_targets):
            raise ValueError(f"curriculum.ent_targets: got {list(ent_targets)}, expected numbers of at least 0")
        self.names = (
            None if stages is None else [[entry] if isinstance(entry, str) else list(entry) for entry in stages]
        )
        self.every_n_epochs, self.advance_at, self.review = every_n_epochs, advance_at, review
        self.ent_targets, self.window, self.prioritize = ent_targets, window, prioritize
        self.accuracies: list[float] = []  # of the data's stages at the last validation, where priorities follow them
        self.entries: list[list[int]] = []  # positions in the data's list of stages
        self.entry = 0
        self.epochs = 0  # finished in this entry

    @property
    def stage(self) -> int:
        """The current stage, as a position in the data's list of stages."""
        return self.entries[self.entry][0]

    @property
    def at_last_stage(self) -> bool:
        """Whether there is nothing to go on to."""
        return self.entry + 1 == len(self.entries)

    def mixture(self, count: int) -> list[float]:
        """Share of each of the data's stages."""
        first = max(0, self.entry + 1 - self.window) if self.window else 0
        reached = {stage for entry in self.entries[first : self.entry + 1] for stage in entry}
        shares = [0.0] * count
        for stage in reached:
            if self.prioritize:
                accuracy = self.accuracies[stage] if len(self.accuracies) == count else 0.0
                shares[stage] = accuracy * (1 - accuracy) + LEAST_PRIORITY
            elif self.window:
                shares[stage] = 1.0
            elif stage != self.stage:
                shares[stage] = self.review / (len(reached) - 1)
        if self.window or self.prioritize:
            return [share / sum(shares) for share in shares]
        shares[self.stage] = 1.0 - sum(shares)
        return shares

    def check_stages(self, names: Sequence[str]) -> None:
        """Refuse stages that the data does not have.

        Args:
            names: Of the stages in the data.

        Raises:
            ValueError: If one is not among them, or there is another number of entropy targets.
        """
        wanted = self.names or [[name] for name in names]
        for name in (name for entry in wanted for name in entry):
            if name not in names:
                raise ValueError(f"curriculum.stages: got {name}, expected some of data.stages, {', '.join(names)}")
        if self.ent_targets is not None and len(self.ent_targets) != len(wanted):
            got = list(self.ent_targets)
            raise ValueError(f"curriculum.ent_targets: got {got}, expected {len(wanted)} numbers, one for each entry")
        self.entries = [[list(names).index(name) for name in entry] for entry in wanted]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the stages before the run; other commands than ``fit`` have no use for them."""
        if stage == "fit":
            self.check_stages(_data(trainer).stages.names)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start where the state says, which may come from a checkpoint. Later, workers would have begun.

        Raises:
            ValueError: If the list is now too short for it.
        """
        if self.entry >= len(self.entries):
            raise ValueError(
                f"curriculum.stages: got {len(self.entries)} entries, expected more than {self.entry}, where the "
                "checkpoint is"
            )
        self._apply(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the stage, and go on if it is time. All ranks decide alike: validation is synchronised."""
        assert isinstance(pl_module, ToolAgent)
        data = _data(trainer)
        if not pl_module.epoch_is_whole:
            return
        log_metrics(trainer, {"train/stage": float(self.stage)}, pl_module.batches_seen - 1)
        self.epochs += 1
        found = [trainer.callback_metrics.get(f"val/{name}_accuracy") for name in data.stages.names]
        accuracy = found[self.stage]
        if self.prioritize:
            self.accuracies = [0.0 if one is None else float(one) for one in found]
        if self.advance_at is not None and accuracy is not None and accuracy >= self.advance_at:
            others = [i for i in range(self.entry, len(self.entries)) if self.entries[i][0] != self.stage]
            if others:
                self.entry, self.epochs = others[0], 0
        elif self.every_n_epochs is not None and self.epochs >= self.every_n_epochs and not self.at_last_stage:
            self.entry, self.epochs = self.entry + 1, 0
        self._apply(trainer, pl_module)

    def _apply(self, trainer: Trainer, module: LightningModule) -> None:
        """Set what follows from the state."""
        assert isinstance(module, ToolAgent)
        data = _data(trainer)
        data.mixture = self.mixture(len(data.stages))
        if self.ent_targets is not None:
            module.ent_target = self.ent_targets[self.entry]

    def stage_name(self, trainer: Trainer) -> str:
        """Name of the current stage."""
        return _data(trainer).stages.names[self.stage]

    def state_dict(self) -> dict[str, Any]:
        """Where in the list the run is."""
        state = {"entry": self.entry, "epochs": self.epochs}
        return {**state, "accuracies": self.accuracies} if self.prioritize else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: If it is no such state.
        """
        counts = [state_dict["entry"], state_dict["epochs"]]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"the curriculum is at {state_dict!r}")
        accuracies = state_dict.get("accuracies", [])
        if type(accuracies) is not list or not all(type(one) is float and 0 <= one <= 1 for one in accuracies):
            raise ValueError(f"the curriculum is at {state_dict!r}")
        self.entry, self.epochs = counts
        self.accuracies = accuracies


def _data(trainer: Trainer) -> ProblemDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, not declared
    if not isinstance(data, ProblemDataModule):
        raise ValueError(f"datamodule: got {type(data).__name__}, expected ProblemDataModule for a curriculum")
    return data
