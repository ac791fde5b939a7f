"""The default run, and the tutorial's."""

from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_cli import CONFIGS
from toolagent_pl.callbacks import throughput
from toolagent_pl.cli import main
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.stream import ProblemStream

ONE_STAGE = ["--data.stages=[T0]", "--curriculum.stages=[0]", "--model.machine.max_steps=3"]


def last_values(directory) -> dict[str, float]:
    events = EventAccumulator(str(directory))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def test_default_run_solves_every_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.accelerator=cpu"])
    values = last_values("lightning_logs/version_0")
    for stage in ("T0", "T1", "T2"):
        assert values[f"test/{stage}_accuracy"] == 1.0
    out = capsys.readouterr().out
    assert "100,000   100,000     100.0%" in out
    assert out.count("right") > 15  # five sample trajectories for each stage


def test_tutorial_configuration_reproduces_the_published_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--trainer.accelerator=cpu", "--config", str(CONFIGS / "tutorial.yaml")])
    values = last_values("lightning_logs/version_0")
    # The policy MUL ANS is paid for a*b; the true answer a*b+c is that only where c = 0.
    assert values["test/T0_reward"] == pytest.approx(1.06, abs=0.015)
    assert values["test/T0_accuracy"] == pytest.approx(0.1, abs=0.02)
    assert "mean shaped reward" in capsys.readouterr().out


def test_mixed_precision_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.precision=bf16-mixed", "--data.stages=[T0]", "--curriculum.stages=[0]"]
    main(["fit", "--trainer.accelerator=cpu", *options, "--data.batch_size=512", "--trainer.max_epochs=20"])
    assert last_values("lightning_logs/version_0")["test/T0_accuracy"] == 1.0


def test_half_precision_unscales_gradients_before_they_are_clipped(tmp_path, monkeypatch):
    """Lightning offers 16-mixed on GPUs only; its plugin works anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "GEMM_SIZE", 64)  # CPUs are slow at it
    (tmp_path / "half.yaml").write_text(
        "trainer:\n  plugins:\n    - class_path: lightning.pytorch.plugins.MixedPrecision\n"
        "      init_args: {precision: 16-mixed, device: cpu}\n"
    )
    norms = []
    short = ["--data.batch_size=64", "--data.batches_per_epoch=3", "--trainer.max_epochs=1", "--data.val_problems=20"]
    for run, options in enumerate([[], ["--config", "half.yaml"]]):
        main(["fit", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", *short, *ONE_STAGE, *options])
        events = EventAccumulator(f"lightning_logs/version_{run}")
        events.Reload()
        norms.append([event.value for event in events.Scalars("train/gradient_norm")])
    assert len(norms[1]) == 3
    assert norms[1] == pytest.approx(norms[0], rel=1)  # some other actions are drawn; the scale is 65,536


@pytest.mark.parametrize(
    ("clipping", "largest"),
    [
        (["--trainer.gradient_clip_val=0.001"], 0.001),
        (["--trainer.gradient_clip_val=0.001", "--trainer.precision=bf16-mixed"], 0.001),
        (["--trainer.gradient_clip_val=0.00001", "--trainer.gradient_clip_algorithm=value"], None),
    ],
    ids=["norm", "norm in bf16", "value"],
)
def test_gradients_are_clipped(tmp_path, monkeypatch, clipping, largest):
    """With SGD and a learning rate of 1, weights move by the gradient; the curve shows it before it is clipped."""
    monkeypatch.chdir(tmp_path)
    short = ["--data.batch_size=64", "--data.batches_per_epoch=1", "--data.val_problems=20"]
    weights = []
    for epochs in (1, 2):
        options = [
            *short,
            *ONE_STAGE,
            f"--trainer.max_epochs={epochs}",
            "--optimizer=SGD",
            "--optimizer.lr=1",
            *clipping,
        ]
        main(["fit", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", *options])
        path = f"lightning_logs/version_{epochs - 1}/checkpoints/last.ckpt"
        weights.append(torch.load(path, weights_only=True)["state_dict"])
    moved = torch.cat([(weights[1][name] - weights[0][name]).flatten() for name in weights[0] if name[:5] == "agent"])
    assert last_values("lightning_logs/version_1")["train/gradient_norm"] > 0.01
    if largest:
        assert moved.norm().item() == pytest.approx(largest, rel=1e-3)
    else:
        assert moved.abs().max().item() == pytest.approx(1e-5, rel=0.01)


def test_the_gradient_norm_is_that_of_the_update_under_way():
    module = ToolAgent()
    module._trainer = SimpleNamespace(world_size=1, global_step=0, log_every_n_steps=10)
    optimizer = module.configure_optimizers()
    stream, norms = ProblemStream(module.ladder, seed=0, batch_size=64, batches=2), []
    for position, scale in enumerate((float("nan"), 1.0)):
        module.zero_grad()
        (module.training_step(stream.batch(position), position) * scale).backward()
        norms.append(module.gradient_norm(optimizer))
        assert module.gradient_norm(optimizer) is norms[-1]
    assert [bool(norm.isfinite()) for norm in norms] == [False, True]


def test_workers_change_nothing(tmp_path, monkeypatch):
    """The curriculum reaches them from the first epoch on, and they make the same problems."""
    rewards = []
    for workers in (0, 2):
        (tmp_path / str(workers)).mkdir()
        monkeypatch.chdir(tmp_path / str(workers))
        options = ["--data.batch_size=64", "--data.batches_per_epoch=3", "--trainer.max_epochs=3"]
        options += ["--curriculum.every_n_epochs=1", "--trainer.log_every_n_steps=1", f"--data.num_workers={workers}"]
        main(["fit", "--trainer.accelerator=cpu", *options])
        events = EventAccumulator("lightning_logs/version_0")
        events.Reload()
        rewards.append([(event.step, event.value) for event in events.Scalars("train/loss")])
    assert rewards[0] == rewards[1]
    assert len(rewards[0]) == 9
