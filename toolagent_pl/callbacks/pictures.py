"""Pictures in TensorBoard, W&B or MLflow: accuracies by kind of problem, tools by step, an episode of each stage."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Stages
from toolagent_pl.problems.stream import FixedProblems
from toolagent_pl.randomness import Purpose
from toolagent_pl.trackers import log_figure, media_loggers

MOST_PROBLEMS = 10_000  # of each stage: more take longer, and show nothing else


class Pictures(Callback):
    """Draws what the agent does at the end of training, and now and then on the way.

    Args:
        every_n_epochs: Epochs between two sets of pictures; null for only at the end.
        per_stage: Problems of each stage that is trained on.

    Raises:
        ValueError: If a number is not positive, or there are more problems than a picture can show.
    """

    def __init__(self, every_n_epochs: int | None = None, per_stage: int = 200) -> None:
        for option, value in (("every_n_epochs", every_n_epochs), ("per_stage", per_stage)):
            if value is not None and value < 1:
                raise ValueError(f"pictures.{option}: got {value}, expected at least 1")
        if per_stage > MOST_PROBLEMS:
            raise ValueError(f"pictures.per_stage: got {per_stage}, expected at most {MOST_PROBLEMS}")
        self.every_n_epochs, self.per_stage = every_n_epochs, per_stage

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw if it is time."""
        assert isinstance(pl_module, ToolAgent)
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and pl_module.epoch_is_whole:
            self._draw(trainer, pl_module, pl_module.batches_seen - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the agent that training ended with."""
        assert isinstance(pl_module, ToolAgent)
        self._draw(trainer, pl_module, pl_module.batches_seen)

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: ToolAgent, step: int) -> None:
        loggers = media_loggers(trainer)
        if not loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from toolagent_pl import figures  # matplotlib takes half a second to load

        stages = Stages(module.stages.stages[: module.trained_stages], module.stages.vocabulary.tools)
        problems = FixedProblems(stages, Purpose.PREDICT, self.per_stage, self.per_stage, device=module.device)
        rollouts = [module.act(batch) for batch in problems]
        drawn = {
            "pictures/accuracy_by_operators": figures.accuracy_by_operators(rollouts),
            "pictures/accuracy_by_shape": figures.accuracy_by_shape(rollouts),
            "pictures/tools_by_step": figures.tools_by_step(rollouts, module.env),
        }
        for name, rollout in zip(stages.names, rollouts, strict=True):
            drawn[f"episodes/{name}"] = figures.episode(rollout, module.env)
        for logger in loggers:
            for name, figure in drawn.items():
                log_figure(logger, name, figure, step)
