"""The command line: defaults, every configuration in the repository, what a run writes, and errors in one line."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric.accelerators import MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import BLIND, CONFIGS, ONE_STAGE, SHORT, TRAINED, refused
from toolagent_pl.cli.main import main
from toolagent_pl.training.ranks import outlive_readers

pytestmark = pytest.mark.usefixtures("here", "without_pictures")


def keys(options: dict, path: str = "") -> dict:
    """Values by full names."""
    found = {}
    for key, value in options.items():
        found |= keys(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def test_the_default_run_is_spelled_out(capsys):
    """All of its options but some of Lightning's trainer, and as they are without any configuration."""
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    known = keys(yaml.safe_load(capsys.readouterr().out))
    for name in ("default.yaml", "stages.yaml"):
        spelled = keys(yaml.safe_load((CONFIGS / name).read_text()))
        if name == "default.yaml":
            kinds = {key: str(value).rpartition(".")[2] for key, value in spelled.items() if key.endswith("class_path")}
            assert {key: known[key] for key in spelled} | kinds == spelled | kinds
        left_out = {key for key in known if not key.startswith("trainer.") and "init_args" not in key} - set(spelled)
        assert left_out == {"optimizer", "lr_scheduler", "ckpt_path", "weights_only"}


# Others in test_fit.py and test_sweep.py.
@pytest.mark.parametrize("name", ["expressions", "multi_gpu", "countdown", "countdown_long", "countdown_ahead"])
def test_every_configuration_runs(name):
    options = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.precision=32-true", *SHORT[1:]]
    options += ["--data.batch_size=64", "--data.test_problems=20", "--samples.per_stage=1"]
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *options])
    assert batches_of("lightning_logs/version_0/checkpoints/last.ckpt") == 2


@pytest.mark.parametrize("env", [["TutorialEnv", "--env.stages=[T0]"], ["mine.Room"]], ids=lambda words: words[0])
def test_another_environment_takes_nothing_but_its_name(capsys, env):
    """Its agent, its algorithm, its curriculum and when it stops are the defaults of the package."""
    shutil.copy(Path(__file__).parents[1] / "toy.py", "mine.py")
    short = [*SHORT[1:], "--data.batch_size=32", "--data.test_problems=20", f"--env={env[0]}", *env[1:]]
    main(["fit", *short])
    for command in ("test", "validate", "predict"):
        main([command, "--ckpt_path=last", "--trainer.accelerator=cpu", "--data.test_problems=20"])
    main(["fit", *short, "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert batches_of("lightning_logs/version_0/checkpoints/last.ckpt") == 4
    told, _, table = capsys.readouterr().out.rpartition("Final greedy agent")
    assert re.search(r"T0 +1,000 .*all|far +20 .*held out", table)
    assert told.count("Greedy agent") == 2  # of test and validate
    assert "DataLoader 0" not in told  # the table of Lightning, which has no counts
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert config["model"]["agent"] is None
    assert (config["curriculum"]["advance_at"], config["solved"]["accuracy"]) == (0.9, 1.0)


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


def test_predictions_replace_no_file_and_a_full_disk_is_named(trained, capsys):
    predict = ["predict", *TRAINED, f"--ckpt_path={trained}/checkpoints/last.ckpt", "--data.predict_problems=2"]
    Path("said.jsonl").write_text("precious")
    said = refused(capsys, *predict, "--predictions.path=said.jsonl")
    assert said.startswith("predictions.path: got said.jsonl, which is there already; expected another place, or")
    assert Path("said.jsonl").read_text() == "precious"
    main([*predict, "--predictions.path=said.jsonl", "--predictions.overwrite=true"])
    assert "precious" not in Path("said.jsonl").read_text()
    os.mkfifo("pipe")  # as any device
    said = refused(capsys, *predict, "--predictions.path=pipe", "--predictions.overwrite=true")
    assert said.startswith("predictions.path: got pipe, expected a file")
    Path(f".full.jsonl.{os.getpid()}").symlink_to("/dev/full")  # where the file is written at first
    with pytest.raises(SystemExit) as stopped:
        main([*predict, "--predictions.path=full.jsonl"])
    assert stopped.value.code == 1
    assert "(No space left on device)" in capsys.readouterr().err
    assert not Path("full.jsonl").exists()


def test_a_run_outlives_whoever_reads_its_output(monkeypatch):
    """As in ``fit | head -1``."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        outlive_readers()
        print("a line", flush=True)
        os.close(reader)
        print("another", flush=True)
        print("a third", flush=True)


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
    assert "ckpt_path: got auto, expected a run with checkpoints" in refused(capsys, "test", "--ckpt_path=auto")
    before = Path("kept/last.ckpt").read_bytes()
    line = refused(capsys, "fit", *SMALL, "--checkpoint.dirpath=kept")
    assert "checkpoint.dirpath: got kept, where another run has its last.ckpt; expected another folder, or" in line
    assert Path("kept/last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    "logger", [["--trainer.logger=false"], ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=tables"], []]
)
def test_checkpoints_and_configuration_lie_in_one_place_whatever_the_logger(logger):
    Path("config.yaml").write_text("seed_everything: 3\n")
    main(["fit", *SMALL, *logger, "--config=config.yaml"])
    run = Path("lightning_logs/version_0")
    assert batches_of(run / "checkpoints/last.ckpt") == 2
    assert "batch_size: 64" in (run / "config.yaml").read_text()
    assert Path("config.yaml").read_text() == "seed_everything: 3\n"  # left alone
    main(["fit", *SMALL, *logger, "--config=config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert batches_of(run / "checkpoints/last.ckpt") == 4
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    if Path("tables").exists():
        assert "test/T0_accuracy" in Path("tables/lightning_logs/version_0/metrics.csv").read_text()


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    at_home = ["fit", *SMALL, "--trainer.default_root_dir=~/runs", "--checkpoint.dirpath=~/kept"]
    main(at_home)
    assert (tmp_path / "home/runs/lightning_logs/version_0/config.yaml").is_file()
    main([*at_home, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert batches_of(tmp_path / "home/kept/last.ckpt") == 4
    predict = ["predict", BLIND, *ONE_STAGE, "--trainer.accelerator=cpu", "--predictions.path=~/said.jsonl"]
    main([*predict, "--ckpt_path=~/kept/last.ckpt"])
    assert (tmp_path / "home/said.jsonl").is_file()
    assert not list(tmp_path.glob("~*"))


def test_a_run_writes_curves_samples_hyperparameters_and_its_configuration(trained):
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "config.yaml").is_file()
    assert "model.agent.init_args.d: 24" in (trained / "hparams.yaml").read_text()
    events = EventAccumulator(str(trained))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    train = ("reward", "accuracy", "entropy", "stage", "annealing", "policy_loss", "value_loss", "gradient_norm")
    train += ("learning_rate", "ent_coef", "episode_length", "noop_share", "truncated")
    assert {f"train/{name}" for name in train} | {"hp/solved"} <= scalars
    for stage in ("T0", "T1", "T2"):
        assert {f"{part}/{stage}_{name}" for part in ("val", "test") for name in ("accuracy", "reward")} <= scalars
    assert [event.step for event in events.Scalars("train/reward")] == [0, 1]
    assert sum(events.Scalars(f"actions/{tool}")[0].value for tool in ("MUL", "ADD", "SUB", "ANS", "STO", "RCL")) == (
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
    for one in map(json.loads, lines):
        assert {"stage", "problem", "target", "plan", "values", "answer", "solved"} <= set(one)
        assert one["target"] == eval(one["problem"])
        assert len(one["plan"]) == len(one["values"])
        assert not one["solved"] or one["answer"] == one["target"]


def test_other_commands_take_the_configuration_of_the_checkpoint_and_leave_no_folder(capsys):
    main(["fit", *SMALL, "--env.stages=[E1]", "--model.agent=Reader", "--env.max_steps=auto", "--data.test_problems=9"])
    for command in ("test", "predict"):
        main([command, "--ckpt_path=last", "--trainer.accelerator=cpu"])
    main(["validate", "--ckpt_path=last", "--trainer.accelerator=cpu", "--env.stages=[E1,E2]"])
    told = capsys.readouterr().out
    assert re.search(r"E1 +[\d,]+ .*(all|held out) *\n", told)
    assert re.search(r"E2 +20 .*, unseen *\n", told)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert sorted(path.name for path in Path("lightning_logs/version_0/checkpoints").iterdir()) == [
        ".lock", "last.ckpt", "last.predictions.jsonl"
    ]  # fmt: skip


def test_the_table_counts_what_was_tried(capsys, monkeypatch):
    """A sample where the stages were not learned, all where a run that is over is gone on with."""
    monkeypatch.delenv("COLUMNS", raising=False)  # lines stay whole where there is no terminal
    name = "a_stage_with_a_name_of_forty_characters_"
    fit = ["fit", *SHORT, f"--env.stages=[T1,{{name: {name}, operators: 1}}]", "--data.test_problems=70"]
    main(fit)
    told, table = capsys.readouterr().out.split("Final greedy agent")
    assert "Not all stages are known to be learned" in told
    assert re.search(r"T1 +70 +[\d,]+ +[\d.]+% +(-|[\d.]+) +held out", table)
    assert re.search(rf"{name} +70 +\d+ +[\d.]+% +(-|[\d.]+) +held out", table)
    main([*fit, "--ckpt_path=last"])
    told, table = capsys.readouterr().out.split("Final greedy agent")
    assert "Not all stages" not in told
    assert re.search(r"T1 +10,000 +[\d,]+ +[\d.]+% +(-|[\d.]+) +all", table)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_step_and_checkpoint(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(
        "from toolagent_pl.rl import OutcomeReward\n"
        "class Broken(OutcomeReward):\n"
        "    calls = 0\n"
        "    def __call__(self, *args):\n"
        "        Broken.calls += 1\n"
        "        open('calls', 'w').write(str(Broken.calls))\n"
        "        return super().__call__(*args) * (float('nan') if Broken.calls == 5 else 1)\n"
    )
    options = ["--data.batch_size=64", "--checkpoint.every_n_batches=2", "--model.reward=broken.Broken"]
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", BLIND, "--trainer.accelerator=cpu", *options])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "step 4: loss or gradient is not finite" in said
    assert (tmp_path / "calls").read_text() == "5"  # at once, and not when it is time to log or to save
    saved = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert str(saved.relative_to(tmp_path)) in said
    weights = torch.load(saved, weights_only=True)
    assert weights["toolagent_pl"]["batches_seen"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in weights["state_dict"].values())
    assert (tmp_path / "lightning_logs/version_0/not_finite_step4.rank0.pt").is_file()
