"""What the interface of environments itself does."""

import torch

from tests.toy import Room
from toolagent_pl.rl.env import execute, over


def test_an_ended_episode_and_one_that_is_padded_stay_as_they_are():
    env = Room()
    number = torch.arange(64)
    problems = env.problems(number, number % len(env.stages), 0, held_out=False)
    actions = number[:, None] * 7 % 5 + torch.arange(2 * env.horizon(problems)) * 3
    actions = actions % (len(env.actions) + 1) - 1  # padding among them
    states = execute(env, problems, actions)
    ended = over(states[env.horizon(problems)])
    for action, before, after in zip(actions.T, states, states[1:], strict=False):
        stays = over(before) | action.lt(0)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[stays], new[stays])
        assert torch.equal(after.steps[~stays], before.steps[~stays] + 1)
    assert over(states[-1]).sum() >= ended.sum() > 0
