"""Episodes as people read them."""

import json

import torch

from tests.reference import ARITHMETIC, Calculator
from tests.strategies import MAX_TOKEN, WITH_MAX
from toolagent_pl import CalculatorEnv, Problems
from toolagent_pl.agents import BlindAgent
from toolagent_pl.episodes import episodes
from toolagent_pl.learning import collect
from toolagent_pl.problems import Stages
from toolagent_pl.randomness import Purpose
from toolagent_pl.tools import Token, Vocabulary

NAMES = ["MUL", "ADD", "SUB", "ANS", "STO", "RCL", "7"]


def played(texts, plans, tools=WITH_MAX[:3], feedback="spans", **options):
    """Episodes in which these plans, of names, are carried out."""
    env = CalculatorEnv(max(map(len, plans)), feedback=feedback, tools=tools)
    names = NAMES if tools == WITH_MAX[:3] else [*NAMES, "MAX"]
    agent = BlindAgent(env.spec(3), d=2, actions=names)
    problems = Problems.from_expressions(texts, tools)
    problems = problems._replace(stage=problems.stage + 1)
    rows = [[names.index(name) for name in plan] + [3] * (env.max_steps - len(plan)) for plan in plans]
    rollout = collect(agent, env, problems, actions=torch.tensor(rows).T)
    return episodes(rollout, env, **options)


def test_an_episode_says_what_was_asked_done_and_answered():
    right, wrong, none = played(
        ["2*3+4", "1-(2-3)", "8-5"],
        [["MUL", "ADD", "ANS"], ["7", "STO", "SUB", "RCL", "ANS"], ["ADD", "7", "STO", "RCL", "MUL"]],
        stages=("T0",),
    )
    assert right.as_dict() == {
        "stage": "T0", "expression": "2*3+4", "operands": [2, 3, 4], "target": 10, "plan": ["MUL", "ADD", "ANS"],
        "values": [6, 10, 10], "places": [[0, -1, -1, -1], [4, 2, -1, -1], [-1, 4, -1, -1]],
        "answer": 10, "correct": True, "steps": 3, "textbook_length": 3,
    }  # fmt: skip
    assert json.loads(json.dumps(right.as_dict())) == right.as_dict()
    assert str(right) == "2*3+4 = 10: MUL=6 ADD=10 ANS -> 10, right"
    assert (wrong.values, wrong.answer, wrong.correct, wrong.steps) == ([None, None, -1, -1, -1], -1, False, 5)
    assert (wrong.target, wrong.textbook_length, len(wrong.places)) == (2, 5, 5)
    assert str(wrong) == "1-(2-3) = 2: 7=- STO=- SUB=-1 RCL=-1 ANS -> -1, wrong"
    assert (none.plan, none.answer, none.correct) == (["ADD", "7", "STO", "RCL", "MUL"], None, False)
    assert none.operands == [8, 5]
    assert str(none) == "8-5 = 3: ADD=13 7=13 STO=- RCL=13 MUL=13 -> no answer, wrong"


def test_to_answer_with_nothing_is_no_answer():
    (episode,) = played(["1-1"], [["ANS"]])
    assert (episode.answer, episode.values, episode.correct, episode.stage) == (None, [None], False, None)
    assert str(episode) == "1-1 = 0: ANS -> no answer, wrong"


def test_a_zero_is_a_value():
    (episode,) = played(["1-1"], [["SUB", "ANS"]], feedback="none")
    assert (episode.values, episode.answer, episode.correct, episode.places) == ([0, 0], 0, True, [[], []])


def test_a_tool_of_ones_own_is_named():
    (episode,) = played(["max(3,7)-2"], [["MAX", "SUB", "ANS"]], tools=WITH_MAX)
    assert str(episode) == "3 max 7-2 = 5: MAX=7 SUB=5 ANS -> 5, right"
    assert Vocabulary(WITH_MAX).name(MAX_TOKEN) == "MAX"


def test_what_an_agent_did_is_what_is_told():
    stages, env = Stages(["T0", "E3"]), CalculatorEnv("auto")
    number = torch.arange(60)
    problems = stages.draw(number, number % 2, 0, Purpose.PROBLEM, held_out=False)
    torch.manual_seed(0)
    rollout = collect(BlindAgent(env.spec(2), d=8), env, problems, seed=1, samples_per_problem=2)
    told = episodes(rollout, env, stages.names)
    assert len(told) == 120
    assert len({episode.steps for episode in told}) > 3
    for row, episode in enumerate(told):
        assert episode.stage == stages.names[row // 2 % 2]
        assert episode.target == eval(episode.expression)
        assert len(episode.operands) == (3, 4)[row // 2 % 2]
        slow, values = Calculator(episode.operands, 3 * len(episode.operands), tools=ARITHMETIC), []
        assert len(episode.plan) == len(episode.values) == len(episode.places) == episode.steps
        for name in episode.plan:
            slow.press(Token[name])
            values.append(slow.value)
        assert episode.values == values
        assert slow.over
        assert episode.answer == (slow.value if slow.answered else None)
        assert episode.correct == slow.solved(episode.target)
