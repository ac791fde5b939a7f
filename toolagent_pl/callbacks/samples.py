"""Sample episodes: as text in TensorBoard, W&B or MLflow, and as JSON lines."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from toolagent_pl.agents import Rollout
from toolagent_pl.episodes import Episode, episodes
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Problems
from toolagent_pl.problems.stream import FixedProblems
from toolagent_pl.randomness import Purpose
from toolagent_pl.saved import check_new
from toolagent_pl.trackers import log_lines, media_loggers

MOST_SAMPLES = 1000  # of each stage, after each validation


@torch.no_grad()
def sample_episodes(module: ToolAgent, per_stage: int) -> Iterator[list[Episode]]:
    """Greedy episodes on the same few problems each time, stage after stage."""
    count = per_stage * len(module.stages)
    problems = FixedProblems(module.stages, Purpose.PREDICT, per_stage, count, device=module.device, mixed=True)
    (batch,) = problems
    found = episodes(module.act(batch), module.env, module.stages.names)
    for first in range(0, count, per_stage):
        yield found[first : first + per_stage]


class SampleEpisodes(Callback):
    """Shows as text, in TensorBoard, W&B or MLflow, what the agent does on the same few problems after each validation.

    Args:
        per_stage: Problems of each stage.

    Raises:
        ValueError: If there is none, or there are more than anyone reads.
    """

    def __init__(self, per_stage: int = 5) -> None:
        if not 1 <= per_stage <= MOST_SAMPLES:
            raise ValueError(f"samples.per_stage: got {per_stage}, expected at least 1 and at most {MOST_SAMPLES}")
        self.per_stage = per_stage

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the text."""
        loggers = media_loggers(trainer)
        if trainer.sanity_checking or not loggers:
            return
        assert isinstance(pl_module, ToolAgent)
        for sample in sample_episodes(pl_module, self.per_stage):
            for logger in loggers:
                log_lines(logger, f"samples/{sample[0].stage}", [*map(str, sample)], pl_module.batches_seen - 1)


class PredictionWriter(BasePredictionWriter):
    """Writes predicted episodes as JSON lines, one object a problem.

    Args:
        path: File to write. Without it, ``<checkpoint>.predictions.jsonl`` beside the checkpoint, or
            ``predictions.jsonl`` in the working directory where there is none.
        overwrite: Replace the file if it is there already, as is done with the one beside the checkpoint.
    """

    def __init__(self, path: str | None = None, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.path, self.overwrite = path, overwrite

    def target(self, trainer: Trainer) -> Path:
        """The file to write; each rank of several writes its own."""
        if self.path:
            path = Path(self.path).expanduser()
        elif trainer.ckpt_path:
            path = Path(trainer.ckpt_path).with_suffix(".predictions.jsonl")
        else:
            path = Path("predictions.jsonl")
        return path if trainer.world_size == 1 else path.with_suffix(f".rank{trainer.global_rank}{path.suffix}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty file.

        Raises:
            ValueError: If it would replace one that may be something else.
        """
        file = self.target(trainer)
        if not self.overwrite and (self.path or not trainer.ckpt_path):
            check_new("predictions.path", [file], "--predictions.overwrite=true")
        file.write_text("")

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
        path = self.target(trainer)
        try:
            with path.open("a") as file:
                for episode in episodes(prediction, pl_module.env, pl_module.stages.names):
                    file.write(json.dumps(episode.as_dict()) + "\n")
        except OSError as error:  # of a full disk, which does not say which file it is about
            raise OSError(error.errno, error.strerror, str(path)) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the predictions are."""
        print(f"Predictions: {self.target(trainer)}")
