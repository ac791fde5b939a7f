"""The solver: what it makes of expressions, what it refuses, and the two formats that it loads."""

import json
import os
import random
import re
import shutil
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given

from tests.commands.scripted import DESCRIPTION, WEIGHTS
from tests.conftest import SHORT
from tests.strategies import expressions
from toolagent_pl import Solver
from toolagent_pl.agents import Reader
from toolagent_pl.cli import main
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning import collect
from toolagent_pl.problems import Problems, Stages
from toolagent_pl.problems.expression import ExpressionError, parse, text_of, textbook_plan
from toolagent_pl.randomness import Purpose
from toolagent_pl.solver import stays_in_int64
from toolagent_pl.tools import TOOLS, Vocabulary

FIELDS = ["expression", "plan", "values", "answer", "target", "correct", "textbook_length"]


def described(**parts):
    return {**DESCRIPTION, **parts}


def hurried():
    agent = {"class_path": "tests.commands.scripted.Textbook", "init_args": {"hurried": True}}
    return Solver(described(agent=agent), WEIGHTS)


@pytest.fixture(scope="module")
def solver():
    return Solver(DESCRIPTION, WEIGHTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a short run of a reader."""
    directory = tmp_path_factory.mktemp("reader")
    here = Path.cwd()
    os.chdir(directory)
    try:
        main(["fit", *SHORT, "--data.batch_size=64", "--model.agent=Reader", "--model.env.feedback=spans"])
    finally:
        os.chdir(here)
    return directory / "lightning_logs" / "version_0"


def test_an_expression_gives_a_solution(solver):
    solution = solver.solve("2*(3+4)")
    assert [field.name for field in fields(solution)] == FIELDS
    assert list(solution.as_dict()) == FIELDS
    assert solution.expression == "2*(3+4)"
    assert solution.plan == ("STO", "ADD", "RCL", "MUL", "ANS")
    assert solution.values == (None, 7, 7, 14, 14)
    assert (solution.answer, solution.target, solution.correct, solution.textbook_length) == (14, 14, True, 5)
    with pytest.raises(AttributeError):
        solution.answer = 3


def test_a_wrong_answer_is_told():
    solution = hurried().solve("2*(3+4)")
    assert solution.plan == ("STO", "ADD", "RCL", "ANS")
    assert (solution.answer, solution.target, solution.correct) == (7, 14, False)
    assert hurried().solve("3+4").answer is None


@given(expressions)
def test_every_expression_that_is_taken_is_right(solver, text):
    (result,) = solver.attempt([text])
    if not isinstance(result, ExpressionError):
        assert result.correct
        assert result.answer == eval(text)
        assert result.plan[-1] == "ANS"


def test_solutions_come_in_the_order_of_the_expressions_whatever_their_lengths(solver):
    texts = ["1+0", "(1+2)*(3+4)*(5-6)", "7-8", " ( ( 9 ) ) *2", "1-(2-(3-(4-5)))", "7-8"]
    found = solver.solve(texts)
    assert [one.expression for one in found] == texts
    assert found == [solver.solve(text) for text in texts]
    assert solver.solve([]) == []


def test_prompts_have_no_brackets_that_say_nothing(solver):
    (episode,) = solver.episodes(["((1))+((007*(3)))"])
    assert episode.expression == "1+7*3"
    assert len(episode.places) == len(episode.plan)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("x+1", "got 'x' where an operand should be"),
        ("3/4", "got '/' where an operator should be"),
        ("-3", "begins with '-'; numbers have no sign, write 0-3 for -3"),
        ("2*-3", "got '-' where an operand should be"),
        ("(1", "a bracket is not closed"),
        ("1.5", "got '.' where an operator should be"),
        ("__import__('os')", "got '__import__' where an operand should be"),
        ("+".join("1" * 62), "has 61 operators, expected at most 60"),
        ("5", "is a number alone, expected at least one operator"),
        (" ((007)) ", "is a number alone, expected at least one operator"),
        (f"{'9' * 19}-1", "a value on the way might not fit into 64 bits"),
        ("1" * 5000, "might not fit into 64 bits"),
        ("99999999999*99999999999", "a value on the way might not fit into 64 bits"),
        (
            "1-(2-(3-(4-(5-(6-7)))))",
            "the textbook's plan has 5 values in memory at a time, expected at most 4; raise memory_depth",
        ),
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
    agent = Reader(env.spec(1))
    names = [env.vocabulary.name(token) for token in agent.actions.tolist()]
    actions = torch.full((env.horizon(problems), 2), names.index("ANS"))
    actions[0] = torch.tensor([names.index("MUL"), names.index("ADD")])
    rollout = collect(agent, env, problems, actions=actions)
    assert rollout.outcome.correct.tolist() == [True, True]  # 2^64 is 0
    assert stays_in_int64(env, rollout) == [False, True]


def test_as_many_operators_as_there_may_be(solver):
    assert solver.solve("+".join("1" * 61)).answer == 61


def test_memory_is_that_of_the_environment():
    deep = "1-(2-(3-(4-5)))"
    small = {"class_path": "toolagent_pl.CalculatorEnv", "init_args": {"memory_depth": 2}}
    with pytest.raises(ExpressionError, match="expected at most 2"):
        Solver(described(env=small), WEIGHTS).solve(deep)
    enough = {"class_path": "toolagent_pl.CalculatorEnv", "init_args": {"memory_depth": 3}}
    assert Solver(described(env=enough), WEIGHTS).solve(deep).correct


def test_ten_thousand_expressions_take_a_moment():
    """Less than a second on an idle processor; time of the processor, with room for a busy one."""
    draw = random.Random(0)

    def expression(operators):
        if not operators:
            return str(draw.randint(0, 9))
        left = draw.randrange(operators)
        return f"({expression(left)}){draw.choice('+-*')}({expression(operators - 1 - left)})"

    env = CalculatorEnv(max_steps="auto")
    reader = described(agent={"class_path": "toolagent_pl.agents.Reader"})
    untrained = Solver(reader, Reader(env.spec(1)).state_dict())
    texts = [expression(5) for _ in range(10_000)]
    began = time.process_time()
    found = untrained.solve(texts)
    assert time.process_time() - began < 5
    assert [one.expression for one in found] == texts


def test_a_saved_agent_is_loaded_again(solver, tmp_path):
    figures = {"E5": {"right": 3, "tried": 4}}
    solver.save_pretrained(tmp_path / "new" / "folder", command="fit", seed=3, figures=figures)
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    description = json.loads((folder / "config.json").read_text())
    assert list(description) == [
        *["agent", "env", "tools", "trained_stages", "command", "seed", "figures", "toolagent_pl"]
    ]
    assert (description["agent"], description["seed"]) == (DESCRIPTION["agent"], 3)
    assert Solver.from_checkpoint(folder).solve("2*(3+4)") == solver.solve("2*(3+4)")
    loaded = Solver.from_pretrained(folder)
    assert loaded.solve("2*(3+4)") == solver.solve("2*(3+4)")
    loaded.save_pretrained(tmp_path / "again", seed=4)
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == {**description, "seed": 4}
    with pytest.raises(ValueError, match="facts: got tools, expected names other than"):
        solver.save_pretrained(tmp_path, tools=["DIV"])


def test_loading_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    reader = described(agent={"class_path": "toolagent_pl.agents.Reader"})
    with pytest.raises(ValueError, match="which cannot be built"):
        Solver(reader, WEIGHTS)
    assert torch.equal(torch.rand(3), expected)


def test_tools_of_ones_own_are_found():
    one = Solver(described(tools=["MUL", "tests.commands.scripted.EVIL"]), WEIGHTS)
    assert one.solve("2*(3</script><i>4)").answer == 14


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"agent": None}, "agent: got None, expected class_path, the dotted path of a class"),
        ({"agent": {"class_path": "os"}}, "expected class_path, the dotted path of a class"),
        ({"agent": {"class_path": "toolagent_pl.__main__.main"}}, "expected class_path, the dotted path of a class"),
        ({"agent": {"class_path": "os.system", "init_args": {"command": "x"}}}, "agent: got os.system, which cannot"),
        ({"agent": {"class_path": "toolagent_pl.Solver"}}, "toolagent_pl.Solver, expected a class derived from Agent"),
        ({"agent": {"class_path": "toolagent_pl.agents.No"}}, "agent: got toolagent_pl.agents.No, which cannot be imp"),
        ({"agent": {"class_path": "tests.test_solver.described"}}, "agent: got tests.test_solver.described, which"),
        ({"agent": {"class_path": "toolagent_pl.agents.Agent"}}, "toolagent_pl.agents.Agent, which cannot be built"),
        ({"agent": {"class_path": "toolagent_pl.agents.BlindAgent"}}, "which cannot be built"),
        ({"env": {"class_path": "toolagent_pl.agents.Reader"}}, "expected a class derived from Env"),
        ({"env": {"class_path": "toolagent_pl.CalculatorEnv", "init_args": {"depth": 2}}}, "TypeError: "),
        ({"env": {"class_path": "toolagent_pl.CalculatorEnv", "init_args": [2]}}, "expected arguments by name"),
        ({"tools": ["DIV"]}, "DIV"),
        ({"tools": "MUL"}, "tools: got MUL, expected a list of names"),
        ({"trained_stages": []}, "trained_stages: got [], expected a list of names"),
    ],
)
def test_descriptions_that_make_no_agent_are_refused_in_one_line(parts, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as refused:
        Solver(described(**parts), WEIGHTS)
    assert "\n" not in str(refused.value)


def test_nothing_is_run_that_a_description_names(tmp_path, monkeypatch):
    """A module that does not make such a class is not imported to look."""
    (tmp_path / "trap.py").write_text("open('sprung', 'w')\ndef Agent(spec): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"got trap\.Agent, which cannot be imported"):
        Solver(described(agent={"class_path": "trap.Agent"}), WEIGHTS)
    assert not Path("sprung").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "deep"])
def test_damaged_folders_are_refused_in_one_line(solver, tmp_path, name, damage):
    solver.save_pretrained(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "deep": b"[" * 100_000}[damage])
    with pytest.raises(ValueError, match=r"^ckpt_path: got ") as refused:
        Solver.from_checkpoint(tmp_path)
    assert "\n" not in str(refused.value)


def test_where_no_agent_comes_with_the_package_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("toolagent_pl.saved.PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(ValueError, match="ckpt_path: got none, expected one: no agent comes with this installation"):
        Solver.from_checkpoint()


def test_the_agent_of_the_package_is_loaded_by_default(solver, tmp_path, monkeypatch):
    monkeypatch.setattr("toolagent_pl.saved.PRETRAINED", tmp_path)
    solver.save_pretrained(tmp_path)
    assert Solver.from_checkpoint().solve("2*(3+4)").correct


def test_a_checkpoint_of_a_run_is_loaded_with_its_configuration(run, tmp_path):
    solver = Solver.from_checkpoint(run / "checkpoints" / "last.ckpt")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in solver.agent.state_dict().items():
        assert torch.equal(weight, saved[f"agent.{name}"])
    assert solver.env.max_steps == "auto"
    assert solver.description["trained_stages"] == ["T0", "T1", "T2"]
    solution = solver.solve("2*3+4")
    assert solution.target == 10
    solver.save_pretrained(tmp_path)
    assert Solver.from_checkpoint(tmp_path).solve("2*3+4") == solution
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_checkpoints_that_are_none_are_refused_in_one_line(run, tmp_path):
    checkpoint = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"expected a checkpoint, or a folder with config\.json"):
        Solver.from_checkpoint(checkpoint)
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "last.ckpt", checkpoint)
    with pytest.raises(ValueError, match=r"expected the config\.yaml of its run in"):
        Solver.from_checkpoint(checkpoint)
    config = tmp_path / "version_0" / "config.yaml"
    for text in ("[1, 2", "- 1", "model: {agent: 3}", "!!python/object/apply:os.system [x]", "a: *b"):
        config.write_text(text)
        with pytest.raises(ValueError, match=r"expected the configuration of its run"):
            Solver.from_checkpoint(checkpoint)
    shutil.copy(run / "config.yaml", config)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"expected a checkpoint; this file is something else, or cut short"):
        Solver.from_checkpoint(checkpoint)


def test_an_agent_that_is_told_the_stage_is_refused(trained):
    with pytest.raises(ValueError, match="which is told the stage; expected one that reads expressions"):
        Solver.from_checkpoint(trained / "checkpoints" / "last.ckpt")


def test_the_scripted_agent_plans_as_the_textbook(solver):
    vocabulary = Vocabulary(TOOLS)
    for text in ("1-(2*3-4)", "(1+2)*(3+4)"):
        plan = [vocabulary.name(token) for token in textbook_plan(parse(text, vocabulary).tree)]
        assert list(solver.solve(text).plan) == plan


def test_the_shipped_agent_reads():
    """It is right on held-out expressions, with another plan for another structure, and far beyond its training."""
    number = torch.arange(1000)
    for stage, least in (("E5", 0.999), ("E8", 0.999), ("E12", 0.99)):
        problems = Stages([stage]).draw(number, torch.zeros_like(number), 9, Purpose.TEST, held_out=True)
        vocabulary = Vocabulary()
        texts = [text_of(prompt, vocabulary) for prompt in problems.prompt.tolist()]
        solutions = Solver.from_checkpoint().solve(texts)
        assert sum(solution.correct for solution in solutions) >= least * len(texts)
        assert [solution.target for solution in solutions] == problems.target.tolist()
        assert all(solution.answer == solution.target for solution in solutions if solution.correct)
    assert len({tuple(solution.plan) for solution in solutions}) > 500
