"""Which stages an epoch is trained on, how the agent is annealed, and when it has learned enough."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from tests.training.counting import Counting, Measured, data, module, trainer
from toolagent_pl.rl.a2c import A2C
from toolagent_pl.training import ToolAgent
from toolagent_pl.training.schedule import Annealing, CurriculumCallback, StopWhenSolved


class StagesSeen(CurriculumCallback):
    """Writes down the mixture and the target that each epoch is trained on, and pretends validation accuracies."""

    def __init__(self, accuracies: dict[str, float], **options) -> None:
        super().__init__(**{"advance_at": None, "rehearsal": 0.0, **options})
        self.pretended = accuracies
        self.seen_mixtures: list[list[float]] = []
        self.seen_targets: list[float | None] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seen_mixtures.append(trainer.datamodule.mixture)
        self.seen_targets.append(pl_module.ent_target)
        for name, accuracy in self.pretended.items():
            trainer.callback_metrics[f"val/{name}_accuracy"] = torch.tensor(accuracy)
        super().on_train_epoch_end(trainer, pl_module)


def run(epochs: int, accuracies: dict[str, float], **options) -> StagesSeen:
    callback = StagesSeen(accuracies, **{"advance_at": None, "rehearsal": 0.0, **options})
    trainer(callback, max_epochs=epochs).fit(module(), datamodule=data())
    return callback


def seen(epochs: int, accuracies: dict[str, float], **options) -> list[list[float]]:
    return run(epochs, accuracies, **options).seen_mixtures


def only(*stages: int) -> list[list[float]]:
    return [[float(i == stage) for i in range(3)] for stage in stages]


def test_by_the_clock_as_in_the_tutorial():
    stages = ["low", "low", "low", "middle", "middle", "high"]
    assert seen(8, {}, every_n_epochs=1, stages=stages) == only(0, 0, 0, 1, 1, 2, 2, 2)
    assert seen(3, {}, every_n_epochs=1, stages=["high", "low"]) == only(2, 0, 0)


def test_by_mastery_of_the_current_stage():
    assert seen(4, {"low": 0.995, "middle": 0.98}, advance_at=0.99) == only(0, 1, 1, 1)
    stages = ["low", "low", "low", "middle", "high"]
    assert seen(4, {"low": 0.99, "middle": 0.99}, advance_at=0.99, stages=stages) == only(0, 1, 2, 2)


def test_by_whichever_comes_first():
    assert seen(5, {"low": 1.0, "middle": 0.0}, advance_at=0.99, every_n_epochs=2) == only(0, 1, 1, 2, 2)


def with_stages(stages: list | None, phase: int, **options) -> CurriculumCallback:
    callback = CurriculumCallback(stages, **{"every_n_epochs": 1, "advance_at": None, "rehearsal": 0.0, **options})
    callback.check(module())
    callback.load_state_dict({"phase": phase, "epochs": 0, "accuracies": []})
    return callback


@pytest.mark.parametrize(
    ("stages", "phase", "window", "mixture"),
    [
        (None, 0, None, [1, 0, 0]),
        (None, 2, None, [0.15, 0.15, 0.7]),  # earlier stages stay in the mix
        (["low", "middle", "low"], 2, None, [0.7, 0.3, 0]),
        ([["high", "low"], "middle"], 0, None, [0.3, 0, 0.7]),  # one that comes with another is rehearsed from there on
        ([["high", "low"], "middle"], 1, None, [0.15, 0.7, 0.15]),
        (None, 0, 2, [1, 0, 0]),  # a window holds the last phases in equal parts
        (None, 1, 2, [0.5, 0.5, 0]),
        (None, 2, 2, [0, 0.5, 0.5]),
        ([["high", "low", "middle"]], 0, 1, [1 / 3] * 3),
    ],
)
def test_the_mixture_follows_from_the_phase(stages, phase, window, mixture):
    assert with_stages(stages, phase, window=window, rehearsal=0.3).mixture(3) == pytest.approx(mixture)


def test_priorities_follow_what_there_is_to_learn():
    """An accuracy of a half says most, 0 and 1 say nothing; no stage is left out."""
    options = {"every_n_epochs": 9, "stages": [["high", "low", "middle"]], "prioritize": True}
    mixtures = seen(3, {"low": 1.0, "middle": 0.5, "high": 0.0}, **options)
    assert mixtures[0] == pytest.approx([1 / 3] * 3)
    assert mixtures[1] == pytest.approx([0.05 / 0.4, 0.3 / 0.4, 0.05 / 0.4])
    assert mixtures[2] == pytest.approx(mixtures[1])


def test_priorities_are_those_of_the_checkpoint():
    saved, resumed, new = (with_stages([["high", "low", "middle"]], 0, prioritize=True) for _ in range(3))
    saved.accuracies = [1.0, 0.5, 0.0]
    resumed.load_state_dict(saved.state_dict())
    assert resumed.mixture(3) == saved.mixture(3) != new.mixture(3)


def test_each_phase_has_its_entropy():
    callback = run(4, {}, every_n_epochs=1, ent_targets=[1.5, 1.0, 0.5])
    assert callback.seen_targets == [1.5, 1.0, 0.5, 0.5]
    assert run(1, {}, every_n_epochs=1).seen_targets == [None]


def test_an_epoch_counts_only_if_it_was_whole():
    """Lightning ends one that was cut short, too."""
    agent, problems = module(), data(batches_per_epoch=10)
    callback = with_stages(None, 0)
    agent._trainer = SimpleNamespace(
        datamodule=problems, callback_metrics={}, num_training_batches=10, loggers=[], current_epoch=0
    )
    phases = []
    for agent.batches_seen in (7, 10, 15, 20):
        callback.on_train_epoch_end(agent._trainer, agent)
        phases.append(callback.phase)
    assert phases == [0, 1, 1, 2]
    assert callback.state_dict() == {"phase": 2, "epochs": 0, "accuracies": [0.0] * 3}
    assert problems.mixture == [0, 0, 1]


class Seen(Callback):
    """Writes down what each batch is trained with, and pretends validation accuracies."""

    def __init__(self, accuracies: list[float]) -> None:
        self.accuracies = accuracies
        self.batches: list[tuple[float, float | None, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches.append((pl_module.step_cost, pl_module.ent_target, rate))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        for name in ("low", "middle"):
            accuracy = self.accuracies[trainer.current_epoch]
            trainer.callback_metrics[f"val/{name}_accuracy"] = torch.tensor(accuracy)


def anneal(accuracies: list[float], annealing: Annealing, stages: tuple[str, ...] = ("low",)) -> Seen:
    seen, env = Seen(accuracies), Counting(["low", "middle"])
    agent = module(env, algorithm=A2C(ent_target=1.0), learning_rate=0.01)
    callbacks = [seen, CurriculumCallback(stages, every_n_epochs=1), annealing]
    trainer(*callbacks, max_epochs=len(accuracies)).fit(agent, data(env, batches_per_epoch=2))
    return seen


def test_annealing_begins_when_all_stages_are_mastered():
    costs = [cost for cost, _, _ in anneal([0.8, 0.9, 0.5], Annealing(0.9, step_cost=0.2, decay=False)).batches]
    assert costs == [0, 0, 0, 0, 0.2, 0.2]


def test_annealing_does_not_begin_before_the_last_phase():
    annealing = Annealing(0.9, step_cost=0.2, decay=False)
    costs = [cost for cost, _, _ in anneal([1.0, 1.0, 1.0], annealing, ("low", "middle", "low")).batches]
    assert costs == [0, 0, 0, 0, 0.2, 0.2]
    assert annealing.since == 4


def test_without_decay_all_stays_and_training_goes_on():
    batches = anneal([1.0] * 4, Annealing(0.9, batches=1, ent_target=0.5, step_cost=0.2, decay=False)).batches
    assert batches == [(0, 1.0, 0.01)] * 2 + [(0.2, 0.5, 0.01)] * 6


def test_learning_rate_entropy_and_cost_fall_and_training_stops():
    annealing = Annealing(0.9, batches=5, ent_target=0.5, step_cost=0.2)
    batches = anneal([1.0] * 9, annealing).batches
    assert batches[:2] == [(0, 1.0, 0.01)] * 2
    costs, targets, rates = zip(*batches[2:], strict=True)  # 5 batches, and one more to the end of the epoch
    assert costs == pytest.approx([0.2 * share for share in (1, 0.75, 0.5, 0.25, 0.25, 0.25)])
    assert targets == pytest.approx([0.5 * share for share in (1, 0.8, 0.6, 0.4, 0.2, 0.1)])
    assert rates == pytest.approx([0.01 * share for share in (1, 0.8, 0.6, 0.4, 0.2, 0.02)])
    assert annealing.over


def test_only_the_annealing_learns_from_a_share_of_the_episodes():
    learned = []

    class Learned(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            learned.append(pl_module.downsample)

    env = Counting(["low"])
    callbacks = [Learned(), Seen([1.0] * 2), CurriculumCallback(), Annealing(0.9, batches=4, downsample=0.5)]
    trainer(*callbacks, max_epochs=2).fit(module(env), data(env, batches_per_epoch=2))
    assert learned == [1.0, 1.0, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"^downsample: got 0.75, expected algorithm.minibatches, 1, over"):
        trainer(Annealing(0.9, downsample=0.75)).fit(module(env, algorithm=A2C()), data(env))
    odd = data(env, batches_per_epoch=2, batch_size=10)
    with pytest.raises(ValueError, match=r"^batch_size: got 10 problems .* annealing.downsample, 4"):
        trainer(Annealing(0.9, downsample=0.25)).fit(module(env, algorithm=A2C()), odd)


def test_the_agent_ends_with_the_average_of_its_weights_that_was_asked_for():
    seen = []

    class Weights(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            seen.append([weight.detach().clone() for weight in pl_module.agent.parameters()])

    env = Counting(["low"])
    agent, annealing = module(env, learning_rate=0.1), Annealing(0.9, batches=4, average=0.75)
    callbacks = [Weights(), Seen([1.0] * 3), CurriculumCallback(), annealing]
    trainer(*callbacks, max_epochs=3).fit(agent, data(env, batches_per_epoch=2))
    assert annealing.over
    for i, weight in enumerate(agent.agent.parameters()):
        average = seen[2][i]
        for later in seen[3:]:
            average = 0.75 * average + 0.25 * later[i]
        torch.testing.assert_close(weight.detach(), average)
        assert not weight.equal(seen[-1][i])


def test_the_entropy_is_left_alone_where_that_is_asked_for():
    assert {target for _, target, _ in anneal([1.0] * 3, Annealing(0.9, step_cost=0.2)).batches} == {1.0}


def test_the_weight_of_the_entropy_falls_where_no_target_steers_it():
    weights = []

    class Weights(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            weights.append(float(pl_module.ent_coef))

    env, annealing = Counting(["low"]), Annealing(0.9, batches=4)
    callbacks = [Weights(), Seen([1.0] * 4), CurriculumCallback(), annealing]
    agent = module(env, algorithm=A2C(ent_coef=0.5))
    trainer(*callbacks, max_epochs=4).fit(agent, data(env, batches_per_epoch=2))
    assert weights == pytest.approx([0.5 * share for share in (1, 1, 1, 0.75, 0.5, 0.25)])
    assert annealing.over


class LuckySample(ToolAgent):
    """Validates on problems that happen to come out right."""

    def results(self):
        results = super().results()
        right = sum(one.tried for one in results) < 10
        return [one._replace(correct=one.tried, plan_length=1.0) for one in results] if right else results


class Solved(ToolAgent):
    """Is right about everything, some of it in a roundabout way."""

    plan_length = 1.0

    def results(self):
        return [one._replace(correct=one.tried, plan_length=self.plan_length) for one in super().results()]


class Roundabout(Solved):
    plan_length = 1.5


def until_solved(path, kind, solved, env=None, **options) -> int:
    """Batches that it took."""
    one, agent = trainer(solved, default_root_dir=path, **options), module(env or Measured(), kind)
    checkpoint = path / "last.ckpt" if (path / "last.ckpt").exists() else None
    one.fit(agent, data(agent.env, val_problems=1), ckpt_path=checkpoint)
    one.save_checkpoint(path / "last.ckpt")
    return agent.batches_seen


def test_a_sample_without_mistakes_does_not_end_a_run(tmp_path):
    solved = StopWhenSolved()
    assert until_solved(tmp_path, LuckySample, solved, max_epochs=2) == 2
    assert (solved.solved, solved.results) == (False, [])


def test_plans_that_are_too_long_do_not_end_a_run_and_those_that_are_short_enough_do(tmp_path):
    assert until_solved(tmp_path, Roundabout, StopWhenSolved(plan_length=1.4), max_epochs=2) == 2
    (tmp_path / "last.ckpt").unlink()
    solved = StopWhenSolved(plan_length=1.5)
    assert until_solved(tmp_path, Roundabout, solved, Measured(unseen=["far"]), max_epochs=2) == 1
    assert [(one.name, one.tried) for one in solved.results] == [("low", 3), ("middle", 6), ("high", 9), ("far", 12)]


def test_plans_cannot_be_compared_with_what_is_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"^plan_length: got 1.5, expected null: Counting has no reference lengths"):
        until_solved(tmp_path, Solved, StopWhenSolved(plan_length=1.5), Counting(), max_epochs=1)


class JustRight(ToolAgent):
    """Solves 9 problems of 10, with 11 steps for 10."""

    def results(self):
        return [one._replace(tried=10, correct=9, plan_length=1.1) for one in super().results()]


@pytest.mark.parametrize(("accuracy", "plan_length", "batches"), [(0.9, 1.1, 1), (0.901, 1.1, 2), (0.9, 1.099, 2)])
def test_what_is_just_good_enough_is_good_enough(tmp_path, accuracy, plan_length, batches):
    """Validation tells it in float32, which is a little less or a little more than what was asked for."""
    assert until_solved(tmp_path, JustRight, StopWhenSolved(accuracy, plan_length), max_epochs=2) == batches


def test_without_a_wanted_accuracy_a_run_goes_on(tmp_path):
    assert until_solved(tmp_path, Solved, StopWhenSolved(None), max_epochs=2) == 2


def test_a_run_that_was_killed_when_all_was_solved_does_not_go_on(tmp_path):
    assert until_solved(tmp_path, Solved, StopWhenSolved(), max_epochs=5) == 1
    again = StopWhenSolved()
    assert until_solved(tmp_path, Solved, again, max_epochs=5) == 1
    assert again.solved
