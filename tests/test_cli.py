"""The command line: defaults, every configuration in the repository, and errors in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import SHORT
from toolagent_pl.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(capsys, *args: str) -> str:
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "available:" not in line]
    lines = [line for line in lines if not line.startswith("Seed set")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_default_configuration_is_spelled_out_in_default_yaml(capsys):
    def printed(*args: str) -> str:
        with pytest.raises(SystemExit):
            main(["fit", *args, "--print_config"])
        return capsys.readouterr().out

    assert printed("--config", str(CONFIGS / "default.yaml")) == printed()


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_runs(config):
    devices = ["--trainer.devices=1", "--trainer.strategy=auto"]
    main(["fit", "--config", str(config), *SHORT, *devices, "--data.batch_size=64"])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


def test_an_apple_gpu_is_left_alone(monkeypatch):
    """It has no float64, and its int64 is not exact: a Mac trains on its CPU."""
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["fit", *[option for option in SHORT if "accelerator" not in option], "--data.batch_size=64"])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.stages=[T0,T9]"], "data.stages: got unknown 'T9', expected some of T0, T1, T2"),
        (["--curriculum.stages=[0,3]"], "curriculum.stages: got [0, 3], expected positions from 0 to 2"),
        (["--curriculum.every_n_epochs=0"], "curriculum.every_n_epochs: got 0, expected at least 1"),
        (["--curriculum.review=1"], "curriculum.review: got 1.0, expected at least 0 and less than 1"),
        (["--model.agent.actions=[MUL,FOO]"], "model.agent.actions: got unknown 'FOO', expected some of 0, 1"),
        (["--model.agent.actions=[MUL,ADD,SUB,ANS]"], "model.agent.actions: got no STO, RCL, expected all of MUL ADD"),
        (["--model.machine.max_steps=6"], "model.machine.max_steps: got 6, expected at least 7, the length of the sh"),
        (["--trainer.accelerator=mps"], "trainer.accelerator: got mps, expected auto, cpu or gpu"),
        (["--model.machine=Abacus"], "model.machine: got Abacus, expected CalculatorMachine, TutorialMachine, or the"),
        (["--model.reward=TutorialReward"], "model.reward: got TutorialReward with CalculatorMachine, expected Tutor"),
        (["--model.algorithm.entropy_weight=-1"], "model.algorithm.entropy_weight: got -1.0, expected a number of at"),
        (["--data.batch_size=0"], "data.batch_size: got 0, expected a positive multiple of the number of ranks, 1"),
        (["--data.batch_size=63", "--trainer.devices=2"], "data.batch_size: got 63, expected a positive multiple of"),
        (["--data.batch_size=many"], "data.batch_size: got many, expected int"),
        (["--curiculum.review=0.1"], "unknown option --curiculum.review, did you mean --curriculum.review?"),
        (["--config=nowhere.yaml"], "config: File does not exist"),
        (["--ckpt_path=nowhere.ckpt"], "ckpt_path: got nowhere.ckpt, expected a file that exists"),
        (["--ckpt_path=last"], "ckpt_path: got last, expected a run with checkpoints/last.ckpt in lightning_logs"),
        (["--ckpt_path=last", "--checkpoint.dirpath=x"], "ckpt_path: got last, expected a run with last.ckpt in x"),
        (["--seed_everything=-1"], "seed_everything: got -1, expected a number from 0 to 4294967295"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_option(capsys, args, expected):
    assert expected in error_of(capsys, "fit", "--trainer.accelerator=cpu", *args)
    assert not Path("lightning_logs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    assert "trainer.accelerator: got gpu, expected auto or cpu" in error_of(capsys, "fit", "--trainer.accelerator=gpu")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_need_a_checkpoint(capsys, command):
    assert "ckpt_path: got none, expected the path of a checkpoint" in error_of(capsys, command)


def test_auto_goes_on_with_the_newest_run_or_starts_one(capsys):
    short = ["fit", *SHORT, "--data.batch_size=64", "--checkpoint.dirpath=kept", "--ckpt_path=auto"]
    main(short)
    assert torch.load("kept/last.ckpt", weights_only=True)["global_step"] == 2
    main([*short, "--trainer.max_epochs=2"])
    assert torch.load("kept/last.ckpt", weights_only=True)["global_step"] == 4
    assert "ckpt_path: got auto, expected a run with checkpoints/last.ckpt in" in error_of(
        capsys, "test", "--ckpt_path=auto"
    )


def test_a_truncated_checkpoint_is_refused(capsys, trained):
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "ckpt_path: got half.ckpt, expected a checkpoint" in error_of(capsys, "test", "--ckpt_path=half.ckpt")


def test_a_checkpoint_of_another_vocabulary_is_refused(capsys, trained):
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["agent.embedding.weight"] = torch.zeros(20, 96)
    torch.save(checkpoint, "other.ckpt")
    message = error_of(capsys, "test", "--trainer.accelerator=cpu", "--ckpt_path=other.ckpt")
    assert "ckpt_path: got a checkpoint with [20, 96] for agent.embedding.weight, expected [18, 96]" in message


def test_a_run_writes_curves_samples_hyperparameters_and_its_configuration(trained):
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "config.yaml").is_file()
    assert "model.agent.init_args.d: 96" in (trained / "hparams.yaml").read_text()
    events = EventAccumulator(str(trained))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for name in ("reward", "entropy", "stage", "loss", "policy_loss", "value_loss", "gradient_norm", "learning_rate"):
        assert f"train/{name}" in scalars
    assert {"train/episode_length", "train/idle_share", "tools/MUL", "tools/RCL"} <= scalars
    assert {f"{part}/{stage}_accuracy" for part in ("val", "test") for stage in ("T0", "T1", "T2")} <= scalars
    assert [event.step for event in events.Scalars("train/reward")] == [0, 1]
    assert sum(events.Scalars(f"tools/{tool}")[0].value for tool in ("MUL", "ADD", "SUB", "ANS", "STO", "RCL")) == (
        pytest.approx(1)
    )
    (text,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("samples/T2"))
    assert b"(" in events.Tensors(text)[0].tensor_proto.string_val[0]


def test_a_run_says_how_fast_it_is(trained):
    events = EventAccumulator(str(trained))
    events.Reload()
    names = ("throughput/tokens_per_second", "throughput/problems_per_second", "throughput/mfu", "train/episode_length")
    for tokens, problems, mfu, length in zip(*map(events.Scalars, names), strict=True):
        assert tokens.value / problems.value == pytest.approx(length.value, rel=1e-4)
        # 6 FLOP for each weight: three recurrent matrices, and the heads for six actions and the value.
        peak = tokens.value * 6 * (3 * 96 * 96 + 7 * 96) / mfu.value
        assert 1e9 < peak < 1e14


def test_predict_writes_one_json_object_a_problem(trained):
    main(["predict", "--trainer.accelerator=cpu", f"--ckpt_path={trained}/checkpoints/last.ckpt"])
    lines = (trained / "checkpoints" / "last.predictions.jsonl").read_text().splitlines()
    assert len(lines) == 300
    keys = {"stage", "operands", "target", "actions", "values", "answer", "correct", "reward", "steps"}
    for line in lines:
        one = json.loads(line)
        assert keys <= set(one)
        a, b, c, d, e = (*one["operands"], 0, 0)[:5]
        assert one["target"] == a * b + c - (d * e if one["stage"] == "T2" else d)
        assert len(one["actions"]) == len(one["values"]) == one["steps"]
        assert one["correct"] == (one["reward"] == 1)


def test_validate_and_test_report_accuracies_of_a_checkpoint(capsys, trained):
    for command, prefix in (("validate", "val"), ("test", "test")):
        main([command, "--trainer.accelerator=cpu", f"--ckpt_path={trained}/checkpoints/last.ckpt"])
        assert f"{prefix}/T0_accuracy" in capsys.readouterr().out


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_step_and_checkpoint(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from toolagent_pl.machines.rewards import OutcomeReward\n"
        "class Broken(OutcomeReward):\n"
        "    calls = 0\n"
        "    def __call__(self, *args):\n"
        "        Broken.calls += 1\n"
        "        open('calls', 'w').write(str(Broken.calls))\n"
        "        return super().__call__(*args) * (float('nan') if Broken.calls == 5 else 1)\n"
    )
    options = ["--data.batch_size=64", "--checkpoint.every_n_train_steps=2", "--model.reward=broken.Broken"]
    run = subprocess.run(
        [sys.executable, "-m", "toolagent_pl", "fit", "--trainer.accelerator=cpu", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{CONFIGS.parent}"},
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "step 4: loss or gradient is not finite" in run.stderr
    assert (tmp_path / "calls").read_text() == "5"  # at once, and not when it is time to log or to save
    saved = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert str(saved) in run.stderr
    weights = torch.load(saved, weights_only=True)
    assert weights["global_step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in weights["state_dict"].values())
