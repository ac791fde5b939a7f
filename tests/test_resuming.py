"""What may change when a run goes on, and what may not."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import BLIND
from tests.test_cli import error_of
from toolagent_pl.callbacks import Pictures
from toolagent_pl.cli import ToolAgentCLI, main

OPTIONS = [BLIND, "--trainer.accelerator=cpu", "--data.batch_size=8", "--data.batches_per_epoch=2"]
OPTIONS += ["--data.stages=[{name: A, pattern: a-b}]", "--model.env.max_steps=2", "--data.val_problems=10"]
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
    ("words", "expected"),
    [
        (["--model.learning_rate=0.0001"], "model.learning_rate: got 0.0001, expected 0.006 as in the checkpoint"),
        (
            ["--model.algorithm=GRPO"],
            "model.algorithm: got toolagent_pl.learning.",
        ),
        (["--model.algorithm.gamma=0.9"], "model.algorithm.gamma: got 0.9, expected 1.0 as in the checkpoint"),
        (
            ["--optimizer=AdamW", "--optimizer.lr=0.5"],
            "optimizer: got torch.optim.AdamW, expected null as in",
        ),
        (["--data.batch_size=16"], "data.batch_size: got 16, expected 8 as in the checkpoint"),
        (["--data.val_problems=11"], "data.val_problems: got 11, expected 10 as in the checkpoint"),
        (["--seed_everything=1"], "seed_everything: got 1, expected 0 as in the checkpoint"),
        (["--curriculum.review=0.1"], "curriculum.review: got 0.1, expected 0.5 as in the checkpoint"),
        (["--polish.batches=3"], "polish.batches: got 3, expected 200 as in the checkpoint"),
        (["--trainer.precision=64"], "trainer.precision: got 64-true, expected 32-true as in the checkpoint"),
    ],
    ids=lambda value: value[0][2:] if isinstance(value, list) else "",
)
def test_what_decides_what_is_learned_is_refused(capsys, words, expected):
    before, config = LAST.read_bytes(), Path("lightning_logs/version_0/config.yaml").read_text()
    line = error_of(capsys, "fit", *OPTIONS, "--trainer.max_epochs=2", "--ckpt_path=last", *words)
    assert line.startswith(f"error: {expected}")
    assert "--model.weights=PATH" in line
    assert LAST.read_bytes() == before
    assert Path("lightning_logs/version_0/config.yaml").read_text() == config


def test_everything_else_may_change_and_the_configuration_says_so():
    free = ["--trainer.max_epochs=2", "--trainer.precision=32", "--data.test_problems=7", "--model.accumulate=2"]
    main(["fit", *OPTIONS, *free, "--ckpt_path=last", "--checkpoint.every_n_batches=3"])
    assert torch.load(LAST, weights_only=True)["toolagent_pl"]["batches_seen"] == 4
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert (config["data"]["test_problems"], config["model"]["accumulate"]) == (7, 2)
    assert "tools" not in config["model"]["env"]["init_args"]  # those are data.tools


def test_another_run_starts_from_the_same_weights(capsys):
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    slow = ["--optimizer=SGD", "--optimizer.lr=1e-30", "--trainer.max_epochs=1"]
    main(["fit", *OPTIONS, *slow, f"--model.weights={LAST}"])
    (run,) = (path for path in Path("lightning_logs").glob("version_*") if path.name != "version_0")
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["toolagent_pl"]["batches_seen"] == 2
    assert all(torch.equal(weights[name], state["state_dict"][name]) for name in weights)
    assert "model.weights: got nowhere.ckpt, expected" in error_of(
        capsys, "fit", *OPTIONS, "--model.weights=nowhere.ckpt"
    )
    assert "model.weights: got /dev/full, expected a whole checkpoint" in error_of(  # it can be read for ever
        capsys, "fit", *OPTIONS, "--model.weights=/dev/full"
    )
    assert "model.weights: got a checkpoint with [17, 8] for agent.embedding.weight" in error_of(
        capsys, "fit", *OPTIONS, f"--model.weights={LAST}", "--model.agent.d=9"
    ).replace("[18, 8]", "[17, 8]")
