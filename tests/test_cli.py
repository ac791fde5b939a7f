"""The command line: defaults, every configuration in the repository, what a run writes, and errors in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric.accelerators import MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import BLIND, CONFIGS, ONE_STAGE, SHORT, TRAINED
from toolagent_pl.cli import main


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


def run_beside(directory: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose working directory has modules of one's own."""
    return subprocess.run(
        [sys.executable, "-m", "toolagent_pl", *args],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1", **variables},
    )


def test_default_configuration_is_spelled_out_in_default_yaml(capsys):
    def printed(*args: str) -> str:
        with pytest.raises(SystemExit):
            main(["fit", *args, "--print_config"])
        return capsys.readouterr().out

    assert printed("--config", str(CONFIGS / "default.yaml")) == printed()


@pytest.mark.parametrize("config", ["default.yaml", "stages.yaml"])
def test_every_option_is_spelled_out(capsys, config):
    """All but those of Lightning's trainer, and the tools of the environment, which are those of the data."""

    def names(options: dict, path: str = "") -> set[str]:
        nested = [names(value, f"{path}{key}.") for key, value in options.items() if isinstance(value, dict)]
        return set().union({f"{path}{key}" for key in options}, *nested)

    with pytest.raises(SystemExit):
        main(["fit", f"--config={CONFIGS / config}", "--print_config"])
    known = names(yaml.safe_load(capsys.readouterr().out))
    spelled_out = names(yaml.safe_load((CONFIGS / config).read_text()))
    left_out = {name for name in known - spelled_out if not name.startswith("trainer.")}
    left_out -= {"optimizer", "lr_scheduler", "ckpt_path", "weights_only", "model.env.init_args.tools"}
    assert left_out == set()


RUN_AS_THEY_ARE = ("stages.yaml", "tutorial.yaml")  # by test_fit.py
OTHERS = (*RUN_AS_THEY_ARE, "sweep.yaml")  # the last one in tests/commands


@pytest.mark.parametrize("name", sorted({path.name for path in CONFIGS.glob("*.yaml")} - set(OTHERS)))
@pytest.mark.usefixtures("pictures")
def test_every_configuration_runs(name):
    options = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.precision=32-true", *SHORT[1:]]
    options += ["--data.batch_size=64", "--data.test_problems=100", "--samples.per_stage=1", "--pictures.per_stage=5"]
    options += ["--data.stages=[T0,E2]", "--data.unseen=[E3]", "--curriculum.stages=[E2]"]
    options += ["--curriculum.ent_targets=null"]
    main(["fit", "--config", str(CONFIGS / name), *options])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


def test_the_job_for_a_cluster_names_options_that_there_are(capsys):
    job = (CONFIGS / "slurm.sbatch").read_text().replace("\\\n", " ")
    (words,) = re.findall(r"toolagent_pl fit (.*)", job)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words.replace("accelerator=gpu", "accelerator=cpu").split(), "--print_config"])
    assert stopped.value.code == 0
    assert "batch_size: 65536" in capsys.readouterr().out


def test_an_apple_gpu_is_left_alone(monkeypatch):
    """It has no float64, and its int64 is not exact: a Mac trains on its CPU."""
    monkeypatch.setattr(MPSAccelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["fit", *[option for option in SHORT if "accelerator" not in option], *ONE_STAGE, "--data.batch_size=64"])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.stages=[T0,T9]"], "data.stages: got unknown 'T9', expected T0, T1, T2, E1 to E60, or a name with"),
        (["--data.stages=[T0,T0]"], "data.stages: got ['T0', 'T0'], expected one or more, each at most once"),
        (["--data.unseen=[E2]"], "data.unseen: got ['E2'], expected none for an agent that is told the stage"),
        (["--data.tools=[MUL,DIV]"], "data.tools: got DIV, expected MUL, ADD, SUB or the path of a Tool"),
        (["--curriculum.stages=[T0,T3]"], "curriculum.stages: got T3, expected some of data.stages, T0, T1, T2"),
        (["--curriculum.stages=[]"], "curriculum.stages: got [], expected names of stages, or null for all"),
        (["--curriculum.every_n_epochs=0"], "curriculum.every_n_epochs: got 0, expected at least 1"),
        (["--curriculum.review=1"], "curriculum.review: got 1.0, expected at least 0 and less than 1"),
        (["--curriculum.ent_targets=[1]"], "curriculum.ent_targets: got [1.0], expected 3 numbers, one for each entry"),
        (["--curriculum.advance_at=null"], "curriculum: got neither every_n_epochs nor advance_at, expected at leas"),
        (["--polish.at=1.1"], "polish.at: got 1.1, expected more than 0 and at most 1, or null"),
        (["--polish.step_cost=-1"], "polish.step_cost: got -1.0, expected a number of at least 0"),
        (["--solved.accuracy=0"], "solved.accuracy: got 0.0, expected more than 0 and at most 1, or null"),
        (["--solved.plan_length=0"], "solved.plan_length: got 0.0, expected a number of more than 0, or null"),
        (["--checkpoint.every_n_batches=0"], "checkpoint.every_n_batches: got 0, expected at least 1"),
        (["--samples.per_stage=0"], "samples.per_stage: got 0, expected at least 1"),
        (["--model.agent.actions=[MUL,FOO]"], "model.agent.actions: got unknown 'FOO', expected some of 0, 1"),
        (["--model.agent.actions=[MUL,ADD,SUB,ANS]"], "model.agent.actions: got no STO, RCL, expected what a plan of"),
        (["--model.env.max_steps=6"], "model.env.max_steps: got 6, expected at least 7, the length of the longest p"),
        (["--trainer.accelerator=mps"], "trainer.accelerator: got mps, expected auto, cpu, gpu"),
        (["--model.env=Abacus"], "model.env: got Abacus, expected CalculatorEnv, "),
        (["--model.env.feedback=all"], "model.env.feedback: got all, expected none, flags, position, spans"),
        (["--model.env.max_steps=some"], "model.env.max_steps: got some, expected int or auto or null"),
        (["--model.env.nothing=3"], "model.env.nothing: got 3, expected an option of CalculatorEnv, which has max_st"),
        (["--model.agent=Nope"], "model.agent: got Nope, expected "),
        (["--model.agent.d=wide"], "model.agent.d: got wide, expected int"),
        (["--model.agent.actions=3"], "model.agent.actions: got 3, expected a list or null"),
        (["--optimizer.lr=3"], "optimizer.lr: got 3, expected an option of a class, named by --optimizer=CLASS"),
        (["--model.reward=TutorialReward"], "model.reward: got TutorialReward with CalculatorEnv, expected Tutorial"),
        (["--model.algorithm.ent_coef=-1"], "model.algorithm.ent_coef: got -1.0, expected a number of at least 0"),
        (["--model.algorithm.gamma=0"], "model.algorithm.gamma: got 0.0, expected more than 0 and at most 1"),
        (["--model.max_grad_norm=0"], "model.max_grad_norm: got 0.0, expected a number of more than 0, or null"),
        (["--model.accumulate=0"], "model.accumulate: got 0, expected at least 1"),
        ([f"--model.accumulate={2**63}"], f"model.accumulate: got {2**63}, expected at least 1 and at most"),
        (["--data.batch_size=0"], "data.batch_size: got 0, expected a positive multiple of the number of ranks, 1"),
        (["--data.batch_size=63", "--trainer.devices=2"], "data.batch_size: got 63, expected a positive multiple of"),
        (["--data.batch_size=many"], "data.batch_size: got many, expected int"),
        (["--data.test_problems=0"], "data.test_problems: got 0, expected at least 1"),
        (["--curiculum.review=0.1"], "unknown option --curiculum.review, did you mean --curriculum.review?"),
        (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val: got 1, expected model.max_grad_norm in its"),
        (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches: got 2, expected model.accumulat"),
        (["--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"], "lr_scheduler: got torch.optim.lr_scheduler.StepL"),
        (
            ["--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=foo", "--optimizer=SGD", "--optimizer.lr=1"],
            "lr_scheduler.monitor: got foo, expected val/T0_accuracy, val/T0_plan_length, val/T0_reward, val/T1_acc",
        ),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/nope"],
            "EarlyStopping.monitor: got val/nope, expected val/T0_accuracy",
        ),
        (["--optimizer=SparseAdam"], "optimizer: got SparseAdam, expected an optimizer of dense gradients"),
        (["--optimizer=SGD", "--optimizer.lr=-1"], "optimizer.lr: got -1.0, expected another value (Invalid learning "),
        (
            ["--data.stages=[{name: Big, pattern: a-b, digits: 2}]"],
            "data.stages: got Big with 2 digits, expected 1 for",
        ),
        (["--config=nowhere.yaml"], "config: File does not exist"),
        (["--ckpt_path=nowhere.ckpt"], "ckpt_path: got nowhere.ckpt, expected a file that exists"),
        (["--ckpt_path=last"], "ckpt_path: got last, expected a run with checkpoints/last.ckpt in lightning_logs"),
        (["--ckpt_path=last", "--checkpoint.dirpath=x"], "ckpt_path: got last, expected a run with last.ckpt in x"),
        (["--seed_everything=-1"], "seed_everything: got -1, expected a number from 0 to 4294967295"),
    ],
    ids=lambda value: " ".join(value)[2:] if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_line_that_names_the_option(capsys, args, expected):
    assert expected in error_of(capsys, "fit", BLIND, "--trainer.accelerator=cpu", *args)
    assert not Path("lightning_logs").exists()


OWN_ALGORITHM = "from toolagent_pl.learning import A2C\nclass Three(A2C):\n    minibatches = 3\n"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.env.max_steps=null", "model.env.max_steps: got null, expected 1 to 1024, or auto"),
        ("--model.algorithm=own_algorithm.Three", "data.batch_size: got 64 problems on a rank, expected a multiple of"),
    ],
)
def test_what_shows_in_the_first_batch_is_one_line_too(tmp_path, monkeypatch, capsys, option, expected):
    (tmp_path / "own_algorithm.py").write_text(OWN_ALGORITHM)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SHORT, "--data.batch_size=64", option])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {expected}")


@pytest.mark.parametrize(
    "option", ["--trainer.max_ep=1", "--data.batch=64", "--ckpt=last", "--seed=1", "--conf=a.yaml"]
)
def test_abbreviated_options_are_refused(capsys, option):
    """They would become another option as soon as one is added."""
    assert f"unknown option {option.partition('=')[0]}" in error_of(capsys, "fit", "--trainer.accelerator=cpu", option)


@pytest.mark.parametrize("path", ["nowhere/x.jsonl", ".", "/dev/null/x"])
def test_predictions_that_cannot_be_written_are_refused(capsys, trained, path):
    line = error_of(
        capsys, "predict", BLIND, f"--ckpt_path={trained}/checkpoints/last.ckpt", f"--predictions.path={path}"
    )
    assert line.startswith(f"error: predictions.path: got {path}, expected a file in a folder that can be written to")


def test_a_full_disk_is_said_in_one_line(trained, capsys):
    options = [*TRAINED, f"--ckpt_path={trained}/checkpoints/last.ckpt", "--predictions.path=/dev/full"]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *options])
    assert "No space left on device" in str(stopped.value.code)
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_outlives_whoever_reads_its_output(tmp_path):
    """As in ``fit | head -1``."""
    command = [sys.executable, "-m", "toolagent_pl", "fit", *SMALL, "--trainer.max_epochs=4", "--solved.accuracy=null"]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert batches_of(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt") == 8


def test_lines_of_tables_stay_whole_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["fit", *SMALL, "--data.stages=[{name: a_stage_with_a_name_of_forty_characters_, pattern: a-b}]"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "all there are" in line]
    assert "a_stage_with_a_name_of_forty_characters_"[:40] in row


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    assert "trainer.accelerator: got gpu, expected auto or cpu" in error_of(capsys, "fit", "--trainer.accelerator=gpu")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_need_a_checkpoint(capsys, command):
    assert "ckpt_path: got none, expected the path of a checkpoint" in error_of(capsys, command)


def batches_of(path: str | Path) -> int:
    header = torch.load(path, weights_only=True)["toolagent_pl"]
    batches: int = header["batches_seen"]
    return batches


SMALL = [*SHORT, *ONE_STAGE, "--data.batch_size=64"]


def test_auto_goes_on_with_the_newest_run_or_starts_one(capsys):
    short = ["fit", *SMALL, "--checkpoint.dirpath=kept", "--ckpt_path=auto"]
    main(short)
    assert batches_of("kept/last.ckpt") == 2
    main([*short, "--trainer.max_epochs=2"])
    assert batches_of("kept/last.ckpt") == 4
    assert "ckpt_path: got auto, expected a run with checkpoints/last.ckpt in" in error_of(
        capsys, "test", "--ckpt_path=auto"
    )


@pytest.mark.parametrize(
    "logger",
    [["--trainer.logger=false"], ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=tables"], []],
    ids=["no logger", "CSV", "TensorBoard"],
)
def test_checkpoints_and_configuration_lie_in_one_place_whatever_the_logger(logger):
    Path("config.yaml").write_text("seed_everything: 3\n")
    main(["fit", *SMALL, *logger, "--config=config.yaml"])
    run = Path("lightning_logs/version_0")
    assert batches_of(run / "checkpoints/last.ckpt") == 2
    assert "batch_size: 64" in (run / "config.yaml").read_text()
    assert Path("config.yaml").read_text() == "seed_everything: 3\n"  # left alone
    for path in ("last", "auto"):
        main(["fit", *SMALL, *logger, "--config=config.yaml", f"--ckpt_path={path}", "--trainer.max_epochs=2"])
    assert batches_of(run / "checkpoints/last.ckpt") == 4
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    main(["fit", *SMALL, *logger])
    assert batches_of("lightning_logs/version_1/checkpoints/last.ckpt") == 2
    if Path("tables").exists():
        assert "test/T0_accuracy" in Path("tables/lightning_logs/version_0/metrics.csv").read_text()


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    at_home = ["fit", *SMALL, "--trainer.default_root_dir=~/runs"]
    main(at_home)
    assert batches_of(tmp_path / "home/runs/lightning_logs/version_0/checkpoints/last.ckpt") == 2
    main([*at_home, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert batches_of(tmp_path / "home/runs/lightning_logs/version_0/checkpoints/last.ckpt") == 4
    main([*at_home, "--checkpoint.dirpath=~/kept"])
    main([*at_home, "--checkpoint.dirpath=~/kept", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert batches_of(tmp_path / "home/kept/last.ckpt") == 4
    main([*at_home, "--ckpt_path=~/kept/last.ckpt", "--trainer.max_epochs=2"])
    predict = ["predict", BLIND, *ONE_STAGE, "--trainer.accelerator=cpu", "--trainer.default_root_dir=~/runs"]
    main([*predict, "--ckpt_path=last", "--predictions.path=~/said.jsonl"])
    assert (tmp_path / "home/said.jsonl").is_file()
    assert not list(tmp_path.glob("~*"))


def test_a_run_does_not_begin_where_another_keeps_its_checkpoint(capsys):
    main(["fit", *SMALL, "--checkpoint.dirpath=kept"])
    before = Path("kept/last.ckpt").read_bytes()
    line = error_of(capsys, "fit", *SMALL, "--checkpoint.dirpath=kept")
    assert "checkpoint.dirpath: got kept, where another run has its last.ckpt; expected another folder, or" in line
    assert Path("kept/last.ckpt").read_bytes() == before


def test_a_truncated_checkpoint_is_refused(capsys, trained):
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "ckpt_path: got half.ckpt, expected a checkpoint" in error_of(capsys, "test", "--ckpt_path=half.ckpt")


def test_a_checkpoint_of_another_vocabulary_is_refused(capsys, trained):
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["agent.embedding.weight"] = torch.zeros(20, 24)
    torch.save(checkpoint, "other.ckpt")
    message = error_of(capsys, "test", *TRAINED, "--ckpt_path=other.ckpt")
    assert "ckpt_path: got a checkpoint with [20, 24] for agent.embedding.weight, expected [18, 24]" in message


def test_a_run_writes_curves_samples_hyperparameters_and_its_configuration(trained):
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "config.yaml").is_file()
    assert "model.agent.init_args.d: 24" in (trained / "hparams.yaml").read_text()
    events = EventAccumulator(str(trained))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    train = ("reward", "accuracy", "entropy", "stage", "polishing", "policy_loss", "value_loss", "gradient_norm")
    train += ("learning_rate", "ent_coef", "episode_length", "idle_share", "truncated")
    assert {f"train/{name}" for name in train} | {"tools/MUL", "tools/RCL", "hp/solved"} <= scalars
    for stage in ("T0", "T1", "T2"):
        assert {f"{part}/{stage}_{name}" for part in ("val", "test") for name in ("accuracy", "reward")} <= scalars
    assert [event.step for event in events.Scalars("train/reward")] == [0, 1]
    assert sum(events.Scalars(f"tools/{tool}")[0].value for tool in ("MUL", "ADD", "SUB", "ANS", "STO", "RCL")) == (
        pytest.approx(1)
    )
    (text,) = (tag for tag in events.Tags()["tensors"] if tag.startswith("samples/T2"))
    assert b"*" in events.Tensors(text)[0].tensor_proto.string_val[0]


def test_a_run_says_how_fast_it_is(trained):
    events = EventAccumulator(str(trained))
    events.Reload()
    names = ("throughput/tokens_per_second", "throughput/episodes_per_second", "throughput/mfu", "train/episode_length")
    for tokens, episodes, mfu, length in zip(*map(events.Scalars, names), strict=True):
        assert tokens.value / episodes.value == pytest.approx(length.value, rel=1e-4)
        # 6 FLOP for each weight: three recurrent matrices, and the heads for six actions and the value.
        peak = tokens.value * 6 * (3 * 24 * 24 + 7 * 24) / mfu.value
        assert 1e9 < peak < 1e14


def test_predict_writes_one_json_object_a_problem(trained):
    main(["predict", *TRAINED, f"--ckpt_path={trained}/checkpoints/last.ckpt"])
    lines = (trained / "checkpoints" / "last.predictions.jsonl").read_text().splitlines()
    assert len(lines) == 300
    keys = {"stage", "expression", "operands", "target", "plan", "values", "answer", "correct", "steps"}
    for line in lines:
        one = json.loads(line)
        assert keys <= set(one)
        a, b, c, d, e = (*one["operands"], 0, 0)[:5]
        assert one["target"] == a * b + c - (d * e if one["stage"] == "T2" else d) == eval(one["expression"])
        assert len(one["plan"]) == len(one["values"]) == one["steps"]
        assert not one["correct"] or one["answer"] == one["target"]


def test_validate_and_test_report_accuracies_of_a_checkpoint(capsys, trained):
    for command, tried in (("validate", "1,000"), ("test", "10,000")):
        main([command, *TRAINED, f"--ckpt_path={trained}/checkpoints/last.ckpt"])
        table = capsys.readouterr().out.rpartition("Greedy agent")[2]
        assert re.search(rf"T1 +{tried} +[\d,]+ +[\d.]+%", table), table


def test_other_commands_take_the_configuration_of_the_checkpoint_and_leave_no_folder(capsys):
    main(
        [
            "fit",
            *SMALL,
            "--data.stages=[E1]",
            "--model.agent=Reader",
            "--model.env.max_steps=auto",
            "--data.test_problems=9",
        ]
    )
    for command in ("test", "predict"):
        main([command, "--ckpt_path=last", "--trainer.accelerator=cpu"])
    main(["validate", "--ckpt_path=last", "--trainer.accelerator=cpu", "--data.stages=[E1,E2]"])
    told = capsys.readouterr().out
    assert re.search(r"E1 +[\d,]+ .*(all there are|held-out ones) *\n", told)
    assert re.search(r"E2 +[\d,]+ .*, unseen *\n", told)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert sorted(path.name for path in Path("lightning_logs/version_0/checkpoints").iterdir()) == [
        ".lock", "last.ckpt", "last.predictions.jsonl"
    ]  # fmt: skip


def test_the_table_counts_what_was_tried(capsys):
    main(["fit", *SMALL, "--data.stages=[T0,{name: big, operators: 1}]", "--data.test_problems=70"])
    table = " ".join(capsys.readouterr().out.split("Final greedy agent")[1].split())
    for heading in ("tried", "right", "accuracy", "plan", "textbook"):
        assert heading in table
    assert re.search(r"T0 1,000 [\d,]+ [\d.]+% (-|[\d.]+) all there are", table)
    assert re.search(r"big 70 \d+ [\d.]+% (-|[\d.]+) held out", table)


def test_a_run_that_is_over_is_tested_whole_when_it_is_gone_on_with(capsys):
    options = ["fit", *SHORT, "--data.stages=[T1]"]
    main(options)
    assert re.search(r"Not all stages are known to be learned.*T1 +1,000 ", capsys.readouterr().out, re.DOTALL)
    main([*options, "--ckpt_path=last"])
    told = capsys.readouterr().out
    assert "Not all stages" not in told
    assert re.search(r"T1 +10,000 ", told)


@pytest.mark.parametrize(("words", "got"), [(["slove", "2*3"], "slove"), ([], "none")])
def test_what_is_no_command_is_answered_with_all_commands(capsys, words, got):
    line = error_of(capsys, *words)
    assert f"command: got {got}, expected fit, validate, test, predict, solve, export or sweep" in line


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_step_and_checkpoint(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from toolagent_pl.learning import OutcomeReward\n"
        "class Broken(OutcomeReward):\n"
        "    calls = 0\n"
        "    def __call__(self, *args):\n"
        "        Broken.calls += 1\n"
        "        open('calls', 'w').write(str(Broken.calls))\n"
        "        return super().__call__(*args) * (float('nan') if Broken.calls == 5 else 1)\n"
    )
    options = ["--data.batch_size=64", "--checkpoint.every_n_batches=2", "--model.reward=broken.Broken"]
    run = run_beside(tmp_path, "fit", BLIND, "--trainer.accelerator=cpu", *options)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "step 4: loss or gradient is not finite" in run.stderr
    assert (tmp_path / "calls").read_text() == "5"  # at once, and not when it is time to log or to save
    saved = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert str(saved.relative_to(tmp_path)) in run.stderr
    weights = torch.load(saved, weights_only=True)
    assert weights["toolagent_pl"]["batches_seen"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in weights["state_dict"].values())
    assert (tmp_path / "lightning_logs/version_0/not_finite_step4.rank0.pt").is_file()
