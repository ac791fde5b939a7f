"""The calculator in plain Python is the batched one."""

import random

import pytest
import torch

from toolagent_pl.envs import CalculatorEnv, execute
from toolagent_pl.envs.single import Operand, SingleCalculator
from toolagent_pl.problems import Stage, Stages
from toolagent_pl.randomness import Purpose
from toolagent_pl.tools import PADDING, TOOLS, Token, Tool

MAX = Tool("MAX", "max", precedence=3, function=torch.maximum)
TOOLS_AND_ONE = (*TOOLS, MAX)
STAGES = ["T0", "T2", "E3", "E7", Stage("large", operators=25, tools=("MUL",)), Stage("long", operators=4, digits=3)]
MOST_CALLS = 24


def play(single, rng, actions):
    """Take random calls, more of those that apply than of others; returns them and what there was to see on the way."""
    calls, seen = [], [look(single, actions)]
    for _ in range(MOST_CALLS):
        useful = [token for token in actions if token != Token.ANS and single.applies(token)]
        ready = not (single.tape or single.memory or single.left)
        if rng.random() < 0.3 or not useful:
            calls.append(Token.ANS if ready else rng.choice([*actions, Token.D1, Token.EOS]))
        else:
            calls.append(rng.choice(useful))
        single.step(int(calls[-1]))
        seen.append(look(single, actions))
    return calls, seen


def look(single, actions):
    value = single.accumulator.value if single.accumulator else 0
    mask = [single.applies(token) for token in actions]
    return (single.flags, single.places, mask, value, single.terminated, single.truncated, single.solved, single.steps)


def disagreements(episodes, feedback, max_steps, memory_depth, seed):
    """Episodes that differ, episodes solved, and calls that applied and did not, in so many random episodes."""
    env = CalculatorEnv(max_steps, memory_depth, feedback, TOOLS_AND_ONE)
    number = torch.arange(episodes)
    stages = Stages(STAGES, TOOLS_AND_ONE)
    problems = stages.draw(number, number % len(STAGES), seed, Purpose.PROBLEM, held_out=False)
    rng, actions = random.Random(seed), env.vocabulary.actions
    single = SingleCalculator(env.vocabulary.by_token, memory_depth)
    calls, theirs = [], []
    rows = zip(problems.operands.tolist(), problems.places.tolist(), strict=True)
    limits = env.reset(problems).limit.tolist()
    for (operands, places), n, target, limit in zip(
        rows, problems.length.tolist(), problems.target.tolist(), limits, strict=True
    ):
        single.reset([*map(Operand, operands[:n], places[:n])], target, limit)
        one, seen = play(single, rng, actions)
        calls.append(one)
        theirs.append(seen)
    different, states = torch.zeros(episodes, dtype=torch.bool), execute(env, problems, torch.tensor(calls))
    for state, seen in zip(states, zip(*theirs, strict=True), strict=True):
        flags, places, *rest = map(torch.tensor, zip(*seen, strict=True))
        observed = env.observe(state)
        found = [env.applies(state, torch.tensor(actions)), state.value, state.terminated, state.truncated]
        found += [env.outcome(state).correct, state.steps, observed.flags, observed.places]
        expected = [*rest, flags[:, : env.flags].float(), places[:, : env.places]]
        for a, b in zip(found, expected, strict=True):
            different |= a.ne(b).reshape(episodes, -1).any(1)
    return int(different.sum()), int(env.outcome(states[-1]).correct.sum()), int(states[-1].idle.sum())


@pytest.mark.parametrize(
    ("feedback", "max_steps", "memory_depth"),
    [("none", "auto", 8), ("flags", None, 2), ("position", 9, 8), ("spans", "auto", 2)],
)
def test_it_agrees_with_the_batch_in_every_step_of_random_episodes(feedback, max_steps, memory_depth):
    different, solved, idle = disagreements(500, feedback, max_steps, memory_depth, seed=0)
    assert different == 0
    assert solved > 5
    assert idle > 100


def test_after_the_end_and_for_padding_nothing_changes():
    single = SingleCalculator({int(Token.ADD): TOOLS[1]}, 8)
    single.reset([Operand(1, 0), Operand(2, 2)], 3, 2)
    single.step(int(Token.ADD))
    assert not single.applies(PADDING)
    single.step(int(Token.ANS))
    assert single.solved
    single.step(int(Token.STO))
    assert (single.steps, single.solved, single.truncated) == (2, True, False)
