"""Sample episodes: as text in TensorBoard, and as JSON lines."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger

from toolagent_pl.learning.rollout import Rollout
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Problems
from toolagent_pl.problems.stream import FixedProblems
from toolagent_pl.trajectories import Trajectory, trajectories


def describe(module: ToolAgent, episodes: Rollout) -> list[Trajectory]:
    """The episodes of a module, one by one."""
    rewards = module.reward(module.machine, episodes.final, episodes.tokens)
    return trajectories(module.ladder, module.machine, episodes, rewards)


@torch.no_grad()
def sample_trajectories(module: ToolAgent, per_stage: int) -> Iterator[list[Trajectory]]:
    """Greedy episodes on the same few problems each time, stage after stage."""
    for problems in FixedProblems(module.ladder, per_stage, batch_size=per_stage, device=module.device):
        yield describe(module, module.act(problems))


class SampleTrajectories(Callback):
    """Shows in TensorBoard, as text, what the agent does on the same few problems after each validation.

    Args:
        per_stage: Problems of each stage.

    Raises:
        ValueError: If there is none.
    """

    def __init__(self, per_stage: int = 5) -> None:
        if per_stage < 1:
            raise ValueError(f"samples.per_stage: got {per_stage}, expected at least 1")
        self.per_stage = per_stage

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the text."""
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or not trainer.is_global_zero or not writers:
            return
        assert isinstance(pl_module, ToolAgent)
        for sample in sample_trajectories(pl_module, self.per_stage):
            text = "\n".join(f"    {trajectory}" for trajectory in sample)  # indented: a code block in Markdown
            for writer in writers:
                writer.add_text(f"samples/{sample[0].stage}", text, trainer.global_step)


class PredictionWriter(BasePredictionWriter):
    """Writes predicted episodes as JSON lines, one object a problem.

    Args:
        path: File to write. Without it, ``<checkpoint>.predictions.jsonl`` beside the checkpoint, or
            ``predictions.jsonl`` in the working directory where there is none.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path

    def target(self, trainer: Trainer) -> Path:
        """The file to write; each rank of several writes its own."""
        if self.path:
            path = Path(self.path)
        elif trainer.ckpt_path:
            path = Path(trainer.ckpt_path).with_suffix(".predictions.jsonl")
        else:
            path = Path("predictions.jsonl")
        return path if trainer.world_size == 1 else path.with_suffix(f".rank{trainer.global_rank}{path.suffix}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty file."""
        self.target(trainer).write_text("")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Rollout,
        batch_indices: Sequence[int] | None,
        batch: Problems,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the episodes of a batch."""
        assert isinstance(pl_module, ToolAgent)
        with self.target(trainer).open("a") as file:
            for trajectory in describe(pl_module, prediction):
                file.write(json.dumps(trajectory.as_dict()) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the predictions are."""
        print(f"Predictions: {self.target(trainer)}")
