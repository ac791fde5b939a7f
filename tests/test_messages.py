"""One line that names the option, the value, and what is accepted, whatever a library says in many."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import BLIND, CONFIGS, SHORT
from tests.test_cli import error_of
from toolagent_pl.cli import main
from toolagent_pl.messages import LONGEST_LINE, one_line
from toolagent_pl.ranks import check_meeting_place

OWN = """
from toolagent_pl.agents import BlindAgent
from toolagent_pl.learning import A2C, OutcomeReward

class Reward(OutcomeReward):
    def __init__(self):
        {}["weight"]

class Agent(BlindAgent):
    def __init__(self, spec, d: int = 8):
        {}["weight"]

class Algorithm(A2C):
    def __init__(self, gamma: float = 1.0):
        raise AttributeError("gamma")
"""
ADAM = "--optimizer=Adam"


@pytest.fixture(autouse=True)
def directory_with_own_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_keys", raising=False)
    Path("own_keys.py").write_text(OWN)
    Path("file").write_text("")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # Of a class: options that it has not, that it needs, of another type.
        (
            ["--model.agent.stages=1"],
            "model.agent.stages: got 1, expected an option of BlindAgent, which has d, actions",
        ),
        (["--model.reward.scal=2"], "model.reward.scal: got 2, expected an option of OutcomeReward, which has none"),
        (
            ["--model.reward=ProgressReward", "--model.reward.scal=2"],
            "model.reward.scal: got 2, expected an option of ProgressReward, which has weight, potential",
        ),
        (
            ["--model.env={class_path: CalculatorEnv, init_args: {nope: all}}"],
            "model.env.nope: got all, expected an option of CalculatorEnv, which has max_steps, memory_depth, feedback",
        ),
        (
            ["--config={model: {agent: {class_path: BlindAgent, init_args: {nope: 3}}}}"],
            "model.agent.nope: got 3, expected an option of BlindAgent, which has d, actions, context",
        ),
        (
            ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.nope=3"],
            "trainer.callbacks.nope: got 3, expected an option of ModelCheckpoint, which has dirpath, filename",
        ),
        # Options of a class that another one takes the place of.
        (
            ["--model.agent.d=16", "--model.agent=Reader"],
            "model.agent.d: got 16, expected an option of Reader, which has counters, symbols, scores",
        ),
        (
            [
                "--model.algorithm.ent_coef",
                "0.1",
                "--model.algorithm",
                "TutorialA2C",
                "--model.algorithm=own_keys.Algorithm",
            ],
            "model.algorithm.ent_coef: got 0.1, expected an option of Algorithm, which has ",
        ),
        (
            ["--model.replay=SuccessReplay", "--model.replay.batch_size=4", "--model.replay=null"],
            "model.replay.batch_size: got 4, expected an option of a class, named by --model.replay=CLASS",
        ),
        ([ADAM, "--lr_scheduler=CosineAnnealingLR"], "lr_scheduler.T_max: got none, expected a value for CosineAnneal"),
        ([ADAM, "--lr_scheduler=ReduceLROnPlateau"], "lr_scheduler.monitor: got none, expected a value for ReduceLROn"),
        (["--trainer.logger=CSVLogger"], "trainer.logger.save_dir: got none, expected a value for CSVLogger"),
        (["--trainer.logger=[CSVLogger]"], "trainer.logger.save_dir: got none, expected a value for CSVLogger"),
        (["--trainer.callbacks=EarlyStopping"], "trainer.callbacks.monitor: got none, expected a value for EarlyStop"),
        (["--model.agent.context=foo"], "model.agent.context: got foo, expected problem, batch"),
        (["--model.agent.actions=MUL"], "model.agent.actions: got MUL, expected a list or null"),
        (
            ["--model.algorithm.normalize_advantage=maybe"],
            "model.algorithm.normalize_advantage: got maybe, expected bo",
        ),
        (
            ["--model.algorithm=PPO", "--model.algorithm.normalize_advantage=maybe"],
            "model.algorithm.normalize_advantage: got maybe, expected bool or minibatch",
        ),
        (
            ["--model.env={class_path: CalculatorEnv, init_args: {feedback: all}}"],
            "model.env.feedback: got all, expected none, flags, position, spans",
        ),
        (
            ["--model.algorithm.clip=[1, 2]"],
            "model.algorithm.clip: got [1, 2], expected an option of A2C, which has vf",
        ),
        (["--optimizer=SGD", "--optimizer.lr=foo"], "optimizer.lr: got foo, expected float"),
        (["--model.betas=[1]"], "model.betas: got [1], expected a list with 2 elements"),
        # Names of classes.
        (["--model.env=all"], "model.env: got all, expected CalculatorEnv, TutorialEnv, or the dotted path of another"),
        (["--model.agent=null"], "model.agent: got null, expected BlindAgent, "),
        (["--model.agent={class_path: Nope}"], "model.agent: got Nope, expected BlindAgent, "),
        (["--model.reward=nope.Nope"], "model.reward: got nope.Nope, expected OutcomeReward, ProgressReward, Tutorial"),
        (["--optimizer=Nope"], "optimizer: got Nope, expected ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax"),
        ([ADAM, "--lr_scheduler=Nope"], "lr_scheduler: got Nope, expected ChainedScheduler, ConstantLR, CosineAnnea"),
        (["--trainer.callbacks=Nope"], "trainer.callbacks: got Nope, expected BackboneFinetuning, BaseFinetuning"),
        (["--trainer.logger=Nope"], "trainer.logger: got Nope, expected bool or CSVLogger, CometLogger"),
        (["--trainer.logger.save_dir=x"], "trainer.logger.save_dir: got x, expected an option of a class, named by -"),
        (["--trainer.strategy.x=3"], "trainer.strategy.x: got 3, expected an option of a class, named by --trainer.st"),
        # What cannot be made.
        (["--model.algorithm.gamma=0"], "model.algorithm.gamma: got 0.0, expected more than 0 and at most 1"),
        (["--model.reward=own_keys.Reward"], "Reward.__init__: got KeyError ('weight') in line 7 of own_keys.py"),
        (["--model.agent=own_keys.Agent"], "Agent.__init__: got KeyError ('weight') in line 11 of own_keys.py, expec"),
        (["--model.algorithm=own_keys.Algorithm"], "Algorithm.__init__: got AttributeError (gamma) in line 15 of own"),
        (
            ["--trainer.callbacks=Timer", "--trainer.callbacks.duration=foo"],
            "trainer.callbacks: got lightning.pytorch.callbacks.Timer, expected a class that can be made here (`Timer",
        ),
        (["--optimizer=SGD", "--optimizer.momentum=-1"], "optimizer.momentum: got -1.0, expected another value (Inval"),
        (["--optimizer=SGD", "--optimizer.nesterov=true"], "optimizer: got SGD, expected other options of it (Nester"),
        ([ADAM, "--lr_scheduler=LRScheduler"], "lr_scheduler: got LRScheduler, expected other options of it (NotImpl"),
        (["--trainer.devices=foo"], "trainer.devices: got foo, expected auto, 1 to at most 1024, or -1 for all"),
        (["--trainer.devices=[0,1]"], "trainer.devices: got [0, 1], expected another value (`devices` selected with"),
        (["--trainer.profiler=Nope"], "trainer.profiler: got Nope, expected simple, advanced, pytorch, or a class"),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=file"], "trainer.logger.save_dir: got file, expect"),
        # One value for a group of options; no seed.
        (["--config={model: 3}"], "model: got 3, expected options and their values"),
        (["--config", "{trainer: null}"], "trainer: got None, expected options and their values"),
        (["--trainer=3"], "trainer: got 3, expected a file with its options, or --trainer.OPTION=VALUE"),
        (["--seed_everything=true"], "seed_everything: got true, expected a number from 0 to 4294967295"),
        (["--seed_everything=false"], "seed_everything: got false, expected a number from 0 to 4294967295"),
        (["--seed_everything=null"], "seed_everything: got null, expected bool or int"),
    ],
    ids=lambda value: " ".join(value)[2:] if isinstance(value, list) else "",
)
def test_the_line_names_option_value_and_what_is_accepted(capsys, words, expected):
    line = error_of(capsys, "fit", BLIND, "--trainer.accelerator=cpu", *words)
    assert line.startswith(f"error: {expected}")
    assert len(line) <= LONGEST_LINE + len("error: ")


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.parametrize("logger", ["WandbLogger", "[WandbLogger]"])
def test_a_tracker_that_is_not_installed_is_named(capsys, logger):
    line = error_of(capsys, "fit", BLIND, "--trainer.accelerator=cpu", f"--trainer.logger={logger}")
    assert line.startswith(
        "error: trainer.logger: got lightning.pytorch.loggers.WandbLogger, expected a class that can"
    )
    assert "'wandb>=0.12.10' not met" in line


@pytest.mark.parametrize("schedule", ["StepLR --lr_scheduler.step_size=0", "CosineAnnealingLR --lr_scheduler.T_max=0"])
def test_a_schedule_that_fails_in_its_first_step_is_one_line(capsys, schedule):
    words = [*SHORT, "--data.batch_size=8", "--data.val_problems=1", ADAM, *f"--lr_scheduler={schedule}".split()]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words])
    assert stopped.value.code == 2
    kind = schedule.partition(" ")[0]
    assert f"error: lr_scheduler: got {kind}, expected other options of it (integer" in capsys.readouterr().err


def test_messages_are_bounded_and_printable():
    assert one_line("x" * 2000) == f"{'x' * (LONGEST_LINE - 3)}..."
    assert one_line("a\x1b[31m\nb") == "a?[31m b"


@pytest.mark.parametrize("port", ["foo", "0", "65536", "-1"])
def test_a_port_that_is_none_is_refused(monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ValueError, match=f"MASTER_PORT: got {port}, expected a number from 1 to 65535"):
        check_meeting_place(1)


def test_a_host_that_is_not_found_is_refused_where_ranks_would_meet_there(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    with pytest.raises(ValueError, match=r"MASTER_ADDR: got nowhere\.invalid, expected a host that can be found"):
        check_meeting_place(2)
    check_meeting_place(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_meeting_place(2)


@pytest.mark.parametrize("command", [["fit", BLIND], ["solve", "1+2"]], ids=lambda words: words[0])
@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_an_interrupt_while_the_libraries_load_ends_without_a_word(tmp_path, command, after):
    """From where torch begins to load: what Python does before is not ours."""
    process = subprocess.Popen(
        [sys.executable, "-m", "toolagent_pl", *command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.002)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT, 0), output  # 0 where all was done by then
    assert "Traceback" not in output
