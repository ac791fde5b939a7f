"""Options of Lightning's trainer that are refused, by name and with the reason."""

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from tests.conftest import BLIND
from tests.test_cli import error_of
from toolagent_pl.trainer_options import TABLE, shown


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("overfit_batches=2", "got 2, expected 0: problems are made afresh"),
        ("overfit_batches=0.5", "got 0.5, expected 0: problems"),
        ("gradient_clip_val=-1", "got -1, expected model.max_grad_norm in its place"),
        ("accumulate_grad_batches=0", "got 0, expected model.accumulate in its place"),
        ("accumulate_grad_batches=-1", "got -1, expected model.accumulate in its place"),
        ("limit_train_batches=1", "got 1, expected data.batches_per_epoch in its place"),
        ("limit_val_batches=1", "got 1, expected data.val_problems in its place"),
        ("limit_val_batches=0", "got 0, expected data.val_problems in its place"),
        ("limit_test_batches=5", "got 5, expected data.test_problems in its place"),
        ("limit_test_batches=0.1", "got 0.1, expected data.test_problems in its place"),
        ("limit_predict_batches=0", "got 0, expected data.predict_problems in its place"),
        ("val_check_interval=0", "got 0, expected data.batches_per_epoch in its place"),
        ("check_val_every_n_epoch=0", "got 0, expected 1, and data.batches_per_epoch"),
        ("check_val_every_n_epoch=-1", "got -1, expected 1, and data.batches_per_epoch"),
        ("check_val_every_n_epoch=null", "got null, expected 1, and data.batches_per_epoch"),
        ("log_every_n_steps=0", "got 0, expected at least 1"),
        ("log_every_n_steps=-1", "got -1, expected at least 1"),
        ("max_epochs=0", "got 0, expected at least 1, or -1 for no limit"),
        ("max_steps=0", "got 0, expected at least 1, or -1 for no limit"),
        ("max_steps=-2", "got -2, expected at least 1, or -1 for no limit"),
        ("max_time=00:00:00:00", "expected days:hours:minutes:seconds"),
        ("max_time=soon", "got soon, expected days:hours:minutes:seconds"),
        ("min_epochs=5", "got 5, expected null"),
        ("min_steps=5", "got 5, expected null"),
        ("num_sanity_val_steps=-2", "got -2, expected at least 0, or -1"),
        ("fast_dev_run=-1", "got -1, expected a number of batches, true or false"),
        ("barebones=true", "got true, expected false"),
        ("enable_checkpointing=false", "got false, expected true"),
        ("use_distributed_sampler=false", "got false, expected true"),
        ("reload_dataloaders_every_n_epochs=1", "got 1, expected 0"),
        ("model_registry=mine", "got mine, expected null"),
        ("accelerator=tpu", "got tpu, expected auto, cpu, gpu"),
        ("accelerator=mps", "got mps, expected auto, cpu, gpu"),
        ("devices=0", "got 0, expected auto"),
        ("num_nodes=0", "got 0, expected at least 1"),
        ("precision=transformer-engine", "got transformer-engine, expected 32-true, 64-true, bf16-mixed"),
        ("precision=16-true", "got 16-true, expected 32-true"),
        ("strategy=ddp_spawn", "got ddp_spawn, expected auto, ddp"),
        ("strategy=fsdp", "got fsdp, expected auto, ddp"),
        ("strategy=deepspeed", "got deepspeed, expected auto, ddp"),
        ("callbacks=LearningRateFinder", "got LearningRateFinder, expected model.learning_rate in its place"),
        ("default_root_dir=/dev/null", "got /dev/null, expected a folder that can be written to"),
    ],
)
def test_it_is_refused_in_one_line(capsys, option, expected):
    line = error_of(capsys, "fit", BLIND, "--trainer.accelerator=cpu", f"--trainer.{option}")
    assert line.startswith(f"error: trainer.{option.partition('=')[0]}: ")
    assert expected in line


def test_what_the_trainer_does_without_being_told_is_accepted():
    defaults = {name: parameter.default for name, parameter in _parameters().items()}
    for rule in TABLE:
        assert rule.accepts(defaults[rule.option] if rule.option != "num_nodes" else 1), rule.option


def test_a_class_that_starts_forks_is_refused():
    rule = next(rule for rule in TABLE if rule.option == "strategy")
    path = "lightning.pytorch.strategies.DDPStrategy"
    assert rule.accepts(Namespace(class_path=path, init_args=Namespace(start_method="popen")))
    assert not rule.accepts(Namespace(class_path=path, init_args=Namespace(start_method="spawn")))
    assert not rule.accepts(Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy"))


def test_values_are_shown_as_they_are_written():
    assert [shown(value) for value in (None, True, False, 1, 0, 1.0, "x")] == [
        "null", "true", "false", "1", "0", "1.0", "x",
    ]  # fmt: skip


def _parameters():
    import inspect

    return inspect.signature(Trainer.__init__).parameters
