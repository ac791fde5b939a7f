"""What watches a run: numbers that are none, ranks that differ, and speed."""

import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from tests.training.counting import data, module, trainer
from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.rewards import OutcomeReward
from toolagent_pl.training import monitors
from toolagent_pl.training.checkpoint_callback import Checkpoint
from toolagent_pl.training.monitors import NonFiniteError, RanksAgree, RanksDisagreeError, StopOnNonFinite, Throughput
from toolagent_pl.training.schedule import Annealing, CurriculumCallback

PAUSE = 1.0
BATCH = 8


class SlowValidation(Callback):
    """Takes its time in each validation, and keeps how long training took."""

    def __init__(self):
        self.seconds = []

    def on_validation_start(self, trainer, pl_module):
        time.sleep(PAUSE)

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds.append(4 * BATCH / float(trainer.callback_metrics["throughput/episodes_per_second"]))


def test_validation_does_not_count_whether_it_ends_an_epoch_or_interrupts_it():
    slow = SlowValidation()
    options = {"max_epochs": 2, "val_check_interval": 2, "log_every_n_steps": 4}
    trainer(slow, Throughput(), **options).fit(module(), data(batches_per_epoch=4))
    assert len(slow.seconds) == 2
    assert min(slow.seconds) < PAUSE


def test_the_clock_begins_where_a_run_goes_on(tmp_path, monkeypatch):
    """In the middle of an epoch, which does not begin again. The system's clock counts from its start."""
    problems = data(batches_per_epoch=4)
    trainer(Checkpoint(), max_steps=6, default_root_dir=tmp_path).fit(module(algorithm=A2C()), problems)
    clock = time.perf_counter
    monkeypatch.setattr("toolagent_pl.training.monitors.time.perf_counter", lambda: clock() + 1e6)
    again = trainer(Checkpoint(), Throughput(), max_epochs=2, log_every_n_steps=1, default_root_dir=tmp_path)
    seen = []
    again.callbacks.append(seeing := Callback())
    seeing.on_train_batch_end = lambda *_: seen.append(float(again.callback_metrics["throughput/tokens_per_second"]))
    again.fit(module(algorithm=A2C()), problems, ckpt_path=tmp_path / "checkpoints/last.ckpt")
    assert len(seen) == 2
    assert min(seen) > 1


def test_the_peak_is_that_of_the_numbers_that_are_multiplied(monkeypatch):
    asked = []
    monkeypatch.setattr(monitors, "get_available_flops", lambda _, kind: asked.append(kind) or 3e13)
    monkeypatch.setitem(monitors.GEMM_SIZES, "cpu", 64)
    for precision in ("32-true", "bf16-true", "bf16-mixed", "16-mixed", "64-true"):
        assert monitors.peak_flops(torch.device("cuda"), precision) == 3e13
        assert 1e6 < monitors.peak_flops(torch.device("cpu"), precision) < 1e14
    assert asked == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float16, torch.float64]


class Broken(OutcomeReward):
    """Pays what is no number in the third batch."""

    calls = 0

    def __call__(self, env, rollout):
        self.calls += rollout.samples * len(rollout.solved) == BATCH
        return super().__call__(env, rollout) * (float("nan") if self.calls == 3 else 1.0)


@pytest.mark.parametrize("logger", [False, True])
def test_a_run_whose_numbers_are_none_stops_and_keeps_the_batch_in_its_folder(tmp_path, logger):
    checkpoint = Checkpoint(1, dirpath=str(tmp_path / "elsewhere" / "there"))
    curves = CSVLogger(tmp_path, "runs", "one") if logger else False
    run = trainer(StopOnNonFinite(), checkpoint, max_epochs=5, logger=curves, default_root_dir=tmp_path)
    problems = data(batch_size=BATCH, batches_per_epoch=4)
    with pytest.raises(NonFiniteError, match=f"^step 2: .* last checkpoint: {checkpoint.dirpath}/last.ckpt"):
        run.fit(module(reward=Broken()), problems)
    folder = tmp_path / "runs/one" if logger else tmp_path
    kept = torch.load(folder / "not_finite_step2.rank0.pt", weights_only=True)
    assert kept["step"] == 2
    assert kept["batch"]["number"].tolist() == list(range(2 * BATCH, 3 * BATCH))
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()] == ["last.ckpt"]
    saved = torch.load(checkpoint.last_path, weights_only=True)
    assert saved["toolagent_pl"]["batches_seen"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in saved["state_dict"].values())


def changed_weights(rank):
    next(rank.module.parameters()).data.view(-1)[0] += 1e-6


def changed_step(rank):
    rank.module.batches_seen += 1


def changed_weight_of_the_entropy(rank):
    rank.module.ent_coef = rank.module.ent_coef * (1 + 1e-15)


def changed_curriculum(rank):
    rank.callbacks[0].phase += 1


def changed_annealing(rank):
    rank.callbacks[1].since = 0


def changed_annealing_average(rank):
    rank.callbacks[1].averages[0] += 1e-6


@pytest.mark.parametrize(
    "change",
    [
        changed_weights,
        changed_step,
        changed_weight_of_the_entropy,
        changed_curriculum,
        changed_annealing,
        changed_annealing_average,
    ],
)
def test_whatever_differs_between_ranks_is_named(monkeypatch, change):
    ranks = [
        SimpleNamespace(world_size=3, module=module(), callbacks=[CurriculumCallback(), Annealing()]) for _ in range(3)
    ]
    for rank in ranks:
        rank.callbacks[1].averages = [torch.ones(3)]

    def gather(states, _):
        states[:] = [monitors._state(rank, rank.module) for rank in ranks]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    RanksAgree().on_train_start(ranks[0], ranks[0].module)  # equal ranks
    change(ranks[1])
    what = change.__name__.removeprefix("changed_").removesuffix("_average").replace("_", " ")
    with pytest.raises(RanksDisagreeError, match=f"^step 0: {what} of rank 1 differ from rank 0"):
        RanksAgree().on_validation_end(ranks[0], ranks[0].module)


def test_a_checksum_sees_less_than_a_float32_can_tell():
    one = torch.nn.Linear(1, 1).double()
    before = monitors.checksum(one.parameters())
    one.weight.data *= 1 + 1e-15
    assert monitors.checksum(one.parameters()) != before
