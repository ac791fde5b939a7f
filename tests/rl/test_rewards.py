"""Rewards: how much, for what, and at which step."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reference import Calculator, padded, tutorial_episode
from tests.strategies import PLAIN, expressions, expressions_with_plans
from toolagent_pl import CalculatorEnv, Problems, TutorialEnv
from toolagent_pl.envs.calculator.expression import parse, reference_plan
from toolagent_pl.envs.calculator.progress import ProgressReward
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.envs.tutorial.blind import BlindAgent
from toolagent_pl.envs.tutorial.reward import TutorialReward
from toolagent_pl.rl.rewards import OutcomeReward
from toolagent_pl.rl.rollout import collect

MUL, ADD, SUB, ANS, STO, RCL = Token.MUL, Token.ADD, Token.SUB, Token.ANS, Token.STO, Token.RCL
EVERYTHING = [PLAIN.name(token) for token in Token if token < Token.OPEN]  # as actions, which are their own positions
WEIGHT = 0.25
PROGRESS = ProgressReward(WEIGHT)


def paid(reward, env, problems, plans):
    """What each plan earns at each of its actions."""
    agent = BlindAgent(env, d=1)
    problems = problems._replace(stage=problems.stage.clamp(min=0))
    noop = env.actions.index("EOS")
    actions = torch.full((env.horizon(problems), problems.size), noop)
    written = torch.tensor(padded([[max(action, 0) for action in plan] for plan in plans])).T.clamp(min=0)
    actions[: len(written)] = written[: len(actions)]
    rollout = collect(agent, env, problems, actions=actions)
    rewards = reward(env, rollout)
    assert rewards.dtype == torch.float32
    assert rewards.shape == rollout.mask.shape
    assert not rewards[~rollout.mask].any()
    return [row.tolist() + [0.0] * (len(plan) - len(row)) for row, plan in zip(rewards.T, plans, strict=True)]


def paid_for(text, plan, reward=PROGRESS, max_steps=None):
    env = CalculatorEnv(actions=EVERYTHING, max_steps=max_steps or len(plan))
    return paid(reward, env, Problems.from_expressions([text]), [plan])[0][: len(plan)]


def test_outcome_is_paid_at_the_answer():
    assert paid_for("2*3", [Token.EOS, MUL, ANS, ANS], OutcomeReward()) == [0, 0, 1, 0]
    assert paid_for("2*3", [ADD, ANS, MUL, ANS], OutcomeReward()) == [0, 0, 0, 0]
    assert paid_for("2*3", [MUL, ANS], OutcomeReward(), max_steps=1) == [0, 0]


def operators_of(text):
    """The operators of an expression as nested (tool, left, right); the leaves are positions on the tape."""
    leaves, tree = parse(text, PLAIN)
    value = {(i, i + 1): i for i in range(len(leaves))}
    for tool, start, split, end in tree:
        value[start, end] = (tool, value[start, split], value[split, end])
    return {nested for nested in value.values() if isinstance(nested, tuple)}


without_padding = st.lists(st.integers(0, Token.EOS) | st.sampled_from(PLAIN.actions), max_size=16)


@given(st.lists(expressions_with_plans(without_padding), min_size=1, max_size=12), st.integers(1, 30))
def test_progress_is_that_of_a_symbolic_calculation(cases, max_steps):
    cases = [(text, [action for action in plan if action >= 0] + [ANS]) for text, plan in cases]
    texts, plans = zip(*cases, strict=True)
    env = CalculatorEnv(actions=EVERYTHING, max_steps=max_steps)
    rewards = paid(PROGRESS, env, Problems.from_expressions(texts), plans)
    for row, (text, plan) in zip(rewards, cases, strict=True):
        operands = [int(leaf) for leaf in parse(text, PLAIN).leaves]
        symbols = Calculator(range(len(operands)), max_steps, join=lambda *nested: nested)
        values = Calculator(operands, max_steps)
        for reward, action in zip(row, plan, strict=False):
            progress = symbols.press(action) in operators_of(text)
            running = not values.over
            values.press(action)
            solved = running and values.over and values.solved(eval(text))
            assert reward == WEIGHT * progress + solved
        assert not any(row[len(plan) :])


@pytest.mark.parametrize(
    ("text", "plan", "rewards"),
    [
        ("2*3+4", [MUL, ADD, ANS], [WEIGHT, WEIGHT, 1 - 2 * WEIGHT]),
        ("2*3+4", [MUL, MUL, ANS], [WEIGHT, 0, -WEIGHT]),
        ("2*3+4", [MUL, MUL], [WEIGHT, -WEIGHT]),  # truncated: it is paid back, too
        ("2*3+4", [MUL], [0]),
        ("2*3", [ANS], [0]),
    ],
)
def test_a_potential_is_paid_back_in_the_end(text, plan, rewards):
    assert paid_for(text, plan, ProgressReward(WEIGHT, potential=True)) == pytest.approx(rewards)
    assert sum(rewards) == sum(paid_for(text, plan, OutcomeReward()))


@given(expressions)
def test_a_full_plan_earns_the_outcome_and_each_operator_once(text):
    plan = reference_plan(parse(text, PLAIN).tree)
    assume(plan.count(STO) <= 8)
    assert paid_for(text, plan) == [WEIGHT * (MUL <= action <= SUB) + (action == ANS) for action in plan]


@pytest.mark.parametrize(
    ("text", "plan", "rewards"),
    [
        ("2*2", [ADD, ANS], [0, 1]),  # right by luck: no progress
        ("0+3*1", [ADD, MUL, ANS], [0, 0, 1]),
        ("2*3+4", [MUL, MUL, ANS], [WEIGHT, 0, 0]),
        ("2*3", [MUL, MUL, MUL, ANS], [WEIGHT, 0, 0, 1]),  # once
        ("2*3", [MUL, ANS, MUL, ANS], [WEIGHT, 1, 0, 0]),
        ("(2*3)-(2*3)", [MUL, STO, MUL, RCL, SUB, ANS], [WEIGHT, 0, WEIGHT, 0, WEIGHT, 1]),
        ("1-(2*3)", [SUB, MUL, ANS], [0, 0, 0]),
        ("2-2", [STO, STO, RCL, RCL, SUB, ANS], [0, 0, 0, 0, WEIGHT, 1]),
        ("7", [STO, RCL, ANS], [0, 0, 1]),  # no operators
    ],
)
def test_progress_by_example(text, plan, rewards):
    assert paid_for(text, plan) == rewards
    assert paid_for(text, plan, max_steps=1) == [rewards[0], *[0] * (len(plan) - 1)]


@given(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 99_999), without_padding), min_size=1, max_size=12))
def test_the_tutorial_pays_at_the_last_step(stage, cases):
    index, plans = zip(*cases, strict=True)
    problems = TutorialEnv().stages_on(torch.device("cpu")).all_problems(stage, torch.tensor(index) % 1000 * 10**stage)
    plans = [[*plan, ANS] for plan in plans]
    rewards = paid(TutorialReward(), TutorialEnv(actions=EVERYTHING, max_steps=7), problems, plans)
    for row, tape, plan in zip(rewards, problems.operands.tolist(), plans, strict=True):
        wanted, steps = tutorial_episode(tape + [0] * (5 - len(tape)), stage, plan, max_steps=7)
        assert row[steps - 1] == pytest.approx(wanted, abs=1e-6)
        assert not any(row[: steps - 1] + row[steps:])


def test_an_environment_in_which_a_reward_has_no_meaning_is_refused():
    for reward, right, wrong in (
        (TutorialReward(), TutorialEnv(), CalculatorEnv()),
        (ProgressReward(), CalculatorEnv(), TutorialEnv()),
    ):
        reward.check_env(right)
        with pytest.raises(ValueError, match=r"^reward: got \w+Reward with \w+Env, expected \w+Env"):
            reward.check_env(wrong)
    with pytest.raises(ValueError, match=r"^weight: got nan, expected at least 0"):
        ProgressReward(float("nan"))
