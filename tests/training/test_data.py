"""The data module, alone and under a trainer."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from tests.toy import Room
from toolagent_pl import CalculatorEnv
from toolagent_pl.training.data import ProblemDataModule
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.stream import Sample

ENV = Room()


class Numbers(Callback):
    """Keeps the numbers of all problems trained on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += batch.number.tolist()


def trainer(tmp_path, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_problem_comes_once_however_gradients_are_accumulated(tmp_path, accumulate):
    numbers = Numbers()
    data = ProblemDataModule(ENV, batch_size=8, batches_per_epoch=4, val_problems=1)
    trainer(tmp_path, max_epochs=3, callbacks=[numbers]).fit(ToolAgent(ENV, accumulate=accumulate), data)
    assert numbers.seen == list(range(3 * 4 * 8))


def test_training_goes_on_where_the_module_stands(tmp_path):
    numbers = Numbers()
    data = ProblemDataModule(ENV, batch_size=8, batches_per_epoch=4, val_problems=1)
    module = ToolAgent(ENV)
    module.batches_seen = 8
    trainer(tmp_path, max_epochs=1, callbacks=[numbers]).fit(module, data)
    assert numbers.seen == list(range(64, 96))
    assert module.batches_seen == 12


def test_what_is_validated_tested_and_predicted():
    env = CalculatorEnv(["T0", "E2"], unseen=["E4"])
    data = ProblemDataModule(env, val_problems=20, test_problems=30, predict_problems=40)
    sizes = {}
    for name, loader, sample in (
        ("val", data.val_dataloader(), Sample.VALIDATION),
        ("test", data.test_dataloader(), Sample.TEST),
        ("predict", data.predict_dataloader(), Sample.PREDICT),
    ):
        assert loader.sample == sample
        sizes[name] = torch.cat([batch.stage for batch in loader]).bincount().tolist()
    assert sizes == {"val": [20, 20], "test": [1000, 30, 30], "predict": [40, 40]}
    data.most_tested = 25
    assert [len(batch.stage) for batch in data.test_dataloader()] == [25, 25, 25]


def test_a_mixture_lasts_beyond_setup():
    data = ProblemDataModule(CalculatorEnv(["T0", "T1", "T2"]), batch_size=12)
    assert data.mixture == pytest.approx([1 / 3] * 3)
    data.mixture = [0, 0.5, 0.5]
    data.setup("fit")
    assert data.mixture == [0, 0.5, 0.5]
    assert data._stream.mixture == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("batches_per_epoch", 0), ("val_problems", 0), ("eval_batch_size", 0), ("num_workers", 257)],
)
def test_wrong_options_are_named_before_a_trainer_is_there(option, value):
    with pytest.raises(ValueError, match=rf"^{option}: got {value}, expected"):
        ProblemDataModule(ENV, **{option: value})


def test_ranks_that_cannot_share_a_batch_are_refused():
    data = ProblemDataModule(ENV, batch_size=12)
    data.check_split(4)
    with pytest.raises(ValueError, match=r"^batch_size: got 12, expected .*5"):
        data.check_split(5)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"batch_size": 16}, "batch_size"),
        ({"batches_per_epoch": 5}, "batches_per_epoch"),
    ],
)
def test_a_run_goes_on_with_the_problems_that_it_began_with(tmp_path, changed, named):
    options = {"seed": 3, "batch_size": 8, "batches_per_epoch": 4}
    saved = ProblemDataModule(ENV, **options).state_dict()
    assert saved == options
    data = ProblemDataModule(ENV, **{**options, **changed})
    data.load_state_dict(saved)  # nobody trains
    data.trainer = trainer(tmp_path)
    data.trainer.state.fn = TrainerFn.TESTING
    data.load_state_dict(saved)
    data.trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ValueError, match=rf"^{named}: got .* as in the checkpoint"):
        data.load_state_dict(saved)
    same = ProblemDataModule(ENV, **options)
    same.trainer = data.trainer
    same.load_state_dict(saved)
