"""What may change when a run goes on, and what may not."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import BLIND, refused
from toolagent_pl.cli.main import ToolAgentCLI, main
from toolagent_pl.training.media import Pictures

OPTIONS = [BLIND, "--trainer.accelerator=cpu", "--data.batch_size=8", "--data.batches_per_epoch=2"]
OPTIONS += ["--env.stages=[{name: A, pattern: a-b}]", "--env.max_steps=2", "--data.val_problems=10"]
OPTIONS += ["--model.agent.d=8", "--samples.per_stage=1", "--solved.accuracy=null"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(ToolAgentCLI, "after_fit", lambda _: None)
        patch.setattr(Pictures, "_draw", lambda *_: None)
        main(["fit", *OPTIONS, "--trainer.max_epochs=1"])
    return directory


@pytest.fixture(autouse=True)
def beside_the_run(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(ToolAgentCLI, "after_fit", lambda _: None)
    monkeypatch.setattr(Pictures, "_draw", lambda *_: None)


@pytest.mark.parametrize(
    "words",
    [
        ["--model.learning_rate=0.0001"], ["--model.algorithm=GRPO"], ["--model.algorithm.gamma=0.9"],
        ["--optimizer=AdamW", "--optimizer.lr=0.5"], ["--data.batch_size=16"], ["--env.memory_depth=9"],
        ["--env.stages=[T0]", "--env.max_steps=3"], ["--seed_everything=1"], ["--curriculum.rehearsal=0.1"],
        ["--annealing.batches=3"], ["--trainer.precision=64"],
    ],
    ids=lambda words: words[0][2:],
)  # fmt: skip
def test_what_decides_what_is_learned_is_refused(capsys, words):
    before, config = LAST.read_bytes(), Path("lightning_logs/version_0/config.yaml").read_text()
    line = refused(capsys, "fit", *OPTIONS, "--trainer.max_epochs=2", "--ckpt_path=last", *words)
    option = words[-1 if "env" in words[0] else 0][2:].partition("=")[0]
    assert line.startswith(f"{option}: got ")
    assert "as in the checkpoint" in line
    assert "--model.weights=PATH" in line
    assert LAST.read_bytes() == before
    assert Path("lightning_logs/version_0/config.yaml").read_text() == config


def test_everything_else_may_change_and_the_configuration_says_so():
    free = ["--trainer.max_epochs=2", "--trainer.precision=32", "--data.test_problems=7", "--model.accumulate=2"]
    main(["fit", *OPTIONS, *free, "--ckpt_path=last", "--checkpoint.every_n_batches=3"])
    assert torch.load(LAST, weights_only=True)["toolagent_pl"]["batches_seen"] == 4
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert (config["data"]["test_problems"], config["model"]["accumulate"]) == (7, 2)


def test_another_run_starts_from_the_same_weights(capsys):
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    slow = ["--optimizer=SGD", "--optimizer.lr=1e-30", "--trainer.max_epochs=1"]
    main(["fit", *OPTIONS, *slow, f"--model.weights={LAST}"])
    (run,) = (path for path in Path("lightning_logs").glob("version_*") if path.name != "version_0")
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["toolagent_pl"]["batches_seen"] == 2
    assert all(torch.equal(weights[name], state["state_dict"][name]) for name in weights)
    assert "model.weights: got a checkpoint with [18, 8] for embedding.weight" in refused(
        capsys, "fit", *OPTIONS, f"--model.weights={LAST}", "--model.agent.d=9"
    )
