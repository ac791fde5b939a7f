"""Texts and pictures for the trackers that have a place for them; numbers go to all of them through Lightning."""

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def media_loggers(trainer: Trainer) -> list[Logger]:
    """The loggers that take texts and pictures; none on ranks other than the first, which must not write."""
    kinds = TensorBoardLogger, WandbLogger, MLFlowLogger
    return [logger for logger in trainer.loggers if isinstance(logger, kinds)] if trainer.is_global_zero else []


def log_lines(logger: Logger, name: str, lines: list[str], step: int) -> None:
    """Lines of text: a text in TensorBoard, a table in W&B; in MLflow a file, in which the newest ones stand."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, "\n".join(f"    {line}" for line in lines), step)  # Markdown's block of code
    elif isinstance(logger, WandbLogger):
        logger.log_text(name, columns=["line"], data=[[line] for line in lines], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, "\n".join([*lines, ""]), f"{name}.txt")


def log_figure(logger: Logger, name: str, figure: "Figure", step: int) -> None:
    """A picture; in MLflow a file for each step."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [figure], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{name}/{step:06}.png")
