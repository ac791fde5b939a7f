"""Checkpoints that come from anyone: refused in one line, before anything in them runs."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tests.conftest import TRAINED
from toolagent_pl.cli.main import main
from toolagent_pl.rl.files import _check_storages
from toolagent_pl.training.checkpoints import AtomicCheckpointIO, CheckpointError

COMMANDS = ["fit", "validate", "test", "predict"]
OPTIONS = [*TRAINED, "--data.batch_size=64", "--data.batches_per_epoch=2", "--data.val_problems=20"]
SENTINEL = "sentinel"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint(trained):
    return torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)


class Foreign:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return open, (SENTINEL, "w")


def refusal(capsys, command: str, path: str, *options: str) -> str:
    """The one line that a refused checkpoint leads to; nothing else is written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([command, *OPTIONS, f"--ckpt_path={path}", *options])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2, errors
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert not Path(SENTINEL).exists()
    return line


def rewritten(source: Path, change) -> bytes:
    """A checkpoint whose files are changed, with checksums that are right again."""
    target = io.BytesIO()
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for part in archive.infolist():
            if (content := change(part.filename, archive.read(part))) is not None:
                copy.writestr(part.filename, content)
    return target.getvalue()


def with_foreign_code(kind: str, checkpoint, source: Path) -> bytes:
    if kind == "pickle":
        return pickle.dumps(Foreign())
    if kind == "old format":
        file = io.BytesIO()
        torch.save({**checkpoint, "extra": Foreign()}, file, _use_new_zipfile_serialization=False)
        return file.getvalue()
    if kind == "inside":
        file = io.BytesIO()
        torch.save({**checkpoint, "callbacks": {"CurriculumCallback": Foreign()}}, file)
        return file.getvalue()
    return rewritten(source, lambda name, content: pickle.dumps(Foreign()) if name.endswith(".pkl") else content)


@pytest.mark.parametrize("kind", ["pickle", "old format", "inside", "replaced"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_with_foreign_code_is_refused_before_it_runs(capsys, trained, checkpoint, command, kind):
    content = with_foreign_code(kind, checkpoint, trained / "checkpoints" / "last.ckpt")
    Path("foreign.ckpt").write_bytes(content)
    assert "ckpt_path: got foreign.ckpt, expected a checkpoint" in refusal(capsys, command, "foreign.ckpt")
    assert not Path("lightning_logs").exists()
    # It would have run.
    with zipfile.ZipFile(io.BytesIO(content)) if content[:2] == b"PK" else io.BytesIO(content) as file:
        torch.load(io.BytesIO(content), weights_only=False) if kind != "pickle" else pickle.load(file)
    assert Path(SENTINEL).exists()


def set_at(tree, path, value):
    *parents, last = path
    for key in parents:
        tree = tree[key]
    if value is None:
        del tree[last]
    else:
        tree[last] = value(tree[last]) if callable(value) else value


SOMETHING_ELSE = "expected a checkpoint; this file is something else, or cut short"
UNFIT = "expected a checkpoint of such a run; it cannot be restored"
MOMENT = ["optimizer_states", 0, "state", 2, "exp_avg"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["toolagent_pl"], "1", "a checkpoint of another program, expected one of toolagent_pl"),
        (["state_dict", "agent.gru.bias_hh_l0"], None, "with nothing for agent.gru.bias_hh_l0"),
        (["state_dict", "agent.gru.bias_hh_l0"], "weights", UNFIT),
        (["state_dict", "more"], torch.zeros(3), UNFIT),
        (["loops", "fit_loop"], None, UNFIT),
        (["callbacks"], 3, UNFIT),
        (["callbacks", "CurriculumCallback", "phase"], 3, "curriculum.stages: got 3 phases, expected more than 3"),
        (["ProblemDataModule"], [], UNFIT),
        (["optimizer_states"], None, UNFIT),
        (["optimizer_states"], [{"state": {}, "param_groups": []}], UNFIT),
        (MOMENT, torch.zeros(7), "ckpt_path: got exp_avg of [7] in the checkpoint, expected"),
        (MOMENT, lambda moment: moment[:1].expand_as(moment), "ckpt_path: got exp_avg of"),
    ],
)
def test_fit_refuses_a_checkpoint_that_it_could_not_go_on_from(capsys, checkpoint, path, value, message):
    set_at(checkpoint, path, value)
    torch.save(checkpoint, "other.ckpt")
    assert message in refusal(capsys, "fit", "other.ckpt", "--trainer.max_epochs=2")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("path", "value", "message"), [
    (["toolagent_pl"], None, "a checkpoint of another program"),
    (["toolagent_pl", "format"], 1, "a checkpoint of format 1, expected format 4"),
    (["pytorch-lightning_version"], "one", UNFIT),
])  # fmt: skip
def test_every_command_refuses_checkpoints_of_others(capsys, checkpoint, command, path, value, message):
    set_at(checkpoint, path, value)
    torch.save(checkpoint, "other.ckpt")
    assert message in refusal(capsys, command, "other.ckpt")


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_whose_tensors_are_cut_is_refused(capsys, trained, command):
    def cut(name, content):
        return content[:100] if "/data/" in name else content

    Path("cut.ckpt").write_bytes(rewritten(trained / "checkpoints" / "last.ckpt", cut))
    assert "ckpt_path: got cut.ckpt, expected a checkpoint" in refusal(capsys, command, "cut.ckpt")


def test_tensors_that_take_more_than_is_there_are_refused(tmp_path):
    """PyTorch says so itself by now."""
    weights = torch.zeros(10)
    torch.save({"weights": weights, "part": weights[3:]}, tmp_path / "small.ckpt")
    _check_storages(tmp_path / "small.ckpt", {"weights": weights, "part": weights[3:]})
    with pytest.raises(ValueError, match="tensors of 44 bytes in 40"):
        _check_storages(tmp_path / "small.ckpt", {"weights": torch.zeros(11, device="meta")})


def test_one_flipped_bit_in_a_weight_is_found(capsys, trained):
    content = bytearray((trained / "checkpoints" / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    Path("flipped.ckpt").write_bytes(content)
    assert SOMETHING_ELSE in refusal(capsys, "test", "flipped.ckpt")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_stages_that_are_not_those_of_the_checkpoint_are_named(capsys, trained, command):
    line = refusal(capsys, command, str(trained / "checkpoints" / "last.ckpt"), "--env.stages=[T0]")
    assert "env.stages: got ['T0'], expected ['T0', 'T1', 'T2'] as in the checkpoint" in line


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before():
    file, unfinished = AtomicCheckpointIO(), Path(".last.ckpt.unfinished")
    unfinished.mkdir()  # stands in the way, for root too
    with pytest.raises(CheckpointError, match=r"^checkpoint: cannot write last.ckpt \(Is a directory\); there is none"):
        file.save_checkpoint({"weights": torch.zeros(1000)}, "last.ckpt")
    unfinished.rmdir()
    file.save_checkpoint({"weights": torch.ones(3)}, "last.ckpt")
    unfinished.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"\(No space left on device\); the one before it is intact"):
        file.save_checkpoint({"weights": torch.zeros(1000)}, "last.ckpt")
    assert file.load_checkpoint("last.ckpt")["weights"].tolist() == [1, 1, 1]
