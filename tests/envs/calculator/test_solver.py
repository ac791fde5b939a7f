"""The solver: what it makes of expressions, what it refuses, and the agents that it takes."""

import random
import re
import time
from dataclasses import fields

import pytest
import torch
from hypothesis import given

from tests.envs.calculator.scripted import scripted, untrained
from tests.strategies import expressions
from toolagent_pl import CalculatorEnv, Problems, Solver, ToolAgent, TutorialEnv
from toolagent_pl.envs.calculator import Reader
from toolagent_pl.envs.calculator.expression import ExpressionError, text_of
from toolagent_pl.envs.calculator.solver import stays_in_int64
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.rl import collect

FIELDS = ["expression", "plan", "values", "answer", "target", "correct", "textbook_length"]


@pytest.fixture(scope="module")
def solver():
    return scripted()


def test_an_expression_gives_a_solution(solver):
    solution = solver.solve("2*(3+4)")
    assert [field.name for field in fields(solution)] == FIELDS
    assert list(solution.as_dict()) == FIELDS
    assert solution.expression == "2*(3+4)"
    assert solution.plan == ("STO", "ADD", "RCL", "MUL", "ANS")
    assert solution.values == (None, 7, 7, 14, 14)
    assert (solution.answer, solution.target, solution.correct, solution.textbook_length) == (14, 14, True, 5)


def test_a_wrong_answer_is_told():
    solution = scripted(hurried=True).solve("2*(3+4)")
    assert solution.plan == ("STO", "ADD", "RCL", "ANS")
    assert (solution.answer, solution.target, solution.correct) == (7, 14, False)
    assert scripted(hurried=True).solve("3+4").answer is None


@given(expressions)
def test_every_expression_that_is_taken_is_right(solver, text):
    (result,) = solver.attempt([text])
    if not isinstance(result, ExpressionError):
        assert result.solved
        assert result.answer == eval(text)
        assert result.plan[-1] == "ANS"


def test_solutions_come_in_the_order_of_the_expressions_whatever_their_lengths(solver):
    texts = ["1+0", "(1+2)*(3+4)*(5-6)", "7-8", " ( ( 9 ) ) *2", "1-(2-(3-(4-5)))", "7-8"]
    found = solver.solve(texts)
    assert [one.expression for one in found] == texts
    assert found == [solver.solve(text) for text in texts]
    assert solver.solve([]) == []


def test_prompts_have_no_brackets_that_say_nothing(solver):
    (episode,) = solver.attempt(["((1))+((007*(3)))"])
    assert episode.problem == "1+7*3"
    assert len(episode.positions) == len(episode.plan)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" \t", "is empty"),
        ("3/4", "got '/' where an operator should be"),
        ("-3", "begins with '-'; numbers have no sign, write 0-3 for -3"),
        ("__import__('os')", "got '__import__' where an operand should be"),
        ("+".join("1" * 62), "has 61 operators, expected at most 60"),
        (" ((007)) ", "is a number alone, expected at least one operator"),
        (f"{'9' * 19}-1", "a value on the way might not fit into 64 bits"),
        ("99999999999*99999999999", "a value on the way might not fit into 64 bits"),
        ("1-(2-(3-(4-(5-(6-7)))))", "has 5 values in memory at a time, expected at most 4; raise memory_depth"),
        ("1+" * 6000 + "1", "has 12001 characters, expected at most 10000"),
    ],
)
def test_what_is_no_expression_for_it_is_refused_in_one_line(solver, text, expected):
    with pytest.raises(ExpressionError, match=re.escape(expected)) as refused:
        solver.solve(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250
    good, bad, last = solver.attempt(["1+2", text, "3*4"])
    assert (good.answer, str(bad), last.answer) == (3, str(refused.value), 12)


def test_what_fits_into_64_bits_is_solved_however_long_it_is(solver):
    text = "+".join("9" * 24) + "-4294967296-4294967296"
    assert solver.solve(text).correct
    assert solver.solve("3037000499*3037000499-9").correct


def test_a_wrong_plan_that_wraps_round_to_the_answer_is_not_right():
    problems = Problems.from_expressions(["1-1", "1+1"])
    large = torch.full_like(problems.operands, 2**32)
    problems = problems._replace(operands=large, target=torch.tensor([0, 2**33]))
    env = CalculatorEnv(max_steps=4)
    actions = torch.full((4, 2), env.actions.index("ANS"))
    actions[0] = torch.tensor([env.actions.index("MUL"), env.actions.index("ADD")])
    rollout = collect(Reader(env), env, problems, actions=actions)
    assert rollout.solved.tolist() == [True, True]  # 2^64 is 0
    assert stays_in_int64(env, rollout) == [False, True]


def test_as_many_operators_and_as_much_memory_as_there_may_be(solver):
    assert solver.solve("+".join("1" * 61)).answer == 61
    deep = "1-(2-(3-(4-5)))"
    with pytest.raises(ExpressionError, match="expected at most 2"):
        scripted(memory_depth=2).solve(deep)
    assert scripted(memory_depth=3).solve(deep).correct


def test_ten_thousand_expressions_take_a_moment():
    """Less than a second on an idle processor; time of the processor, with room for a busy one."""
    draw = random.Random(0)

    def expression(operators):
        if not operators:
            return str(draw.randint(0, 9))
        left = draw.randrange(operators)
        return f"({expression(left)}){draw.choice('+-*')}({expression(operators - 1 - left)})"

    one = untrained()
    texts = [expression(5) for _ in range(10_000)]
    began = time.process_time()
    found = one.solve(texts)
    assert time.process_time() - began < 5
    assert [one.expression for one in found] == texts


def test_an_agent_trained_in_python_solves_as_it_is(tmp_path):
    """And goes on learning: the solver has a copy."""
    env = CalculatorEnv(["E1"], max_steps=2)
    module = ToolAgent(env, Reader)
    solver = Solver(module.agent, module.env)
    assert solver.solve("1-(2-3)*4").target == 5
    assert (env.max_steps, solver.env.max_steps, module.agent.training) == (2, "auto", True)
    before = solver.solve(["1+2", "3*4"])
    with torch.no_grad():
        module.agent.policy.bias.add_(torch.randn(6) * 100)
    assert solver.solve(["1+2", "3*4"]) == before
    with pytest.raises(ValueError, match="description: got none, expected Solver"):
        solver.save_pretrained(tmp_path)


def test_an_agent_that_does_not_read_is_refused():
    env, tutorial = CalculatorEnv(["T0"]), TutorialEnv()
    with pytest.raises(ValueError, match="BlindAgent, which is told the stage; expected one that reads expressions"):
        Solver(BlindAgent(env), env)
    with pytest.raises(ValueError, match="env: got TutorialEnv, expected a CalculatorEnv"):
        Solver(BlindAgent(tutorial), tutorial)


def test_the_shipped_agent_reads():
    """It is right on held-out expressions, with another plan for another structure, and far beyond its training."""
    solver, env, number = Solver.from_checkpoint(), CalculatorEnv(["E5", "E8", "E12"]), torch.arange(1000)
    for stage, least in enumerate((0.999, 0.999, 0.99)):
        problems = env.problems(number, torch.full_like(number, stage), 9, held_out=True)
        texts = [text_of(prompt, env.vocabulary) for prompt in problems.prompt.tolist()]
        solutions = solver.solve(texts)
        assert sum(solution.correct for solution in solutions) >= least * len(texts)
        assert [solution.target for solution in solutions] == problems.target.tolist()
        assert all(solution.answer == solution.target for solution in solutions if solution.correct)
    assert len({tuple(solution.plan) for solution in solutions}) > 500
