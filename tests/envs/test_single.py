"""The calculator in plain Python is the batched one."""

import random

import pytest
import torch

from tests.strategies import WITH_MAX
from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.single import SingleCalculator, single_problems
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.rl.env import execute

STAGES = ["T0", "T2", "E3", "E7", Stage("large", operators=25, tools=("MUL",)), Stage("long", operators=4, digits=3)]
ACTIONS = ["RCL", "ANS", "MUL", "7", "ADD", "SUB", "MAX", "EOS", "STO"]  # in no order, some of which never apply
ANS = ACTIONS.index("ANS")
MOST_CALLS = 24


def play(single, rng):
    """Take random calls, more of those that apply than of others; returns them and what there was to see on the way."""
    calls, seen = [], [look(single)]
    for _ in range(MOST_CALLS):
        useful = [action for action in range(len(ACTIONS)) if action != ANS and single.applies(action)]
        if rng.random() < 0.3 or not useful:
            calls.append(rng.randrange(len(ACTIONS)) if single.tape or single.memory or single.left else ANS)
        else:
            calls.append(rng.choice(useful))
        single.step(calls[-1])
        seen.append(look(single))
    return calls, seen


def look(single):
    value = single.accumulator.number if single.accumulator else 0
    mask = [single.applies(action) for action in range(len(ACTIONS))]
    ended = (single.terminated, single.truncated, single.solved, single.steps)
    return (single.flags, single.positions, mask, value, *ended)


@pytest.mark.parametrize(
    ("feedback", "max_steps", "memory_depth"),
    [("none", "auto", 8), ("flags", None, 2), ("position", 9, 8), ("spans", "auto", 2)],
)
def test_it_agrees_with_the_batch_in_every_step_of_random_episodes(feedback, max_steps, memory_depth):
    options = {"max_steps": max_steps, "memory_depth": memory_depth, "feedback": feedback}
    env = CalculatorEnv(STAGES, tools=WITH_MAX, actions=ACTIONS, **options)
    number, rng, single = torch.arange(500), random.Random(0), SingleCalculator(env)
    problems = env.problems(number, number % len(STAGES), seed=0, held_out=False)
    calls, theirs = [], []
    for problem in single_problems(env, problems):
        single.reset(problem)
        one, seen = play(single, rng)
        calls.append(one)
        theirs.append(seen)
    states = execute(env, problems, torch.tensor(calls))
    for state, seen in zip(states, zip(*theirs, strict=True), strict=True):
        flags, positions, *rest = map(torch.tensor, zip(*seen, strict=True))
        found = [env.applies(state), state.value, state.terminated, state.truncated, env.solved(state), state.steps]
        for a, b in zip([*found, *env.observe(state)], [*rest, flags.float(), positions], strict=True):
            assert torch.equal(a, b)
    assert env.solved(states[-1]).sum() > 5
    assert states[-1].noops.sum() > 100


def test_after_the_end_nothing_changes():
    env = CalculatorEnv(["T0"])
    single = SingleCalculator(env)
    single.reset(single_problems(env, env.problems(torch.tensor([3]), torch.tensor([0]), 0, held_out=True))[0])
    for name in ("MUL", "ADD", "ANS", "STO"):
        single.step(env.actions.index(name))
    assert (single.steps, single.solved, single.truncated, single.memory) == (3, True, False, [])
