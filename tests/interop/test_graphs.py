"""Exported graphs: the same plans as PyTorch, token for token, for any sizes; or a refusal in one line."""

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolagent_pl import Solver
from toolagent_pl.envs.calculator import CalculatorEnv, Problems, Reader, TransformerReader
from toolagent_pl.envs.calculator.expression import text_of
from toolagent_pl.envs.calculator.stages import Stages
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.interop import graphs as export
from toolagent_pl.rl import Policy, collect

SCRIPT = Path(__file__).parents[2] / "examples" / "solve_onnx.py"
ENV = CalculatorEnv(["T0", "T1", "T2"])
AGENTS = {
    "Reader": lambda: Reader(ENV),
    "Reader, recurrent": lambda: Reader(ENV, recurrent=True),
    "TransformerReader": lambda: TransformerReader(ENV, d=16, heads=2),
    "BlindAgent": lambda: BlindAgent(ENV),
}
ALL = [*((name, "onnx") for name in AGENTS), ("Reader", "torch"), ("TransformerReader", "torch")]
CASES = ALL[1:5]  # each agent in one format; the one that comes with the package is a Reader for ONNX
LONE = ["7", "42"]  # a tape of one operand, a prompt of two tokens
MIXED = ["1-2", "(1+2)*(34-5)", "9", "1-(2-(3-(4-(5-6*7))))"]


def drawn(stage, count):
    number = torch.arange(count)
    return Stages([stage]).draw(number, torch.zeros_like(number), 5, held_out=True)


def plans(agent, problems):
    """How many different ones the agent has for them."""
    return len(collect(agent, ENV, problems).visible_actions.unique(dim=0))


@functools.cache
def traced(name):
    """An agent with random weights, made larger so that its plans differ, and its graphs, which share these weights."""
    torch.manual_seed(1)
    agent = AGENTS[name]().eval()
    with torch.no_grad():
        agent.policy.weight.mul_(30)
    return agent, export.trace(agent, ENV)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The agent of the package, and a folder with its graphs."""
    pytest.importorskip("onnxruntime")
    solver, folder = Solver.from_checkpoint(), tmp_path_factory.mktemp("shipped")
    export.write(export.trace(solver.agent, solver.env), solver.agent, solver.env, folder, "onnx")
    return solver, folder


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_graphs_give_the_same_plans(tmp_path, name, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    agent, graphs = traced(name)
    export.write(graphs, agent, ENV, tmp_path, kind)
    assert plans(agent, drawn("E5", 500)._replace(stage=torch.arange(500) % 3)) >= 10
    assert export.compare(agent, ENV, tmp_path, kind) == 2500
    other = export.GraphAgent(ENV, tmp_path, kind)
    several = () if name == "BlindAgent" else (LONE, MIXED)  # it knows no numbers of two digits
    for texts in (*several, LONE[:1], MIXED[-1:]):
        problems = Problems.from_expressions(texts)
        problems = problems._replace(stage=torch.arange(len(texts)) % 3)
        assert export.different(agent, other, ENV, problems) == 0
    changed = copy.deepcopy(agent)
    with torch.no_grad():
        changed.policy.bias[0] += 100
    with pytest.raises(ValueError, match=rf"whose {kind} graphs give other plans for \d+ of 500 problems"):
        export.compare(changed, ENV, tmp_path, kind)


def test_a_file_beside_the_graphs_tells_what_they_take(tmp_path):
    agent, graphs = traced("Reader")
    export.write(graphs, agent, ENV, tmp_path, "torch")
    facts = json.loads((tmp_path / "graphs.json").read_text())
    assert facts["actions"] == ["MUL", "ADD", "SUB", "ANS", "STO", "RCL"]
    prefill, decode = facts["graphs"]["prefill"], facts["graphs"]["decode"]
    assert prefill["inputs"][1] == {"name": "prompt", "dtype": "int64", "shape": ["batch", "prompt"]}
    assert [one["name"] for one in decode["inputs"][3:]] == [one["name"] for one in prefill["outputs"]]
    assert decode["outputs"][0] == {"name": "logits", "dtype": "float32", "shape": ["batch", 6]}
    assert [x["shape"] for x in prefill["outputs"][:2]] == [["batch", "cache_0_1", 21], ["batch", "cache_1_1", 9]]


def assert_script_plans_as(solver, folder, texts):
    words = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(words, input="\n".join(texts), capture_output=True, text=True, check=True)
    expected = [f"{one.expression} = {list(one.plan)} {one.answer}" for one in solver.solve(texts)]
    assert done.stdout.splitlines() == expected


def written(stage, count, solver):
    return [text_of(prompt, solver.env.vocabulary) for prompt in drawn(stage, count).prompt.tolist()]


def test_the_script_without_torch_gives_the_plans_of_the_solver(shipped):
    solver, folder = shipped
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 70
    assert "torch" not in text.replace("PyTorch", "")
    mixed = [text for text in MIXED if text != "9"]
    texts = [*mixed, "((1))+007*(3)", *written("E5", 150, solver), *written("E12", 20, solver)]
    assert_script_plans_as(solver, folder, texts)


def test_the_script_refuses_in_one_line_what_is_no_expression(shipped):
    for text in ("1/0", "(1+2", "7"):
        words = [sys.executable, str(SCRIPT), str(shipped[1]), "1+2", text]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "1+2 = ['ADD', 'ANS'] 3\n")
        assert done.stderr == f"error: got {text!r}, expected an expression of whole numbers, * + -, and brackets\n"


def test_the_graphs_of_the_shipped_agent_give_its_plans(shipped):
    solver, folder = shipped
    other = export.GraphAgent(solver.env, folder, "onnx")
    for texts in (LONE, MIXED, LONE[:1], MIXED[-1:]):
        assert export.different(solver.agent, other, solver.env, Problems.from_expressions(texts)) == 0
    for stage, count in (("E5", 2000), ("E12", 200)):
        assert export.different(solver.agent, other, solver.env, drawn(stage, count)) == 0


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_ten_thousand_expressions_for_each_agent(tmp_path, name, kind):
    agent, graphs = traced(name)
    export.write(graphs, agent, ENV, tmp_path, kind)
    other = export.GraphAgent(ENV, tmp_path, kind)
    problems = drawn("E5", 10_000)._replace(stage=torch.arange(10_000) % 3)
    assert plans(agent, problems) >= 20  # that they are the same says something
    assert export.different(agent, other, ENV, problems) == 0


@pytest.mark.long
def test_ten_thousand_expressions_of_each_length_and_mixed_ones(shipped):
    solver, folder = shipped
    other, mixed = export.GraphAgent(solver.env, folder, "onnx"), []
    for stage in ("E1", "E2", "E3", "E5", "E8", "E12", "E20"):
        assert export.different(solver.agent, other, solver.env, drawn(stage, 10_000)) == 0
        mixed += written(stage, 1000, solver)
    problems = Problems.from_expressions(mixed)
    assert export.different(solver.agent, other, solver.env, problems) == 0
    assert_script_plans_as(solver, folder, [*written("E5", 10_000, solver), *mixed])


class Clairvoyant(Reader):
    """Looks at the answer."""

    def prefill(self, problems):
        return super().prefill(problems._replace(prompt_length=problems.target))


class Counting(Reader):
    """Computes with the batch as a number of Python."""

    def decode(self, cache, previous, observation):
        policy, cache = super().decode(cache, previous, observation)
        return Policy(policy.logits * len(previous), policy.value), cache


@pytest.mark.parametrize("kind", [Clairvoyant, Counting])
def test_what_cannot_be_exported_is_refused_in_one_line(kind):
    with pytest.raises(ValueError, match=f"agent: got {kind.__name__}, which cannot be exported") as refused:
        export.trace(kind(ENV).eval(), ENV)
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_named_before_anything_is_made(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match=r"which needs onnxscript; .* 'toolagent_pl\[export\]'"):
        export.check_installed("onnx")
    export.check_installed("torch")
