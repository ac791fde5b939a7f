"""Pictures in TensorBoard."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from toolagent_pl import Solver, figures
from toolagent_pl.agents import Reader
from toolagent_pl.callbacks import Pictures
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning import collect
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Problems
from toolagent_pl.problems.datamodule import ProblemDataModule

pytestmark = pytest.mark.usefixtures("pictures")
GENERAL = {"pictures/accuracy_by_operators", "pictures/accuracy_by_shape", "pictures/tools_by_step"}


def images(path, pictures, **options) -> dict[str, list[int]]:
    """At which batches each picture was drawn."""
    logger = TensorBoardLogger(path, name="", version="")
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[pictures], logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    module = ToolAgent(["T0"], unseen=["E2"], agent=Reader, env=CalculatorEnv(max_steps="auto"))
    trainer.fit(module, ProblemDataModule(["T0"], ["E2"], batch_size=8, batches_per_epoch=2, val_problems=8))
    events = EventAccumulator(str(path), size_guidance={"images": 0})
    events.Reload()
    drawn = {name: events.Images(name) for name in events.Tags()["images"]}
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for name in drawn for image in drawn[name])
    return {name: [image.step for image in drawn[name]] for name in drawn}


def test_the_agent_that_training_ends_with_is_drawn_on_the_stages_that_it_was_trained_on(tmp_path):
    assert images(tmp_path, Pictures(per_stage=5)) == {name: [6] for name in GENERAL | {"episodes/T0"}}


def test_now_and_then_on_the_way_too(tmp_path):
    assert images(tmp_path, Pictures(every_n_epochs=2, per_stage=3))["pictures/tools_by_step"] == [3, 6]


def test_a_trial_of_a_few_batches_draws_nothing(tmp_path):
    assert images(tmp_path, Pictures(), fast_dev_run=2) == {}


def test_an_episode_of_five_operators_can_be_read_on_a_card_of_tensorboard():
    """Some 300 pixels wide, as wide as each picture is shown there: letters are at least 10 pixels high."""
    solver = Solver.from_checkpoint()
    problems = Problems.from_expressions(["2*(3+4)-(5-(1+2)*3)"])
    drawn = figures.episode(collect(solver.agent, solver.env, problems), solver.env)
    shrunk = min(1, 300 / (drawn.get_size_inches()[0] * drawn.dpi))
    letters = [text for text in drawn.findobj(Text) if text.get_text()]
    assert {"MUL  14", "ANS  18", "next operand"} <= {text.get_text() for text in letters}
    assert min(text.get_fontsize() for text in letters) * drawn.dpi / 72 * shrunk > 10


@pytest.mark.parametrize("option", ["every_n_epochs", "per_stage"])
def test_numbers_must_be_positive(option):
    with pytest.raises(ValueError, match=f"pictures.{option}: got 0, expected at least 1"):
        Pictures(**{option: 0})
