"""Configurations that come from anyone: they run no code but the classes that they name."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import BLIND
from tests.test_cli import error_of
from toolagent_pl.cli import main
from toolagent_pl.configuration import load_yaml

SENTINEL = "sentinel"
OPTIONS = [BLIND, "--trainer.accelerator=cpu", "--trainer.fast_dev_run=true"]
MODULE = """
def function(*args, **kwargs):
    open("sentinel", "w")

def maker(stages: int = 3) -> "toolagent_pl.agents.Agent":
    open("sentinel", "w")

class Foreign:
    def __init__(self, *args, **kwargs):
        open("sentinel", "w")

    def __call__(self, *args, **kwargs):
        open("sentinel", "w")
"""


@pytest.fixture(autouse=True)
def directory_with_foreign_code(tmp_path, monkeypatch):
    (tmp_path / "foreign_code.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def refusal(capsys, text: str | bytes) -> str:
    """The one line that a configuration is refused with."""
    Path("config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    line = error_of(capsys, "fit", *OPTIONS, "--config=config.yaml")
    assert not Path(SENTINEL).exists()
    return line


def nested(option: str, value: object) -> str:
    for key in reversed(option.split(".")):
        value = {key: value}
    return yaml.safe_dump(value)


PLACES = ["model.agent", "model.env", "model.reward", "model.algorithm", "optimizer", "lr_scheduler"]
PLACES += ["trainer.callbacks", "trainer.logger", "trainer.plugins", "trainer.strategy", "trainer.accelerator"]
PLACES += ["trainer.profiler"]
SHELL = {"class_path": "os.system", "init_args": {"command": f"touch {SENTINEL}"}}
THINGS = {
    "shell": SHELL,
    "process": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", SENTINEL]}},
    "function": {"class_path": "foreign_code.function"},
    "maker": {"class_path": "foreign_code.maker", "init_args": {}},
    "class": {"class_path": "foreign_code.Foreign"},
    "path": "foreign_code.function",
    "path of a class": "foreign_code.Foreign",
}


@pytest.mark.parametrize(
    ("place", "thing"),
    [("model.agent", thing) for thing in THINGS]
    + [(place, thing) for place in PLACES[1:] for thing in ("shell", "path")],
)
def test_nothing_is_called_that_is_no_part_of_a_run(capsys, place, thing):
    assert place.split(".")[-1] in refusal(capsys, nested(place, THINGS[thing]))
    if place in ("trainer.callbacks", "trainer.logger", "trainer.plugins"):
        assert place in refusal(capsys, nested(place, [THINGS[thing]]))


@pytest.mark.parametrize("thing", ["path", "class", "shell"])
def test_nothing_is_called_for_a_part_either(capsys, thing):
    callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": THINGS[thing]}}
    assert "trainer.callbacks" in refusal(capsys, nested("trainer.callbacks", [callback]))


@pytest.mark.parametrize("option", ["--model.agent=os.system", "--model.reward=builtins.eval", "--optimizer=os.system"])
def test_nor_is_what_the_command_line_names(capsys, option):
    assert f"{option[2:].split('=')[0]}: got {option.split('=')[1]}, expected" in error_of(capsys, "fit", option)


def test_a_class_of_the_right_kind_is_called():
    Path("right_kind.py").write_text(
        "from toolagent_pl.learning import OutcomeReward\n"
        "class Mine(OutcomeReward):\n"
        "    def __init__(self, weight: float = 1.0):\n"
        "        open('sentinel', 'w')\n"
    )
    Path("config.yaml").write_text(
        nested("model.reward", {"class_path": "right_kind.Mine", "init_args": {"weight": 2}})
    )
    main(["fit", *OPTIONS, "--config=config.yaml", "--data.batch_size=8", "--data.val_problems=1"])
    assert Path(SENTINEL).exists()


EVIL = """
open("sentinel", "w")
import os
from toolagent_pl.learning import OutcomeReward

class X: pass

class Outer:
    class Inner(OutcomeReward): pass

def function(*args): pass
"""


@pytest.mark.parametrize(
    ("option", "name"),
    [("model.reward", name) for name in ("X", "function", "Outer", "Inner", "Outer.Inner", "os.system", "nothing")]
    + [(option, name) for option in ("trainer.callbacks", "data.tools", "optimizer") for name in ("X", "function")],
)
def test_a_module_that_makes_no_part_of_a_run_is_not_imported(capsys, option, name):
    """It is read, and found to make no class that derives from something, and no tool, of that name."""
    Path("evil.py").write_text(EVIL)
    value = f"[evil.{name}]" if option == "data.tools" else f"evil.{name}"
    assert error_of(capsys, "fit", *OPTIONS, f"--{option}={value}").startswith(f"error: {option}: got ")
    assert not Path(SENTINEL).exists()
    assert option in refusal(capsys, nested(option, [f"evil.{name}"] if option == "data.tools" else f"evil.{name}"))
    assert "evil" not in sys.modules


OWN = """
from toolagent_pl.learning import OutcomeReward
from toolagent_pl.tools import Tool
import torch

class Mine(OutcomeReward): pass

MAX = Tool("MAX", "max", 3, torch.maximum)
MIN: Tool = Tool("MIN", "min", 3, torch.minimum)
"""


@pytest.mark.parametrize("file", ["own.py", "own/parts.py", "own/__init__.py"])
def test_modules_and_packages_of_ones_own_are_used(monkeypatch, capsys, file):
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        monkeypatch.delitem(sys.modules, name)
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(OWN)
    path = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    options = [f"--model.reward={path}.Mine", f"--data.tools=[MUL,ADD,SUB,{path}.MAX,{path}.MIN]"]
    options += ["--data.stages=[{name: T3, pattern: 'max(a,b)-min(c,d)'}]", "--data.batch_size=8"]
    main(["fit", *OPTIONS, *options, "--data.val_problems=2", "--model.agent.d=8"])
    with pytest.raises(SystemExit):
        main(["fit", *OPTIONS, *options, "--print_config"])
    assert f"class_path: {path}.Mine" in capsys.readouterr().out


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
UNREADABLE = {
    "object": f"!!python/object/apply:os.system ['touch {SENTINEL}']",
    "object as a value": f"seed_everything: !!python/object/apply:os.system ['touch {SENTINEL}']",
    "name": "model: {agent: !!python/name:os.system}",
    "many brackets": "[" * 100_000,
    "many braces": "model: " + "{a: " * 1000 + "1" + "}" * 1000,
    "many dashes": "- " * 100_000,
    "aliases of aliases": ALIASES,
    "within itself": "&a\nmodel: *a\n",
    "deep within itself": "model: &a\n  agent: {b: *a}\n",
    "too long": "a: " + "x" * 1_100_000,
    "digits": "seed_everything: " + "9" * 5000,
    "hexadecimal digits": "seed_everything: 0x" + "f" * 5000,
    "bytes": bytes(range(256)),
    "no UTF-8": b"seed_everything: \xff\xfe\n",
    "UTF-16": "seed_everything: 3\n".encode("utf-16"),
    "empty": "",
    "list": "[1, 2]",
    "text": "hello",
    "question mark": "?",
    "key again": "trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}",
    "key again, deeper": "data: {stages: [T0], unseen: [{name: x, pattern: a-b, name: y}]}",
    "itself": "config: config.yaml",
    "a configuration that is none": "config: {class_path: 1}",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_refused(capsys, kind):
    line = refusal(capsys, UNREADABLE[kind])
    assert line.startswith("error: config: ")
    assert len(line) <= 1100


@pytest.mark.parametrize("group", ["model", "trainer", "data", "curriculum"])
@pytest.mark.parametrize("value", [4, None, [{"seed": 1}]])
def test_a_group_of_options_is_not_a_value(capsys, group, value):
    got = "no stages" if group == "data" else value
    assert f"error: {group}: got {got}, expected options and their values" == refusal(capsys, nested(group, value))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.batch_size", 1e30),
        ("data.batch_size", 10**30),
        ("data.eval_batch_size", 10**30),
        ("data.batches_per_epoch", 10**30),
        ("data.num_workers", 10**9),
        ("model.agent.init_args.d", 10**9),
        ("model.learning_rate", float("inf")),
        ("model.learning_rate", float("nan")),
        ("seed_everything", float("nan")),
        ("seed_everything", 10**30),
        ("samples.per_stage", -(10**30)),
        ("samples.per_stage", 3_000_000),
        ("pictures.per_stage", 3_000_000),
        ("model.algorithm.init_args.epochs", 2_000_000_000),
        ("trainer.devices", 10**9),
        ("trainer.num_nodes", 10**9),
    ],
)
def test_numbers_out_of_all_bounds_are_refused(capsys, option, value):
    config = nested(option, value)
    if "algorithm" in option:
        config = nested("model.algorithm", {"class_path": "PPO", "init_args": {"epochs": value}})
    if "agent" in option:
        config = nested("model.agent", {"class_path": "BlindAgent", "init_args": {"d": value}})
    assert option.replace(".init_args", "") in refusal(capsys, config)


def test_aliases_within_bounds_are_read():
    assert load_yaml("a: &x {b: 1}\nc: [*x, *x]\nd: {<<: *x}") == {"a": {"b": 1}, "c": [{"b": 1}] * 2, "d": {"b": 1}}
