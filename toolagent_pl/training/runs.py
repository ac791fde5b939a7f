"""Where runs are, and the folder that a run writes into, which no other run writes into meanwhile."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from toolagent_pl.training.checkpoint_callback import LAST, Checkpoint
from toolagent_pl.training.monitors import StopOnNonFinite

LOG_NAME = "lightning_logs"
SOLVED = "hp/solved"  # share of all problems solved in the end, shown beside the hyper-parameters
LOCK = ".lock"  # the system gives it back when the process ends, however it ends
GRACE = 8.0  # seconds: what a killed run leaves behind, such as workers that load data, looks for it every five


def runs_below(root: str | None) -> Path:
    """Where all runs below a root directory are."""
    return Path(root or ".").expanduser() / LOG_NAME


def resolved(path: str | None, root: str | None, dirpath: str | None) -> str | None:
    """The path of a checkpoint.

    ``last`` and ``auto`` stand for the newest of the runs below the root, or the one in ``dirpath``; None without one.
    """
    if path not in ("last", "auto"):
        return path
    found = [Path(dirpath).expanduser() / LAST] if dirpath else runs_below(root).glob(f"version_*/checkpoints/{LAST}")
    return max((str(one) for one in found if one.is_file()), key=lambda one: Path(one).stat().st_mtime, default=None)


def found_checkpoint(path: str | None, root: str | None, dirpath: str | None, fits: bool) -> str | None:
    """The checkpoint to begin with, None to begin without.

    Args:
        path: Its path, or ``last`` for the newest, or ``auto`` for the newest if there is any; None for none.
        root: Root directory of runs.
        dirpath: Where a run keeps its checkpoint, if not below that.
        fits: Whether it is to train, which can begin without one.

    Raises:
        ValueError: If there is none.
    """
    if found := resolved(path, root, dirpath):
        found = str(Path(found).expanduser())
        if not Path(found).is_file():
            raise ValueError(f"ckpt_path: got {found}, expected a file that exists")
    elif path and (path == "last" or not fits):
        place = f"{LAST} in {dirpath}" if dirpath else f"checkpoints/{LAST} in {runs_below(root)}"
        raise ValueError(f"ckpt_path: got {path}, expected a run with {place}")
    elif not fits:
        raise ValueError("ckpt_path: got none, expected the path of a checkpoint, or last")
    return found or None


def configuration_for(checkpoint: str | Path) -> dict[str, Any]:
    """What the run of a checkpoint says of its environment and its agent; how it was trained, and on what, is left out.

    Nothing where its ``config.yaml`` is neither beside it nor one folder above it.
    """
    places = [folder / "config.yaml" for folder in Path(checkpoint).expanduser().absolute().parents[1::-1]]
    file = next((place for place in places if place.is_file()), None)
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    kept = {name: config[name] for name in ("seed_everything", "env", "model", "data") if name in config}
    kept.get("model", {}).pop("weights", None)  # where the run began
    return kept


def take_next(root: Path) -> Path:
    """Make the next ``version_N`` in a folder. Of runs that start together, the one that makes it has it."""
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name[8:]) for path in root.glob("version_*") if path.name[8:].isdigit()]
    for number in count(max(taken, default=-1) + 1):
        with suppress(FileExistsError):
            (run := root / f"version_{number}").mkdir()
            return run
    raise AssertionError("numbers do not end")


@contextmanager
def writing_alone(folder: Path, option: str) -> Iterator[None]:
    """Within it, no other run writes its checkpoint into a folder, which is made if it is not there.

    Args:
        folder: That an option names.
        option: Its name.

    Raises:
        ValueError: If another run does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=GRACE)
    except Timeout:
        raise ValueError(f"{option}: got {folder}, where a run is under way; expected another, or its end") from None
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


@contextmanager
def own_folder(trainer: Trainer, ckpt_path: str | None, batches: int | None, curves: bool) -> Iterator[None]:
    """Take ``lightning_logs/version_N`` below the root directory, whatever the logger, for what ``fit`` writes there.

    It is that of the run to go on with, or the next, which the first rank makes; the others hear of it where the
    loggers and ``Checkpoint`` are set up.

    Args:
        trainer: Of the run.
        ckpt_path: Checkpoint to go on from.
        batches: That it has seen.
        curves: Whether TensorBoard's logger is wanted.

    Raises:
        ValueError: If another run writes there, or has its checkpoint there.
    """
    root, path = runs_below(trainer.default_root_dir), Path(ckpt_path or "").resolve()
    goes_on = ckpt_path is not None and path.parent.parent.parent == root.resolve()
    first = trainer.is_global_zero
    with ExitStack() as stack:
        checkpoint = callback_of(trainer, Checkpoint)
        if checkpoint.dirpath and first:  # refused before anything else is made
            stack.enter_context(writing_alone(checkpoint.dirpath, "checkpoint.dirpath"))
            if not ckpt_path and (checkpoint.dirpath / LAST).exists():  # the run that has it may be over
                raise ValueError(
                    f"checkpoint.dirpath: got {checkpoint.dirpath}, where another run has its {LAST}; expected another "
                    "folder, or --ckpt_path=last to go on with that run"
                )
        run = root / path.parent.parent.name if goes_on else take_next(root) if first else root
        callback_of(trainer, LogConfig).folder = callback_of(trainer, StopOnNonFinite).folder = run
        if not checkpoint.dirpath:
            checkpoint.dirpath = run / "checkpoints"
            if first:
                stack.enter_context(writing_alone(checkpoint.dirpath, "ckpt_path"))
        if curves:
            trainer.logger = _tensorboard(run, batches if goes_on else None)
        yield


def callback_of(trainer: Trainer, kind: type) -> Any:
    """The trainer's callback of a kind."""
    return next(one for one in trainer.callbacks if isinstance(one, kind))  # type: ignore[attr-defined]


def _tensorboard(run: Path, step: int | None) -> TensorBoardLogger:
    """Curves in the directory of the run, without the points from a step on, which are logged again.

    TensorBoard reads files in the order of their names, which begin with the second of their making: of two that are
    made in the same second, points would be lost.
    """
    if any(run.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(1 - time.time() % 1)
    root, name = run.parent.parent, run.parent.name
    return TensorBoardLogger(root, name, version=run.name, default_hp_metric=False, purge_step=step)


class LogConfig(SaveConfigCallback):
    """Saves the configuration of a run as a file in its directory, and among TensorBoard's hyper-parameters.

    Attributes:
        folder: Directory of the run, None if it has none.
    """

    folder: Path | None = None

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write it, and hand it to the loggers."""
        begins = False
        if self.folder is not None:
            file = self.folder / self.config_filename
            begins = not file.exists()
            # One: for several it would change the working directory, in which TensorBoard's thread writes meanwhile.
            self.parser.save(self.config, file, skip_none=False, overwrite=True, multifile=False)
        flat = {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in vars(self.config.clone().as_flat()).items()
            if value is not None and not key.startswith(("config", "trainer.callbacks", "ckpt_path"))
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # it shows hyper-parameters beside a metric, or not at all
                logger.log_hyperparams(flat, {SOLVED: 0.0} if stage == "fit" and begins else None)
                logger.save()  # now: it is not logged again where a run that was killed goes on
            else:
                logger.log_hyperparams(flat)
