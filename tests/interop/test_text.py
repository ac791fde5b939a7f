"""The text environment says in words what the calculator does."""

import inspect
import random
import re
import subprocess
import sys

import pytest
import torch

from tests.strategies import MAX, PLAIN, WITH_MAX
from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.expression import text_of
from toolagent_pl.envs.calculator.tools import TOOLS, Tool
from toolagent_pl.interop.text import dataset, prompt, reference_calls, text_calculator
from toolagent_pl.rl.env import PADDING, execute

STAGES = ["T2", "E1", "E4", "E7"]
NOTHING = {"empty", "none"}


def spoken(report, feedback):
    """Accumulator, flags and positions that a report tells, as those of an observation."""
    parts = dict(part.split(": ", 1) for part in report.split(".")[0].split("; ") if ": " in part)
    said = {key: [*value.split(", ends at "), "-1"][:2] for key, value in parts.items()}
    accumulator, end = said["accumulator"]
    value = None if accumulator == "empty" else int(accumulator)
    flags, positions = [], []
    if feedback != "none":
        held = [said[key][0] not in NOTHING for key in ("accumulator", "left operand", "memory")]
        flags = [*held, "does not apply" not in report]
    if feedback in ("position", "spans"):
        following = said["next operand"][0]
        positions = [-1 if following == "none" else int(following.removeprefix("at "))]
    if feedback == "spans":
        positions += [int(end), int(said["memory"][1]), int(said["left operand"][1])]
    return value, flags, positions


def plans(environment, episode, rng):
    """Calls for the problem that an episode was reset to: the reference plan, it with errors, or anything."""
    calls, kind = reference_calls(episode), rng.randrange(3)
    if kind == 1:
        calls.insert(rng.randrange(len(calls)), rng.choice(list(environment._tools)))
    return calls if kind < 2 else rng.choices(list(environment._tools), k=30)


@pytest.mark.parametrize("feedback", ["none", "flags", "position", "spans"])
def test_values_reports_rewards_and_lengths_are_those_of_the_calculator(feedback):
    """500 episodes with each feedback, 2,000 in all."""
    options = {"feedback": feedback, "tools": WITH_MAX, "memory_depth": 2}
    environment, env = text_calculator(STAGES, held_out=True, **options), CalculatorEnv(STAGES, **options)
    number, rng, episode = torch.arange(500), random.Random(0), environment()
    problems = env.problems(number, number % len(STAGES), seed=3, held_out=True)
    actions, told, ends = [], [], []
    for row, prompt_tokens in enumerate(problems.prompt.tolist()):
        report = episode.reset(number=row, stage=STAGES[row % len(STAGES)], seed=3, another_column="x")
        expression, limit, report = report.split("\n")
        assert expression == f"Expression: {text_of(prompt_tokens, env.vocabulary)}"
        assert limit == f"Calls: at most {env.reset(problems).limit[row]}"
        reports, calls = [report], []
        for name in plans(environment, episode, rng):
            reports.append(getattr(episode, name)())
            calls.append(environment._tools[name])
            if episode.done:
                break
        told.append(reports)
        actions.append(calls)
        ends.append((episode.reward, len(calls), episode.done))
    longest = max(map(len, actions))
    padded = torch.tensor([[*calls, *[PADDING] * (longest - len(calls))] for calls in actions])
    states = execute(env, problems, padded)
    observed = [(s.value.tolist(), s.valued.tolist(), *(o.tolist() for o in env.observe(s))) for s in states]
    last = states[-1]
    over = (last.terminated | last.truncated).tolist()
    for row, reports in enumerate(told):
        assert ends[row] == (float(env.solved(last)[row]), int(last.steps[row]), over[row])
        for step, report in enumerate(reports):
            if report.startswith("Answered"):
                assert report.endswith("right.") == (ends[row][0] == 1.0)
                continue
            values, valued, flags, positions = observed[step]
            expected = values[row] if valued[row] else None, flags[row], positions[row]
            assert spoken(report, feedback) == expected
    assert env.solved(last).sum() > 100
    assert last.truncated.sum() > 10


def test_every_public_method_but_reset_is_a_tool_with_a_type_and_a_docstring():
    environment = text_calculator(["E1"], tools=["ADD", MAX])
    methods = dict(inspect.getmembers(environment, inspect.isfunction))
    public = {name: method for name, method in methods.items() if not name.startswith("_") and name != "reset"}
    assert set(public) == {"add", "max", "answer", "store", "recall"}
    for method in public.values():
        assert inspect.signature(method).return_annotation is str
        assert "Returns:" in method.__doc__
        assert method.__doc__.split("\n")[0] in prompt(environment)
    assert inspect.signature(environment).parameters == {}


def test_a_tool_of_ones_own_is_called_by_its_name():
    episode = text_calculator(["E1"], tools=WITH_MAX)()
    assert episode.reset(expression="max(2,7)+1").startswith("Expression: 2 max 7+1\n")
    assert (episode.max(), episode.add()) == (
        "accumulator: 7; left operand: none; memory: empty.",
        "accumulator: 8; left operand: none; memory: empty.",
    )
    assert episode.answer() == "Answered 8: right."
    assert (episode.reward, episode.done) == (1.0, True)


def test_without_values_no_number_of_the_calculation_is_told():
    episode = text_calculator(["E1"], values=False, feedback="flags")()
    told = episode.reset(expression="77*77").split("\n", 2)[2]
    told += episode.multiply() + episode.add() + episode.answer()
    assert not re.search(r"\d", told)
    assert "does not apply" in told


def test_after_the_end_calls_are_refused_and_a_limit_ends_an_episode():
    episode = text_calculator(["E1"], max_steps=2)()
    with pytest.raises(ValueError, match="until it is reset"):
        episode.add()
    episode.reset(expression="1+2")
    episode.recall()
    assert episode.recall().endswith("The limit of 2 calls is reached: the episode is over.")
    with pytest.raises(ValueError, match="The episode is over"):
        episode.answer()
    assert (episode.reward, episode.done) == (0.0, True)
    episode.reset(expression="1+2")
    assert not episode.done


def test_rows_of_a_data_set_are_problems_of_a_run_and_held_out_ones_never_are():
    environment, others = text_calculator(["E1"]), text_calculator(["E1"], held_out=True)
    rows = dataset(environment, 300, seed=5)
    assert rows[0]["prompt"] == [{"role": "user", "content": prompt(environment)}]
    expected = CalculatorEnv(["E1"]).problems(torch.arange(300), torch.zeros(300, dtype=torch.int64), 5, held_out=False)
    episode, held = environment(), others()
    seen = [episode.reset(**row).split("\n")[0] for row in rows]
    assert seen == [f"Expression: {text_of(tokens, PLAIN)}" for tokens in expected.prompt.tolist()]
    assert not set(seen) & {held.reset(**row).split("\n")[0] for row in dataset(others, 300)}
    assert {row["stage"] for row in dataset(text_calculator(["E1", "E2"]), 20)} == {"E1", "E2"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "number: got none, expected one, or an expression"),
        ({"number": -1}, "number: got -1, expected a whole number from 0"),
        ({"number": "3"}, "number: got '3', expected a whole number from 0"),
        ({"number": 3, "stage": "E9"}, "stage: got 'E9', expected E1, E2, E3"),
        ({"expression": "1+"}, "expression '1\\+': ends where an operand should be"),
    ],
)
def test_a_problem_that_is_not_there_is_refused_by_name_and_the_episode_goes_on(columns, message):
    episode = text_calculator()()
    episode.reset(expression="1+2")
    with pytest.raises(ValueError, match=message):
        episode.reset(**columns)
    assert episode.add().startswith("accumulator: 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [*TOOLS, Tool("RESET", "!", 1, torch.add)]}, "tools: got methods .*reset.*, expected names"),
        ({"tools": [*TOOLS, Tool("ANSWER", "!", 1, torch.add)]}, "tools: got methods .*answer.*, expected names"),
        ({"stages": ["E3"], "max_steps": 3}, "max_steps: got 3, expected at least 8"),
    ],
)
def test_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        text_calculator(**options)


def test_it_needs_nothing_but_this_package():
    code = (
        "import sys, toolagent_pl.interop.text; print({'trl', 'transformers', 'openenv', 'gymnasium'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
