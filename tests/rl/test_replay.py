"""Success replay: what is kept, what is imitated, and how much it counts."""

import pytest
import torch

from tests.rl.test_algorithms import ENV, rollout_of, steps
from tests.toy import Room, fit
from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.replay import Successes, SuccessReplay
from toolagent_pl.training.module import ToolAgent


def successes(*numbers: int, steps: int = 4) -> Successes:
    number = torch.tensor(numbers)
    return Successes(number, number % 2, number[:, None].repeat(1, steps) % 4)


def test_successes_that_were_not_expected_are_kept():
    _, rollout, _, _ = rollout_of()
    value = torch.where(torch.arange(12) % 2 == 0, 0.4, 0.6).expand(len(rollout.mask), -1)
    rollout = rollout._replace(solved=torch.arange(12) < 6, value=value)
    found = SuccessReplay(below=0.5).select(rollout, with_critic=True)
    assert found.number.tolist() == [0, 2, 4]
    for row, episode in enumerate((0, 2, 4)):
        length = int(rollout.mask[:, episode].sum())
        assert found.actions[row, :length].tolist() == rollout.actions[:length, episode].tolist()
        assert (found.actions[row, length:] == -1).all()


def test_without_a_critic_rare_means_few_of_the_samples():
    _, rollout, _, _ = rollout_of(samples=4, problems=2)
    solved = torch.tensor([True, False, False, False, True, True, False, True])
    found = SuccessReplay(below=0.5).select(rollout._replace(solved=solved, value=None), with_critic=False)
    assert found.number.tolist() == [0]


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


def test_the_oldest_are_forgotten_and_episodes_of_any_length_kept():
    replay = SuccessReplay(size=3)
    replay.add(successes(1, 2))
    replay.add(successes(12, 13, steps=2), successes(10, steps=6))
    assert replay.buffer.number.tolist() == [10, 12, 13]  # by number, however they were found
    assert replay.buffer.actions.tolist() == [[2] * 6, [0, 0, -1, -1, -1, -1], [1, 1, -1, -1, -1, -1]]


def test_ranks_imitate_what_one_would_and_problems_are_made_again():
    replay = SuccessReplay(batch_size=8)
    assert replay.draw(ENV, seed=1, batch=0) is None
    replay.add(successes(*range(100)))
    problems, actions = replay.draw(ENV, seed=1, batch=5)
    halves = [replay.draw(ENV, seed=1, batch=5, rank=rank, ranks=2) for rank in range(2)]
    assert actions.shape == (ENV.horizon(problems), 8)
    assert torch.cat([half[1] for half in halves], 1).equal(actions)
    assert torch.cat([half[0].number for half in halves]).equal(problems.number)
    assert not actions.equal(replay.draw(ENV, seed=1, batch=6)[1])
    assert actions[0].equal(problems.number % 4)
    number = problems.number
    assert problems.key.equal(ENV.problems(number, number % 2, 1, held_out=False).key)


def test_what_is_kept_goes_into_a_checkpoint_and_back():
    replay, other = SuccessReplay(), SuccessReplay()
    other.load_state_dict(replay.state_dict())
    assert other.buffer is None
    replay.add(successes(1, 2))
    other.load_state_dict(replay.state_dict())
    assert other.buffer.actions.equal(replay.buffer.actions)
    for damaged in ({"actions": replay.buffer.actions}, {**replay.state_dict(), "actions": torch.zeros(3, 1).long()}):
        with pytest.raises(ValueError, match=r"^replay: got "):
            other.load_state_dict(damaged)


def test_what_is_imitated_was_solved_and_its_returns_are_discounted_as_the_algorithm_does():
    seen = []

    class Watched(SuccessReplay):
        def loss(self, evaluation, returns, mask, with_critic):
            seen.append((returns, mask))
            return super().loss(evaluation, returns, mask, with_critic)

    torch.manual_seed(0)
    module = ToolAgent(Room(["near"]), algorithm=A2C(gamma=0.5), replay=Watched(batch_size=8))
    trainer = fit(module, 3, 256)
    assert {"train/replay_size", "train/replay_weight"} <= set(trainer.callback_metrics)
    assert len(seen) == 3
    for returns, mask in seen:
        left = mask.sum(0) - 1 - torch.arange(len(mask))[:, None]
        assert returns.equal(torch.where(mask, 0.5 ** left.clamp(min=0), 0))


def test_numbers_out_of_range_are_refused_by_name():
    for option, value in (("size", 0), ("batch_size", 1 << 20), ("below", 0.0), ("coef", -1.0)):
        with pytest.raises(ValueError, match=rf"^{option}: got {value}, expected "):
            SuccessReplay(**{option: value})
