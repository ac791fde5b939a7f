"""The agent for any vector of numbers, in a world that the package does not know."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from tests.toy import Room, fit, greedy
from toolagent_pl.rl.grpo import GRPO
from toolagent_pl.rl.mlp import MLPAgent
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.rl.replay import SuccessReplay
from toolagent_pl.rl.rollout import collect
from toolagent_pl.training.module import ToolAgent


def learned(env, batches=60, recurrent=False, **options):
    torch.manual_seed(0)
    options = {"algorithm": PPO(minibatches=2), **options}
    module = ToolAgent(env, agent=partial(MLPAgent, recurrent=recurrent), learning_rate=1e-2, **options)
    fit(module, batches, 128)
    return module


def test_what_is_shown_is_learned():
    assert greedy(learned(Room(shown=True), 40)) > 0.95


def test_what_is_shown_but_once_takes_memory():
    room = Room(["near"], masked=True)
    assert greedy(learned(room, recurrent=True)) > 0.95
    assert greedy(learned(room)) < 0.7


def test_groups_learn_it_too_bound_to_the_agent_that_they_began_with():
    module = learned(Room(["near"], shown=True), 60, algorithm=GRPO(minibatches=2, kl_coef=0.02))
    assert greedy(module) > 0.95
    torch.manual_seed(0)
    beginning = MLPAgent(module.env)
    for reference, first in zip(module.reference.parameters(), beginning.parameters(), strict=True):
        assert torch.equal(reference, first)
        assert not reference.requires_grad
    number = torch.arange(4)
    rollout, *_ = module.collect(module.env.problems(number, number * 0, 0, held_out=False))
    assert_close(rollout.reference_log_prob, beginning(rollout).log_prob.detach())


def test_successes_are_imitated():
    """An update from what was solved, and from nothing else: rewards pay the policy nothing here."""

    class Nothing(PPO):
        def loss(self, evaluation, rollout, advantages):
            terms = super().loss(evaluation, rollout, advantages)
            return terms._replace(policy=terms.policy * 0, entropy=terms.entropy * 0)

    env = Room(["near"], shown=True)
    without = learned(env, 40, algorithm=Nothing(minibatches=1))
    imitated = learned(env, 40, algorithm=Nothing(minibatches=1), replay=SuccessReplay(batch_size=128, below=1.0))
    assert greedy(without) < 0.5 < 0.9 < greedy(imitated)


@pytest.mark.parametrize("recurrent", [False, True])
def test_actions_that_are_not_allowed_are_never_taken_nor_counted(recurrent):
    env, number = Room(masked=True), torch.arange(200)
    torch.manual_seed(1)
    agent = MLPAgent(env, recurrent=recurrent).double()
    problems = env.problems(number, number % 2, 0, held_out=False)
    for seed in (None, 3):
        rollout = collect(agent, env, problems, seed=seed)
        mask = rollout.action_mask
        assert not mask[rollout.mask].all()
        assert mask.gather(2, rollout.actions[..., None])[..., 0][rollout.mask].all()
        afterwards = agent(rollout)
        assert_close(afterwards.log_prob[rollout.mask], rollout.log_prob[rollout.mask])
        assert_close(afterwards.value[rollout.mask], rollout.value[rollout.mask])
        most = mask.sum(2).double().log()
        assert (afterwards.entropy <= most + 1e-5)[rollout.mask].all()
        assert_close(afterwards.entropy[rollout.mask], most.float()[rollout.mask], rtol=0.05, atol=0.05)  # nearly even
