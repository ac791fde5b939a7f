"""Agents on the Hugging Face Hub, from a cache as it lies on a machine without network; and folders without the Hub."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from tests.commands.scripted import DESCRIPTION, WEIGHTS
from toolagent_pl import Solver
from toolagent_pl.saved import PRETRAINED

REVISION = "0" * 40


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


@pytest.mark.parametrize("name", ["someone/else", "no/such/name"])
def test_an_agent_that_is_not_there_is_refused_in_one_line(cache, name):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ValueError, match=f"^name: got {name}, expected a folder, or an agent on the Hub") as refused:
        Solver.from_pretrained(name, cache_dir=cache, local_files_only=True)
    assert "\n" not in str(refused.value)


def test_what_is_pushed_is_what_is_loaded(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import HfApi

    from toolagent_pl.hub import HubSolver

    pushed = tmp_path / "pushed"
    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **__: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, *, folder_path, **__: shutil.copytree(folder_path, pushed))
    solver = HubSolver(DESCRIPTION, WEIGHTS)
    solver.push_to_hub("someone/textbook")
    assert sorted(path.name for path in pushed.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert Solver.from_pretrained(pushed).solve("2*(3+4)") == solver.solve("2*(3+4)")
    assert type(HubSolver.from_pretrained(pushed)) is HubSolver


def test_folders_need_no_hub_and_names_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "toolagent_pl.hub", raising=False)
    assert Solver.from_pretrained(PRETRAINED).solve("2*(3+4)").correct
    with pytest.raises(ValueError, match=r"name: got someone/reader, which is no folder; .* 'toolagent_pl\[hub\]'"):
        Solver.from_pretrained("someone/reader")


def test_the_card_of_the_shipped_agent_follows_from_its_description(tmp_path):
    solver = Solver.from_checkpoint()
    solver.save_pretrained(tmp_path)
    for name in ("README.md", "config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (PRETRAINED / name).read_bytes()
    card = (tmp_path / "README.md").read_text()
    assert "| E16 | 9,998 | 10,000 | 99.98% |  | never trained on |" in card
    assert "| E5 | 100,000 | 100,000 | 100.00% | all of 42 right, 2," in card
    assert "configs/expressions.yaml`, seed 0." in card


@pytest.mark.parametrize("figures", [None, 3, {"E5": None}, {"E5": {"right": 3}}, {"E5": {"right": 1, "tried": 0}}])
def test_figures_that_are_none_leave_the_card_without_results(tmp_path, figures):
    Solver(DESCRIPTION, WEIGHTS).save_pretrained(tmp_path, figures=figures)
    assert "## Results" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("worst", "cell"),
    [
        ({"shape": "((..).)", "right": 190, "tried": 200}, "`((..).)`: 95.00% of 200"),
        ({"shape": "`<script>`", "right": 190, "tried": 200}, ""),  # a folder may come from anyone
        ({"shape": "((..).)", "right": "190", "tried": 200}, ""),
        ("((..).)", ""),
    ],
)
def test_the_worst_shape_of_a_stage_is_on_the_card(tmp_path, worst, cell):
    figures = {"E2": {"right": 390, "tried": 400, "shapes": 2, "worst": worst}}
    Solver(DESCRIPTION, WEIGHTS).save_pretrained(tmp_path, figures=figures)
    assert f"| E2 | 390 | 400 | 97.50% | {cell} |" in (tmp_path / "README.md").read_text()
