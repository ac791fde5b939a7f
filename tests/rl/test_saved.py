"""Agents in files: what is written is read, built and shown; what cannot be is refused in one line; the Hub."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.envs.calculator.scripted import READER, scripted, untrained
from toolagent_pl import Solver
from toolagent_pl.envs.calculator.solver import PRETRAINED
from toolagent_pl.rl.saved import FILES, SavedAgent, build, read

REVISION = "0" * 40
CALCULATOR = READER["env"]["class_path"]


@pytest.fixture(scope="module")
def weights():
    return untrained().agent.state_dict()


@pytest.fixture
def run(tmp_path, weights):
    """The folder of a run, as far as it says what the agent is."""
    folder = tmp_path / "version_0"
    (folder / "checkpoints").mkdir(parents=True)
    state = {**{f"agent.{name}": weight for name, weight in weights.items()}, "other": torch.zeros(2)}
    torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")
    config = {"seed_everything": 3, "env": READER["env"], "model": {"agent": READER["agent"], "seed": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_saved_agent_is_loaded_again(tmp_path):
    solver, folder = scripted(), tmp_path / "new" / "folder"
    figures = {"E5": {"right": 3, "tried": 4}}
    solver.save_pretrained(folder, command="fit", seed=3, figures=figures)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    description = json.loads((folder / "config.json").read_text())
    assert list(description) == ["env", "agent", "command", "seed", "figures", "toolagent_pl"]
    assert (description["agent"], description["seed"]) == (solver.description["agent"], 3)
    loaded = Solver.from_pretrained(folder, allow_custom=True)
    assert loaded.solve("2*(3+4)") == solver.solve("2*(3+4)")
    loaded.save_pretrained(folder, overwrite=True, seed=4)
    assert json.loads((folder / "config.json").read_text()) == {**description, "seed": 4}
    with pytest.raises(ValueError, match="facts: got env, expected names other than"):
        solver.save_pretrained(tmp_path, env="mine.Room")


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_replaced(tmp_path, file):
    (tmp_path / file).write_text("precious")
    with pytest.raises(ValueError, match=f"^directory: got .*{file}, which is there already; .* or overwrite=True$"):
        scripted().save_pretrained(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_code_from_outside_of_the_package_runs_only_on_demand(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("open('sprung', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    env = READER["env"]
    for description in (
        {**READER, "agent": {"class_path": "trap.Agent"}},
        {**READER, "env": {"class_path": "trap.Env"}},
        {**READER, "env": {**env, "init_args": {"tools": ["MUL", "trap:MAX"]}}},
        {**READER, "agent": {**READER["agent"], "init_args": {"parts": [{"of": "trap.Part"}]}}},
    ):
        with pytest.raises(ValueError, match=r"^agent: got trap.*, code from outside of toolagent_pl; .* --allow_cust"):
            build(SavedAgent(description, {}))
    with pytest.raises(ValueError, match="tools: got trap, expected MUL, ADD, SUB or the path of a Tool"):
        build(SavedAgent({**READER, "env": {**env, "init_args": {"tools": ["trap"]}}}, {}))
    assert not Path("sprung").exists()
    with pytest.raises(ValueError, match=r"agent: got trap\.Agent, which cannot be built \(AttributeError"):
        build(SavedAgent({**READER, "agent": {"class_path": "trap.Agent"}}, {}), allow_custom=True)
    assert Path("sprung").exists()


def test_tools_and_stages_of_ones_own_are_found(tmp_path):
    tools = ["MUL", "tests.envs.calculator.scripted.EVIL"]
    stages = [{"name": "X", "pattern": "a*(b</script><i>c)"}, "E2"]
    scripted(tools=tools, stages=stages).save_pretrained(tmp_path)
    loaded = Solver.from_pretrained(tmp_path, allow_custom=True)
    assert loaded.env.stages == ("X", "E2")
    assert loaded.solve("2*(3</script><i>4)").answer == 14


def test_loading_leaves_the_random_numbers_of_others_alone(weights):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build(SavedAgent(READER, weights))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"env": None}, "env: got None, expected class_path and init_args of a class"),
        ({"agent": {"class_path": "toolagent_pl.rl.saved.os.system"}}, "expected a class derived from Agent"),
        ({"agent": {"class_path": "toolagent_pl.No"}}, "agent: got toolagent_pl.No, which cannot be built"),
        ({"agent": {"class_path": "toolagent_pl.rl.MLPAgent"}}, "agent: got weights that do not fit MLPAgent"),
        ({"env": {"class_path": "toolagent_pl.envs.calculator.Reader"}}, "expected a class derived from Env"),
        ({"env": {"class_path": CALCULATOR, "init_args": {"depth": 2}}}, "TypeError: "),
        ({"env": {"class_path": CALCULATOR, "init_args": [2]}}, "expected class_path and init_args of a class"),
        ({"env": {"class_path": CALCULATOR, "init_args": {"tools": ["DIV"]}}}, "tools: got DIV"),
    ],
)
def test_descriptions_that_make_no_agent_are_refused_in_one_line(weights, parts, expected):
    with pytest.raises(ValueError, match=re.escape(expected)) as refused:
        build(SavedAgent({**READER, **parts}, weights))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[" * 100_000])
def test_damaged_folders_are_refused_in_one_line(tmp_path, name, content):
    untrained().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^ckpt_path: got ") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_a_run_is_loaded_with_its_configuration(run, weights):
    found = read(run / "checkpoints" / "last.ckpt")
    assert found.description == {**READER, "seed": 3}
    agent, env = build(found)
    assert env.stages == ("E5",)
    assert all(torch.equal(weight, weights[name]) for name, weight in agent.state_dict().items())
    assert not agent.training


def test_no_agent_stands_for_that_of_the_environment(weights):
    tutorial = {"class_path": "toolagent_pl.TutorialEnv", "init_args": {"stages": ["T0"]}}
    with pytest.raises(ValueError, match="agent: got weights that do not fit BlindAgent"):
        build(SavedAgent({"env": tutorial, "agent": None}, weights))


def test_checkpoints_that_are_none_are_refused_in_one_line(run):
    checkpoint, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    endless = "model: {agent: 1}\nenv: &a [*a]"
    odd = ["[1, 2", "- 1", "model: {agent: 3}", "!!python/object/apply:os.system [x]", "a: *b", "[" * 5000]
    for text in (*odd, endless):
        config.write_text(text)
        with pytest.raises(ValueError, match=r"expected a run's checkpoint and configuration"):
            read(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"expected a checkpoint; this file is something else, or cut short"):
        read(checkpoint)
    config.unlink()
    with pytest.raises(ValueError, match=r"expected the config\.yaml of its run in"):
        read(checkpoint)
    with pytest.raises(ValueError, match=r"expected a checkpoint, or a folder with config\.json"):
        read(run / "checkpoints" / "first.ckpt")


def test_the_card_of_the_shipped_agent_follows_from_its_description(tmp_path):
    Solver.from_checkpoint().save_pretrained(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (PRETRAINED / name).read_bytes()
    card = (tmp_path / "README.md").read_text()
    assert "| E20 | 9,998 | 10,000 | 99.98% |  | never trained on |" in card
    assert "| E5 | 100,000 | 100,000 | 100.00% | all of 42 shapes right, 2," in card
    assert "Reads a tape of operands from left to right" in card
    assert "configs/expressions.yaml`, seed 0." in card


def test_without_figures_the_card_has_no_results(tmp_path):
    untrained().save_pretrained(tmp_path, figures=None)
    assert "## Results" not in (tmp_path / "README.md").read_text()


# The Hub, from a cache as it lies on a machine without network; and folders without the Hub.


@pytest.fixture
def cache(tmp_path):
    """What the Hub's client keeps of an agent that it has downloaded."""
    repository = tmp_path / "cache" / "models--someone--reader"
    shutil.copytree(PRETRAINED, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return tmp_path / "cache"


def test_an_agent_is_loaded_by_its_name_without_network(cache):
    pytest.importorskip("huggingface_hub")
    solver = Solver.from_pretrained("someone/reader", cache_dir=cache, local_files_only=True)
    assert solver.solve("2*(3+4)") == Solver.from_checkpoint().solve("2*(3+4)")
    assert solver.description == Solver.from_checkpoint().description
    with pytest.raises(OSError, match="local"):
        Solver.from_pretrained("someone/else", cache_dir=cache, local_files_only=True)


def test_what_is_pushed_is_what_is_loaded(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    pushed, made = tmp_path / "pushed", []
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda _, repo_id, **__: made.append(repo_id))
    monkeypatch.setattr(
        hub.HfApi, "upload_folder", lambda _, *, folder_path, **__: shutil.copytree(folder_path, pushed)
    )
    solver = scripted()
    solver.push_to_hub("someone/scripted", license="MIT")
    assert made == ["someone/scripted"]
    assert sorted(path.name for path in pushed.iterdir()) == sorted(FILES)
    loaded = Solver.from_pretrained(pushed, allow_custom=True)
    assert (loaded.solve("2*(3+4)"), loaded.description["license"]) == (solver.solve("2*(3+4)"), "MIT")


def test_folders_need_no_hub_and_names_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert Solver.from_pretrained(PRETRAINED).solve("2*(3+4)").correct
    with pytest.raises(ValueError, match=r"name: got someone/reader, which needs .* 'toolagent_pl\[hub\]'"):
        Solver.from_pretrained("someone/reader")
    with pytest.raises(ValueError, match=r"'toolagent_pl\[hub\]'"):
        scripted().push_to_hub("someone/reader")
