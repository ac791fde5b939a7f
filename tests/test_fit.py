"""The runs of the configurations, and what training does in each batch."""

import math
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import BLIND, CONFIGS, ONE_STAGE
from tests.training.compare import read
from toolagent_pl.cli.main import main
from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.training import monitors

QUICK = [BLIND, *ONE_STAGE, "--data.batch_size=64", "--data.batches_per_epoch=3", "--data.val_problems=20"]
QUICK += ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
QUICK += ["--annealing.at=null", "--solved.accuracy=null"]  # T0 can be learned in three batches

MINE = """
from toolagent_pl.rl import A2C

class Twice(A2C):
    epochs = 2
    minibatches = 2

class Parts(A2C):
    minibatches = 4
"""
pytestmark = pytest.mark.usefixtures("here", "without_pictures")


@pytest.fixture
def mine(here):
    """A module of algorithms in the working directory."""
    (here / "mine.py").write_text(MINE)


def last_values(directory: str | Path) -> dict[str, float]:
    events = read(directory)
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def curve(run: int, name: str) -> list[tuple[int, float]]:
    """Steps and values of a curve of a run in the working directory."""
    return [(event.step, event.value) for event in read(f"lightning_logs/version_{run}").Scalars(name)]


def checkpoint(run: int) -> dict:
    return torch.load(f"lightning_logs/version_{run}/checkpoints/last.ckpt", weights_only=True)


def test_the_blind_agent_solves_every_problem(capsys):
    main(["fit", BLIND, "--trainer.accelerator=cpu"])
    values = last_values("lightning_logs/version_0")
    for stage in ("T0", "T1", "T2"):
        assert values[f"test/{stage}_accuracy"] == values[f"test/{stage}_plan_length"] == 1.0
    assert values["hp/solved"] == 1.0
    out = " ".join(capsys.readouterr().out.split())
    assert "100,000 100,000 100.0% 1.00" in out
    assert out.count("right") > 15  # five sample trajectories for each stage


def test_tutorial_configuration_reproduces_the_published_numbers(capsys):
    main(["fit", "--trainer.accelerator=cpu", "--config", str(CONFIGS / "tutorial.yaml")])
    assert [step for step, _ in curve(0, "train/reward")] == list(range(4, 60, 5))
    assert [stage for _, stage in curve(0, "train/stage")] == [0] * 6 + [1] * 4 + [2] * 2
    # The policy MUL ANS is paid for a*b; the true answer a*b+c is that only where c = 0.
    values = last_values("lightning_logs/version_0")
    assert values["test/T0_reward"] == pytest.approx(1.06, abs=0.015)
    assert values["test/T0_accuracy"] == pytest.approx(0.1, abs=0.02)
    table = " ".join(capsys.readouterr().out.split("Final greedy agent")[1].split())
    assert "shaped" in table
    assert "T0 1,000 100 10.0% 0.67 1.060" in table


def test_mixed_precision_learns():
    options = [BLIND, *ONE_STAGE, "--trainer.precision=bf16-mixed", "--trainer.max_epochs=20"]
    main(["fit", "--trainer.accelerator=cpu", *options])
    assert last_values("lightning_logs/version_0")["test/T0_accuracy"] == 1.0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_counts_are_exact_in_low_precision(monkeypatch, capsys, precision):
    """With its 8 bits bfloat16 cannot tell 996 of 1,000 from all of them. All are right but those with target 72."""
    monkeypatch.setitem(monitors.GEMM_SIZES, "cpu", 64)
    wrong = sum(a * b + c == 72 for a in range(10) for b in range(10) for c in range(10))
    monkeypatch.setattr(CalculatorEnv, "solved", lambda _, state: state.target.ne(72))
    options = [*QUICK, "--trainer.max_epochs=1", "--data.eval_batch_size=300", f"--trainer.precision={precision}"]
    main(["fit", *options])
    table = " ".join(capsys.readouterr().out.split("Final greedy agent")[1].split())
    assert f"T0 1,000 {1000 - wrong} {(1000 - wrong) / 10}%" in table
    values = last_values("lightning_logs/version_0")
    assert values["test/T0_accuracy"] == values["test/T0_reward"] == pytest.approx(1 - wrong / 1000, abs=1e-7)


def test_half_precision_unscales_gradients_before_they_are_clipped(monkeypatch):
    """Lightning offers 16-mixed on GPUs only; its plugin works anywhere."""
    monkeypatch.setitem(monitors.GEMM_SIZES, "cpu", 64)  # CPUs are slow at it
    Path("half.yaml").write_text(
        "trainer:\n  plugins:\n    - class_path: lightning.pytorch.plugins.MixedPrecision\n"
        "      init_args: {precision: 16-mixed, device: cpu}\n"
    )
    norms = []
    for run, options in enumerate([[], ["--config=half.yaml"], ["--config=half.yaml", "--model.accumulate=2"]]):
        main(["fit", *QUICK, "--trainer.max_epochs=1", *options])
        norms.append([value for _, value in curve(run, "train/gradient_norm")])
    for scaled in norms[1:]:  # by 65,536; an update that overflows is left out, as it should be
        pairs = [(one, other) for one, other in zip(norms[0], scaled, strict=True) if math.isfinite(other)]
        assert len(pairs) >= 2
        for one, other in pairs:
            assert other == pytest.approx(one, rel=1)  # some other actions are drawn


@pytest.mark.parametrize(
    ("clipping", "largest"),
    [
        (["--model.max_grad_norm=0.001"], 0.001),
        (["--model.max_grad_norm=0.001", "--trainer.precision=bf16-mixed"], 0.001),
        (["--model.max_grad_norm=0.001", "--model.accumulate=3"], 0.001),
        (["--model.max_grad_norm=null"], None),
    ],
    ids=["clipped", "clipped in bf16", "clipped once all parts are there", "left alone"],
)
def test_gradients_are_clipped(clipping, largest):
    """With SGD and a learning rate of 1, weights move by the gradient; the curve shows it before it is clipped."""
    weights = []
    for epochs in (1, 2):
        options = [*QUICK, "--data.batches_per_epoch=1", f"--trainer.max_epochs={epochs}", *clipping]
        main(["fit", *options, "--optimizer=SGD", "--optimizer.lr=1"])
        weights.append(checkpoint(epochs - 1)["state_dict"])
    moved = torch.cat([(weights[1][name] - weights[0][name]).flatten() for name in weights[0] if name[:5] == "agent"])
    norm = last_values("lightning_logs/version_1")["train/gradient_norm"]
    assert norm > 0.01
    assert moved.norm().item() == pytest.approx(largest or norm, rel=1e-3)


@pytest.mark.parametrize(("algorithm", "parts"), [("A2C", 7), ("mine.Twice", 4), ("mine.Parts", 1000)])
@pytest.mark.usefixtures("mine")
def test_accumulation_changes_nothing_but_the_memory(algorithm, parts):
    """Parts need not be of equal sizes."""
    options = ["fit", *QUICK, f"--model.algorithm={algorithm}"]
    main(options)
    main([*options, f"--model.accumulate={parts}"])
    for name in ("reward", "policy_loss", "value_loss", "entropy", "gradient_norm", "episode_length", "accuracy"):
        whole, accumulated = curve(0, f"train/{name}"), curve(1, f"train/{name}")
        assert [step for step, _ in whole] == [step for step, _ in accumulated] == list(range(6))
        assert [value for _, value in accumulated] == pytest.approx([value for _, value in whole], rel=1e-4, abs=1e-5)
    one, other = checkpoint(0)["state_dict"], checkpoint(1)["state_dict"]
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("mine")
def test_several_updates_from_a_batch_count_as_one_batch():
    """Curves, epochs and checkpoints go by batches; the optimizer makes four steps in each."""
    main(["fit", *QUICK, "--model.algorithm=mine.Twice", "--checkpoint.every_n_batches=4"])
    saved = checkpoint(0)
    assert saved["toolagent_pl"]["batches_seen"] == 6
    assert saved["global_step"] == 24
    assert {float(state["step"]) for state in saved["optimizer_states"][0]["state"].values()} == {24.0}
    assert [step for step, _ in curve(0, "train/reward")] == list(range(6))
    assert [step for step, _ in curve(0, "test/T0_accuracy")] == [6]


@pytest.mark.usefixtures("mine")
def test_the_learning_rate_follows_its_schedule():
    """It moves once an epoch, however many steps the optimizer makes, and goes on where it was."""
    options = ["fit", *QUICK, "--model.algorithm=mine.Twice", "--optimizer=Adam", "--optimizer.lr=0.01"]
    options += ["--lr_scheduler=StepLR", "--lr_scheduler.step_size=2", "--lr_scheduler.gamma=0.5"]
    main([*options, "--trainer.max_epochs=3"])
    main([*options, "--trainer.max_epochs=5", "--ckpt_path=last"])
    rates = [value for _, value in curve(0, "train/learning_rate")]
    assert rates == pytest.approx([0.01] * 6 + [0.005] * 6 + [0.0025] * 3)


def test_a_schedule_can_wait_for_a_metric():
    schedule = ["--optimizer=SGD", "--optimizer.lr=1e-7", "--lr_scheduler=ReduceLROnPlateau"]
    schedule += ["--lr_scheduler.monitor=val/T0_accuracy", "--lr_scheduler.patience=0", "--lr_scheduler.mode=max"]
    schedule += ["--lr_scheduler.eps=0"]
    main(["fit", *QUICK, *schedule, "--trainer.max_epochs=3"])
    assert [value for _, value in curve(0, "train/learning_rate")] == pytest.approx([1e-7] * 6 + [1e-8] * 3)


def test_stages_of_patterns_and_of_operators_train(capsys):
    """As they stand in a configuration, unseen ones beside them, with an agent that reads."""
    Path("stages.yaml").write_text(
        "env:\n"
        "  class_path: CalculatorEnv\n"
        "  init_args:\n"
        "    stages:\n"
        "      - T0\n"
        "      - {name: easy, pattern: a-b}\n"
        "      - {name: sums, operators: 2, tools: [ADD], digits: 2}\n"
        "    unseen: [E3, {name: far, pattern: 'a-(b-c)'}]\n"
        "    max_steps: auto\n"
        "    feedback: spans\n"
        "curriculum: {stages: [easy, [sums, easy], T0], every_n_epochs: 1, advance_at: null}\n"
        "model: {agent: {class_path: Reader}}\n"
    )
    options = [*(option for option in QUICK if option not in ONE_STAGE), "--config=stages.yaml"]
    options += ["--data.batches_per_epoch=1", "--trainer.max_epochs=3", "--data.test_problems=50"]
    main(["fit", *options])
    assert curve(0, "train/stage") == [(0, 1.0), (1, 2.0), (2, 0.0)]
    table = " ".join(capsys.readouterr().out.split("Final greedy agent")[1].split())
    for name, tried, notes in (
        ("T0", "1,000", "all"), ("easy", "100", "all"), ("sums", "50", "held out"),
        ("E3", "50", "held out, unseen"), ("far", "1,000", "all, unseen"),
    ):  # fmt: skip
        assert re.search(rf"{name} {tried} [\d,]+ [\d.]+% (-|[\d.]+) {notes}", table), table
    main(["validate", *options, "--ckpt_path=last"])
    validated = capsys.readouterr().out
    assert re.search(r"sums +20 +\d+ +[\d.]+%", validated)
    assert re.search(r"E3 +0 +- .*not tried", validated)


def test_workers_change_nothing():
    """The curriculum reaches them from the first epoch on, and they make the same problems."""
    losses = []
    for run, workers in enumerate((0, 2)):
        options = [*QUICK, "--trainer.max_epochs=3", "--curriculum.every_n_epochs=1", "--env.stages=[T0,T1]"]
        main(["fit", *options, "--env.max_steps=4", f"--data.num_workers={workers}"])
        losses.append(curve(run, "train/policy_loss"))
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
