"""The default run, and the tutorial's."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.test_cli import CONFIGS
from toolagent_pl.cli import main


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
