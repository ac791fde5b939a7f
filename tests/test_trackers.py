"""Curves, samples and pictures in trackers, and docs/trackers.md from the page itself."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ONE_STAGE, SHORT
from toolagent_pl.cli.main import main

PAGE = (Path(__file__).parent.parent / "docs" / "trackers.md").read_text()
COMMANDS = [shlex.split(line)[3:] for line in re.findall(r"^python -m toolagent_pl fit.*$", PAGE, re.MULTILINE)]
QUICK = [*SHORT, *ONE_STAGE, "--data.batch_size=64", "--trainer.log_every_n_steps=1"]
CURVES = {"train/reward", "val/T0_accuracy", "test/T0_accuracy", "hp/solved"}
PICTURES = {"accuracy_by_operators", "accuracy_by_shape", "tools_by_step"}


def run(option: str) -> None:
    """Run the command of the page with this option, in short."""
    (command,) = [words for words in COMMANDS if option in words]
    main([*command, *QUICK])


def columns(file: Path) -> set[str]:
    return set(file.read_text().partition("\n")[0].split(","))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_csv_has_curves(tmp_path):
    run("--trainer.logger=CSVLogger")
    assert columns(tmp_path / "tables/lightning_logs/version_0/metrics.csv") >= CURVES
    assert (tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").is_file()


def test_several_at_a_time(tmp_path):
    Path("trackers.yaml").write_text(re.search(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1])
    run("trackers.yaml")
    assert columns(tmp_path / "tables/lightning_logs/version_0/metrics.csv") >= CURVES
    assert list(tmp_path.glob("curves/lightning_logs/version_0/events.*"))


def test_weights_and_biases_has_curves_samples_and_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it too, and would leave it so
    run("--trainer.logger=WandbLogger")
    logged = set(wandb.run.summary.keys())
    wandb.finish()
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    assert {path.name.rsplit("_", 2)[0] for path in media.glob("images/pictures/*.png")} == PICTURES
    assert list(media.glob("images/episodes/T0_*.png"))
    (table, *_) = media.glob("table/samples/T0_*.json")
    assert re.search("right|wrong", table.read_text())
    assert logged >= CURVES


def test_mlflow_has_curves_samples_and_pictures(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database")
    run("--trainer.logger=MLFlowLogger")
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    (one,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    identity = one.info.run_id
    assert len(client.get_metric_history(identity, "train/reward")) == 2
    assert set(one.data.metrics) >= CURVES
    assert one.data.params["data.batch_size"] == "64"
    assert {file.path for file in client.list_artifacts(identity, "pictures")} == {f"pictures/{p}" for p in PICTURES}
    assert [file.path for file in client.list_artifacts(identity, "episodes/T0")] == ["episodes/T0/000002.png"]
    samples = Path(client.download_artifacts(identity, "samples/T0.txt", str(tmp_path))).read_text()
    assert all(line.endswith(("right", "wrong")) for line in samples.splitlines())
