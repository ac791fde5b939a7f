"""Episodes as people read them."""

import json

import torch

from tests.reference import ARITHMETIC, Calculator
from tests.strategies import WITH_MAX
from toolagent_pl import CalculatorEnv, Problems
from toolagent_pl.envs.calculator import Reader
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl import collect

NAMES = ["MUL", "ADD", "SUB", "ANS", "STO", "RCL", "7", "MAX"]


def played(texts, plans, feedback="spans"):
    """Episodes in which these plans, of names, are carried out."""
    env = CalculatorEnv(["T0"], tools=WITH_MAX, actions=NAMES, max_steps=max(map(len, plans)), feedback=feedback)
    problems = Problems.from_expressions(texts, WITH_MAX)
    problems = problems._replace(stage=problems.stage + 1)
    rows = [[NAMES.index(name) for name in plan] + [3] * (env.max_steps - len(plan)) for plan in plans]
    return env.episodes(collect(Reader(env), env, problems, actions=torch.tensor(rows).T))


def test_an_episode_says_what_was_asked_done_and_answered():
    right, wrong, none = played(
        ["2*3+4", "1-(2-3)", "8-5"],
        [["MUL", "ADD", "ANS"], ["7", "STO", "SUB", "RCL", "ANS"], ["ADD", "7", "STO", "RCL", "MUL"]],
    )
    assert right.as_dict() == {
        "stage": "T0", "problem": "2*3+4", "plan": ["MUL", "ADD", "ANS"], "solved": True, "operands": [2, 3, 4],
        "target": 10, "values": [6, 10, 10], "positions": [[0, -1, -1, -1], [4, 2, -1, -1], [-1, 4, -1, -1]],
        "answer": 10, "reference_length": 3,
    }  # fmt: skip
    assert json.loads(json.dumps(right.as_dict())) == right.as_dict()
    assert str(right) == "2*3+4 = 10: MUL=6 ADD=10 ANS -> 10, right"
    assert (wrong.values, wrong.answer, wrong.solved, len(wrong.plan)) == ([None, None, -1, -1, -1], -1, False, 5)
    assert (wrong.target, wrong.reference_length, len(wrong.positions)) == (2, 5, 5)
    assert str(wrong) == "1-(2-3) = 2: 7=- STO=- SUB=-1 RCL=-1 ANS -> -1, wrong"
    assert (none.plan, none.answer, none.solved) == (["ADD", "7", "STO", "RCL", "MUL"], None, False)
    assert none.operands == [8, 5]
    assert str(none) == "8-5 = 3: ADD=13 7=13 STO=- RCL=13 MUL=13 -> no answer, wrong"


def test_to_answer_with_nothing_is_no_answer_and_a_zero_is_a_value():
    nothing, zero, own = played(
        ["1-1", "1-1", "max(3,7)-2"], [["ANS"], ["SUB", "ANS"], ["MAX", "SUB", "ANS"]], feedback="none"
    )
    assert (nothing.answer, nothing.values, nothing.solved, nothing.stage) == (None, [None], False, "T0")
    assert str(nothing) == "1-1 = 0: ANS -> no answer, wrong"
    assert (zero.values, zero.answer, zero.solved, zero.positions) == ([0, 0], 0, True, [[], []])
    assert str(own) == "3 max 7-2 = 5: MAX=7 SUB=5 ANS -> 5, right"


def test_what_an_agent_did_is_what_is_told():
    env, number = CalculatorEnv(["T0", "E3"]), torch.arange(60)
    torch.manual_seed(0)
    rollout = collect(
        Reader(env), env, env.problems(number, number % 2, 0, held_out=False), seed=1, samples_per_problem=2
    )
    told = env.episodes(rollout)
    assert len(told) == 120
    assert len({len(episode.plan) for episode in told}) > 3
    for row, episode in enumerate(told):
        assert episode.stage == env.stages[row // 2 % 2]
        assert episode.target == eval(episode.problem)
        assert len(episode.operands) == (3, 4)[row // 2 % 2]
        slow, values = Calculator(episode.operands, 3 * len(episode.operands), tools=ARITHMETIC), []
        assert len(episode.plan) == len(episode.values) == len(episode.positions)
        for name in episode.plan:
            slow.press(Token[name])
            values.append(slow.value)
        assert episode.values == values
        assert slow.over
        assert episode.answer == (slow.value if slow.answered else None)
        assert episode.solved == slow.solved(episode.target)
