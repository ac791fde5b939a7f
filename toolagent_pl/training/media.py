"""Episodes for people: as texts and pictures in TensorBoard, W&B or MLflow, and as JSON lines.

Numbers go to all trackers through Lightning; these three have a place for texts and pictures, too.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import Episode
from toolagent_pl.rl.files import check_new
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.stream import FixedProblems, Sample


def _problems(module: ToolAgent, per_stage: int, mixed: bool) -> FixedProblems:
    """The same few problems each time, of each stage that is trained on."""
    stages = len(module.env.stages)
    sizes = per_stage, stages * per_stage
    return FixedProblems(module.env, stages, Sample.PREDICT, *sizes, device=module.device, mixed=mixed)


@torch.no_grad()
def sample_episodes(module: ToolAgent, per_stage: int) -> list[Sequence[Episode]]:
    """Greedy episodes on the same few problems each time, stage after stage."""
    (batch,) = _problems(module, per_stage, mixed=True)  # the steps of one rollout, and not of one for each stage
    found = module.env.episodes(module.act(batch))
    return [found[first : first + per_stage] for first in range(0, len(found), per_stage)]


def _loggers(trainer: Trainer) -> list[Logger]:
    """The loggers that take texts and pictures; none on ranks other than the first, which must not write."""
    kinds = TensorBoardLogger, WandbLogger, MLFlowLogger
    return [logger for logger in trainer.loggers if isinstance(logger, kinds)] if trainer.is_global_zero else []


def _show(logger: Any, name: str, shown: Any, step: int) -> None:
    """Show lines of text or a picture. In MLflow they are files: of lines the newest, of pictures one for each step."""
    text = isinstance(shown, list)
    if isinstance(logger, TensorBoardLogger) and text:
        logger.experiment.add_text(name, "\n".join(f"    {line}" for line in shown), step)  # Markdown's block of code
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, shown, step)
    elif isinstance(logger, WandbLogger) and text:
        logger.log_text(name, columns=["line"], data=[[line] for line in shown], step=step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [shown], step)
    elif text:
        logger.experiment.log_text(logger.run_id, "\n".join([*shown, ""]), f"{name}.txt")
    else:
        logger.experiment.log_figure(logger.run_id, shown, f"{name}/{step:06}.png")


class SampleEpisodes(Callback):
    """Shows as text what the agent does on the same few problems after each validation.

    Args:
        per_stage: Problems of each stage that is trained on, from 1 to 1000.
    """

    def __init__(self, per_stage: int = 5) -> None:
        check_range(at_least=1, at_most=1000, per_stage=per_stage)
        self.per_stage = per_stage

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the text."""
        loggers = [] if trainer.sanity_checking else _loggers(trainer)
        for sample in sample_episodes(pl_module, self.per_stage) if loggers else ():
            for logger in loggers:
                _show(logger, f"samples/{sample[0].stage}", [*map(str, sample)], pl_module.batches_seen - 1)


class Pictures(Callback):
    """Draws what the agent does at the end of training, and now and then on the way, as its environment shows it.

    Args:
        every_n_epochs: Epochs between two sets of pictures; null for only at the end.
        per_stage: Problems of each stage that is trained on, from 1 to 10,000.
    """

    def __init__(self, every_n_epochs: int | None = None, per_stage: int = 200) -> None:
        check_range(at_least=1, every_n_epochs=every_n_epochs)
        check_range(at_least=1, at_most=10_000, per_stage=per_stage)
        self.every_n_epochs, self.per_stage = every_n_epochs, per_stage

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw if it is time."""
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and pl_module.epoch_is_whole:
            self._draw(trainer, pl_module, pl_module.batches_seen - 1)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the agent that training ended with."""
        self._draw(trainer, pl_module, pl_module.batches_seen)

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: ToolAgent, step: int) -> None:
        if loggers := _loggers(trainer):
            rollouts = [module.act(batch) for batch in _problems(module, self.per_stage, mixed=False)]
            for name, figure in module.env.figures(rollouts).items():
                for logger in loggers:
                    _show(logger, name, figure, step)


class PredictionWriter(Callback):
    """Writes predicted episodes as JSON lines, one object a problem; the file is there once it is whole.

    Args:
        path: File to write. Without it, ``<checkpoint>.predictions.jsonl`` beside the checkpoint, which is replaced, or
            ``predictions.jsonl`` in the working directory where there is no checkpoint.
        overwrite: Replace a file of that name.
    """

    def __init__(self, path: str | None = None, overwrite: bool = False) -> None:
        self.path, self.overwrite = path, overwrite

    def _file_of(self, trainer: Trainer) -> Path:
        if self.path:
            path = Path(self.path).expanduser()
        elif trainer.ckpt_path:
            path = Path(trainer.ckpt_path).with_suffix(".predictions.jsonl")
        else:
            path = Path("predictions.jsonl")
        several = trainer.world_size > 1  # each rank writes its own
        return path.with_suffix(f".rank{trainer.global_rank}{path.suffix}") if several else path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin beside the file: commands that run at the same time do not mix their lines."""
        target = self._target = self._file_of(trainer)
        if target.exists() and not target.is_file():
            raise ValueError(f"path: got {target}, expected a file: a device or a folder is not replaced")
        if not self.overwrite and (self.path or not trainer.ckpt_path):
            check_new("path", [target], "--predictions.overwrite=true")
        self._unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        self._file = self._unfinished.open("w")

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Append the episodes of a batch."""
        try:
            self._file.writelines(f"{json.dumps(one.as_dict())}\n" for one in pl_module.env.episodes(outputs))
            self._file.flush()
        except OSError as error:  # of a full disk, which does not say which file it is about
            raise OSError(error.errno, error.strerror, str(self._unfinished)) from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the file in its place, and say where that is."""
        self._file.close()
        self._unfinished.replace(self._target)
        print(f"Predictions: {self._target}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        if hasattr(self, "_unfinished"):
            with suppress(OSError):  # what a full disk has no room for
                self._file.close()
            self._unfinished.unlink(missing_ok=True)
