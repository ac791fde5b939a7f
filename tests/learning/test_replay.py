"""Success replay: what is kept, what is imitated, and how much it counts."""

import pytest
import torch

from benchmarks.bare import BareLoop, make_module
from tests.learning.test_ppo_and_groups import ENV, rollout_of, steps
from toolagent_pl.envs import Outcome
from toolagent_pl.learning import A2C, SuccessReplay
from toolagent_pl.learning.replay import Remembered
from toolagent_pl.problems import Problems


def remembered(*expressions: str, first: int = 0) -> Remembered:
    problems = Problems.from_expressions(expressions)
    number = problems.number + first
    return Remembered(problems._replace(number=number), number[:, None].repeat(1, problems.operands.shape[1]))


def test_successes_that_were_not_expected_are_kept():
    _, rollout, _, _ = rollout_of()
    correct = torch.arange(12) < 6
    value = torch.where(torch.arange(12) % 2 == 0, 0.4, 0.6).expand(len(rollout.mask), -1)
    outcome = Outcome(*rollout.outcome)._replace(correct=correct)
    rollout = rollout._replace(outcome=outcome, value=value)
    found = SuccessReplay(below=0.5).worth_keeping(rollout, with_critic=True)
    assert found.problems.number.tolist() == rollout.problems.number[[0, 2, 4]].tolist()
    for row, episode in enumerate((0, 2, 4)):
        length = int(rollout.mask[:, episode].sum())
        assert found.actions[row, :length].tolist() == rollout.actions[:length, episode].tolist()
        assert not found.actions[row, length:].any()


def test_without_a_critic_rare_means_few_of_the_samples():
    _, rollout, _, _ = rollout_of(samples=4, problems=2)
    correct = torch.tensor([True, False, False, False, True, True, False, True])
    rollout = rollout._replace(outcome=rollout.outcome._replace(correct=correct), value=None)
    found = SuccessReplay(below=0.5).worth_keeping(rollout, with_critic=False)
    assert found.problems.number.tolist() == rollout.problems.number[[0]].tolist()


@pytest.mark.parametrize("with_critic", [True, False])
def test_the_loss_is_its_formula(with_critic):
    _, rollout, evaluation, returns = rollout_of()
    terms = SuccessReplay(coef=0.7, vf_coef=0.3).loss(evaluation, returns, rollout.mask, with_critic)
    policy = value = weight = 0.0
    for t, n in steps(rollout):
        gap = max(0.0, float(returns[t, n]) - (float(evaluation.value[t, n].detach()) if with_critic else 0.0))
        policy -= 0.7 * float(evaluation.log_prob[t, n]) * gap
        value += 0.3 * 0.5 * gap**2
        weight += gap
    assert float(terms.policy.detach()) == pytest.approx(policy, rel=1e-4)
    assert float(terms.value.detach()) == pytest.approx(value, rel=1e-4)
    assert float(terms.metrics["replay_weight"]) == pytest.approx(weight, rel=1e-4)
    (terms.policy + terms.value).backward()
    assert evaluation.log_prob.grad.abs().sum() > 0
    if with_critic:  # the policy's loss does not move the critic
        gap = (returns - evaluation.value.detach()).clamp(min=0) * rollout.mask
        torch.testing.assert_close(evaluation.value.grad, -0.3 * gap)


def test_the_oldest_are_forgotten_and_problems_of_any_width_kept():
    replay = SuccessReplay(size=3)
    replay.add(remembered("1+2", "3-4"))
    replay.add(remembered("9", "1-(2-3)*4", first=12), remembered("5*6", first=10))
    kept = replay.kept
    assert kept.problems.number.tolist() == [10, 12, 13]  # by number, however they were found
    again = Problems.from_expressions(["5*6", "9", "1-(2-3)*4"])
    assert all(torch.equal(x, y) for x, y in zip(kept.problems[2:], again[2:], strict=True))
    assert kept.actions[:, 0].tolist() == [10, 12, 13]


def test_ranks_imitate_what_one_would():
    replay = SuccessReplay(batch_size=8)
    assert replay.draw(ENV, seed=1, batch=0) is None
    replay.add(remembered(*(f"{a}+{b}" for a in range(10) for b in range(10))))
    whole = replay.draw(ENV, seed=1, batch=5)
    halves = [replay.draw(ENV, seed=1, batch=5, rank=rank, ranks=2) for rank in range(2)]
    assert whole.actions.shape == (8, ENV.horizon(whole.problems))
    assert torch.cat([half.actions for half in halves]).equal(whole.actions)
    assert torch.cat([half.problems.number for half in halves]).equal(whole.problems.number)
    assert not whole.actions.equal(replay.draw(ENV, seed=1, batch=6).actions)


def test_what_is_kept_goes_into_a_checkpoint_and_back():
    replay, other = SuccessReplay(), SuccessReplay()
    other.load_state_dict(replay.state_dict())
    assert other.kept is None
    replay.add(remembered("1+2", "3-4"))
    other.load_state_dict(replay.state_dict())
    assert other.kept.actions.equal(replay.kept.actions)
    for damaged in ({"actions": replay.kept.actions}, {**replay.state_dict(), "actions": torch.zeros(3, 1).long()}):
        with pytest.raises(ValueError, match=r"^ckpt_path: got a replay of "):
            other.load_state_dict(damaged)


def test_returns_are_discounted_as_the_algorithm_does():
    seen = []

    class Recording(SuccessReplay):
        def loss(self, evaluation, returns, mask, with_critic):
            seen.append((returns, mask))
            return super().loss(evaluation, returns, mask, with_critic)

    module = make_module("blind", ["T0"], algorithm=A2C(gamma=0.5), replay=Recording(batch_size=8))
    BareLoop(module, 256).update()
    ((returns, mask),) = seen
    left = mask.sum(0) - 1 - torch.arange(len(mask))[:, None]
    assert returns.equal(torch.where(mask, 0.5 ** left.clamp(min=0), 0))


@pytest.mark.parametrize(("option", "value"), [("size", 0), ("batch_size", 1 << 20), ("below", 0.0), ("coef", -1.0)])
def test_numbers_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=rf"^model\.replay\.{option}: got {value}, expected "):
        SuccessReplay(**{option: value})
