"""What is refused: with exit code 2, the full name of the option, and before anything is written."""

import json
import traceback
from pathlib import Path

import pytest

from tests.conftest import BLIND, refused
from toolagent_pl.cli.main import ToolAgentCLI, main

CPU = "--trainer.accelerator=cpu"
STAGES = ["T0", "T1", "T2", "E1", "E2", "E3", "E4", "E5", "E6"]
UNMEASURED = ["--env=tests.toy.Unmeasured", "--model.agent=toolagent_pl.rl.MLPAgent"]
MINE = """
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.rl import OutcomeReward

class Reward(OutcomeReward):
    def __init__(self):
        {}["weight"]

class Agent(BlindAgent):
    def decode(self, *args):
        raise RuntimeError("not written yet")

class Flat(OutcomeReward):
    def __call__(self, env, rollout):
        return rollout.solved.float()
"""
pytestmark = pytest.mark.usefixtures("here", "without_pictures")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        # Out of range: where the option is declared.
        ("env.max_steps", ["--env.max_steps=0"]),
        ("env.stages", ["--env.stages=[T0,T9]"]),
        ("env.tools", ["--env.tools=[MUL,DIV]"]),
        ("env.unseen", ["--env.unseen=[E2]"]),  # the agent is told the stage
        ("model.max_grad_norm", ["--model.max_grad_norm=0"]),
        ("model.algorithm.gamma", ["--model.algorithm.gamma=0"]),
        ("data.batch_size", ["--data.batch_size=0"]),
        ("curriculum.stages", ["--curriculum.stages=[T0,T3]"]),
        ("curriculum.ent_targets", ["--curriculum.ent_targets=[1]"]),
        ("annealing.at", ["--annealing.at=1.1"]),
        ("solved.plan_length", ["--solved.plan_length=0"]),
        ("checkpoint.every_n_batches", ["--checkpoint.every_n_batches=0"]),
        ("seed_everything", ["--seed_everything=-1"]),
        ("seed_everything", ["--seed_everything=true"]),
        # Of a wrong type, unknown, misspelt, shortened.
        ("data.batch_size", ["--data.batch_size=many"]),
        ("env.feedback", ["--env.feedback=all"]),
        ("model.agent.context", ["--model.agent.context=foo"]),
        ("--curiculum.rehearsal, did you mean --curriculum.rehearsal?", ["--curiculum.rehearsal=0.1"]),
        ("--data.batch", ["--data.batch=64"]),
        ("env.nothing", ["--env.nothing=3"]),
        ("model.agent.nope", ["--config={model: {agent: {class_path: BlindAgent, init_args: {nope: 3}}}}"]),
        # Classes that there are not, or that are something else, or that do not go together.
        ("model.agent", ["--model.agent=Nope"]),
        ("model.agent", ["--model.agent=os.system"]),
        ("env", ["--env=nowhere.Room"]),
        ("model.reward", ["--model.reward=TutorialReward"]),
        ("optimizer", ["--optimizer=Nope"]),
        ("lr_scheduler", ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]),  # without an optimizer
        ("solved.plan_length", [*UNMEASURED, "--solved.plan_length=1"]),
        # Options that would be dropped without a word.
        ("model.agent.d", ["--model.agent.d=16", "--model.agent=Reader"]),
        ("model.replay.size", ["--model.replay=SuccessReplay", "--model.replay.size=4", "--model.replay=null"]),
        ("model.algorithm.epochs", ["--model.algorithm=PPO", "--model.algorithm.epochs=2", "--model.algorithm=A2C"]),
        # Lightning's trainer.
        ("trainer.gradient_clip_val: not offered: model.max_grad_norm", ["--trainer.gradient_clip_val=1"]),
        ("trainer.limit_val_batches: not offered: data.val_problems", ["--trainer.limit_val_batches=0"]),
        ("trainer.min_epochs", ["--config={trainer: {min_epochs: 3}}"]),
        ("trainer.precision", ["--trainer.precision=16-true"]),
        ("trainer.strategy", ["--trainer.strategy=ddp_spawn", "--trainer.devices=2"]),
        ("data.batch_size", ["--data.batch_size=63", "--trainer.devices=2"]),
        # Configurations.
        ("model", ["--config={model: 3}"]),
        ("config", ["--config=nowhere.yaml"]),
        ("config", ["--config=twice.yaml"]),
        ("config", ["--config=broken.yaml"]),
        # Checkpoints.
        ("ckpt_path", ["--ckpt_path=nowhere.ckpt"]),
        ("ckpt_path", ["--ckpt_path=last"]),
        ("ckpt_path", ["--ckpt_path=broken.yaml"]),
        ("model.weights", ["--model.weights=nowhere.ckpt"]),
    ],
    ids=lambda value: " ".join(value)[2:] if isinstance(value, list) else "",
)
def test_it_is_refused(capsys, option, words):
    Path("twice.yaml").write_text("data: {batch_size: 8}\ndata: {val_problems: 9}\n")
    Path("broken.yaml").write_text("data: [\n")
    before = set(Path().iterdir())
    said = refused(capsys, "fit", BLIND, CPU, *words)
    assert said.startswith((f"{option}", f"unknown option {option}")), said
    assert set(Path().iterdir()) == before


TINY = [BLIND, CPU, "--env.stages=[T0]", "--env.max_steps=3", "--data.batch_size=8", "--data.batches_per_epoch=1"]
TINY += ["--data.val_problems=4", "--trainer.max_epochs=1", "--model.agent.d=8", "--trainer.fast_dev_run=true"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model.reward=mine.Reward"], '{}["weight"]'),  # in __init__
        (["--model.agent=mine.Agent"], 'raise RuntimeError("not written yet")'),  # in a method
        (["--model.reward=faulty.Reward"], "import nothing_of_the_kind"),  # in its module
        (["--model.reward=mine.Flat"], "Flat.__call__: got torch.float32 of shape [8] for"),  # what it returns
    ],
)
def test_what_fails_in_a_custom_class_shows_where(capsys, words, line):
    Path("mine.py").write_text(MINE)
    Path("faulty.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises((SystemExit, RuntimeError, ValueError, KeyError)) as stopped:
        main(["fit", *TINY, *words])
    printed = traceback.format_exception(stopped.value)  # by Python, when the command ends with it
    assert line in capsys.readouterr().err + "".join(printed)


def test_a_command_that_there_is_not_is_refused(capsys):
    assert "slove" in refused(capsys, "slove", "2*3")
    for command in ("validate", "test", "predict"):
        assert refused(capsys, command).startswith("ckpt_path: got none, expected the path of a checkpoint, or last")


class Built(ToolAgentCLI):
    """Builds everything, and runs nothing."""

    before_fit = fit = after_fit = lambda *_, **__: None


def built(*words):
    """The options that ``fit`` takes, and runs with."""
    return main(["fit", CPU, *words], Built).config.fit


def test_the_default_curriculum_is_for_the_default_stages():
    default = built().curriculum
    assert (default.stages[0], len(default.ent_targets)) == ("E1", 5)
    others = built("--env.stages=[E1,E2]").curriculum
    assert (others.stages, others.ent_targets) == (None, None)
    assert built("--env.stages+=E6", "--env.unseen=[]").curriculum.stages is None
    explicit = f"--curriculum.stages={json.dumps(default.stages)}"
    kept = built(f"--env.stages={json.dumps(STAGES)}", "--env.unseen=[]", explicit).curriculum
    assert (kept.stages, kept.ent_targets) == (default.stages, None)
