"""The data module, alone and under a trainer."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn

from tests.toy import Room
from tests.training.counting import trainer
from toolagent_pl import CalculatorEnv
from toolagent_pl.training.data import ProblemDataModule
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.stream import Sample

ENV = Room()


class Numbers(Callback):
    """Keeps the numbers and stages of all problems trained on."""

    def __init__(self):
        self.seen, self.stages = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += batch.number.tolist()
        self.stages.append(set(batch.stage.tolist()))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_problem_comes_once_however_gradients_are_accumulated(accumulate):
    numbers = Numbers()
    data = ProblemDataModule(ENV, batch_size=8, batches_per_epoch=4, val_problems=1)
    trainer(numbers, max_epochs=3).fit(ToolAgent(ENV, accumulate=accumulate), data)
    assert numbers.seen == list(range(3 * 4 * 8))


def test_training_goes_on_where_the_module_stands_with_the_mixture_that_is_set():
    numbers = Numbers()
    data = ProblemDataModule(ENV, batch_size=8, batches_per_epoch=4, val_problems=1)
    module = ToolAgent(ENV)
    module.batches_seen = 8
    numbers.on_train_epoch_end = lambda *_: setattr(data, "mixture", [0, 1])
    trainer(numbers, max_epochs=2).fit(module, data)
    assert numbers.seen == list(range(64, 128))
    assert numbers.stages[4:] == [{1}] * 4 != numbers.stages[:4]
    assert module.batches_seen == 16


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


@pytest.mark.parametrize(("changed", "value"), [("seed", 4), ("batch_size", 16), ("batches_per_epoch", 5)])
def test_a_run_goes_on_with_the_problems_that_it_began_with(changed, value):
    options = {"seed": 3, "batch_size": 8, "batches_per_epoch": 4}
    saved, same = ProblemDataModule(ENV, **options).state_dict(), ProblemDataModule(ENV, **options)
    data = ProblemDataModule(ENV, **{**options, changed: value})
    data.trainer = same.trainer = trainer()
    data.trainer.state.fn = TrainerFn.TESTING
    data.load_state_dict(saved)
    data.trainer.state.fn = TrainerFn.FITTING
    same.load_state_dict(saved)
    with pytest.raises(ValueError, match=rf"^{changed}: got {value}, expected .* as in the checkpoint"):
        data.load_state_dict(saved)
