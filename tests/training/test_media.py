"""Episodes as texts, as pictures and as JSON lines, of an environment that knows nothing of them."""

import json

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.counting import Counting, data, module, trainer
from toolagent_pl.training.media import Pictures, PredictionWriter, SampleEpisodes, sample_episodes

pytestmark = pytest.mark.usefixtures("pictures")


class Drawn(Counting):
    """Draws the length of the episodes of each stage."""

    def figures(self, rollouts):
        assert [set(rollout.problems.stage.tolist()) for rollout in rollouts] == [{0}, {1}]
        figures = {f"lengths/{name}": Figure() for name in self.stages}
        for figure, rollout in zip(figures.values(), rollouts, strict=True):
            figure.subplots().hist(rollout.steps)
        return figures


def shown(path, callback, env=None, **options) -> EventAccumulator:
    logger = TensorBoardLogger(path, name="", version="")
    env = env or Drawn(["low", "middle"], ["far"])
    fit = trainer(callback, logger=logger, **{"max_epochs": 3, **options})
    fit.fit(module(env), data(env, batches_per_epoch=2))
    events = EventAccumulator(str(path), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def images(path, *args, **options) -> dict[str, list[int]]:
    """At which batches each picture was drawn."""
    path.mkdir(exist_ok=True)
    events = shown(path, *args, **options)
    drawn = {name: events.Images(name) for name in events.Tags()["images"]}
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for name in drawn for image in drawn[name])
    return {name: [image.step for image in drawn[name]] for name in drawn}


def test_the_agent_is_drawn_on_its_stages_at_the_end_of_training_and_on_the_way(tmp_path):
    assert images(tmp_path / "one", Pictures(per_stage=5)) == {"lengths/low": [6], "lengths/middle": [6]}
    assert images(tmp_path / "two", Pictures(every_n_epochs=2, per_stage=3))["lengths/low"] == [3, 6]


def test_a_trial_of_a_few_batches_draws_nothing(tmp_path):
    assert images(tmp_path, Pictures(), fast_dev_run=2) == {}


def test_an_environment_without_pictures_of_its_own_has_those_of_all(tmp_path):
    drawn = images(tmp_path, Pictures(), Counting(["low"]), max_epochs=1)
    assert set(drawn) == {"pictures/accuracy_by_stage", "pictures/actions_by_step"}


def test_samples_are_shown_after_each_validation(tmp_path):
    events = shown(tmp_path, SampleEpisodes(2), max_epochs=2)
    texts = {name: events.Tensors(name) for name in events.Tags()["tensors"] if name.startswith("samples/")}
    assert set(texts) == {"samples/low/text_summary", "samples/middle/text_summary"}
    for found in texts.values():
        assert [one.step for one in found] == [1, 3]
        lines = found[0].tensor_proto.string_val[0].decode().splitlines()
        assert [line.split()[-1] in ("right", "wrong") for line in lines] == [True, True]
        assert [line.split()[0] for line in lines] == [
            line.split()[0] for line in found[1].tensor_proto.string_val[0].decode().splitlines()
        ]  # the same problems each time


def test_predictions_are_an_object_a_problem(tmp_path):
    agent, env = module(), Counting()
    writer = PredictionWriter(str(tmp_path / "episodes.jsonl"))
    trainer(writer).predict(agent, data(env, predict_problems=5, eval_batch_size=2), return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == [name for name in env.stages for _ in range(5)]
    with torch.no_grad():
        (first, *_) = sample_episodes(agent, 5)
    assert rows[:5] == [one.as_dict() for one in first]
