import os
import sys
from pathlib import Path

# The tensors are small; more threads only wait for each other, above all on a busy machine. For processes, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# The same examples in each run, and no deadline: a busy machine must not turn a test red.
settings.register_profile("toolagent", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("toolagent")

torch.set_num_threads(1)

CONFIGS = Path(__file__).parent.parent / "configs"
BLIND = f"--config={CONFIGS / 'stages.yaml'}"  # an agent and stages that are quick to train and to test
SHORT = [BLIND, "--trainer.max_epochs=1", "--data.batches_per_epoch=2", "--data.val_problems=20"]
SHORT += ["--trainer.accelerator=cpu"]
ONE_STAGE = ["--env.stages=[T0]", "--env.max_steps=3"]  # small: its test has 1,000 problems
TRAINED = [BLIND, "--model.agent.d=24", "--trainer.accelerator=cpu"]  # narrow: its test has 111,000 problems


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Drawing takes a third of a short run. A test that uses the fixture ``pictures`` draws."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("toolagent_pl.training.media.Pictures.on_train_end", lambda *_: None)


@pytest.fixture
def pictures():
    """Runs draw their pictures."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, whose modules are found; one named ``mine`` is read anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The directory of a short run with the options ``TRAINED``."""
    from toolagent_pl.cli.main import main

    directory = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(directory)
    try:
        main(["fit", *TRAINED, *SHORT[1:], "--trainer.log_every_n_steps=1", "--data.batch_size=64"])
    finally:
        os.chdir(before)
    return directory / "lightning_logs" / "version_0"


def refused(capsys, *words: str) -> str:
    """What a command says that is refused: the exit code is 2, no line is a traceback, and no run has begun."""
    from toolagent_pl.cli.main import main

    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert stopped.value.code == 2, lines
    assert "Traceback" not in "".join(lines)
    (first, *_) = [line for line in lines if line.startswith("error: ")]
    return first.removeprefix("error: ") + "".join(lines[lines.index(first) + 1 :])
