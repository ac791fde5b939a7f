"""Whether a run that is killed again and again ends with the same bits as one that was left alone.

Run ``python -m benchmarks.chaos``. It kills (SIGKILL) training runs at random moments: at any time of the training,
while a checkpoint is being written, and while a process starts. After each kill ``last.ckpt`` must be readable, and
the run goes on with ``--ckpt_path=auto``. Each run is also told to stop once (SIGTERM). In the end its weights, its
optimizer, its curriculum and its number of updates must equal those of a run that was left alone. With ``--ranks 2``
one of two processes is killed each time, and the other must not stay.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.environment import child_environment, environment, headline, write_json
from benchmarks.environment import console as wide_console

EVERY_N_STEPS = 7
FIT = ["--trainer.accelerator=cpu", "--trainer.max_epochs=20", "--data.batch_size=64", "--data.val_problems=50"]
FIT += [f"--checkpoint.every_n_train_steps={EVERY_N_STEPS}", "--curriculum.every_n_epochs=2"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.callbacks=chaos_steps.Steps", "--ckpt_path=auto"]
CALLBACK = """
import os
import time

from lightning.pytorch import Callback


class Steps(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.is_global_zero:
            with open(os.environ["CHAOS_STEPS"], "a") as file:
                file.write(f"{trainer.global_step} {time.monotonic()}\\n")
"""
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
ANY_TIME, WRITING, STARTING = "any time", "writing", "starting"
TOLD, TO_THE_END = "told to stop", "to the end"
SHARES = {ANY_TIME: 0.6, WRITING: 0.3, STARTING: 0.1}
POLL = 0.0005  # seconds; a checkpoint is written in a few milliseconds
PAUSE = 0.5  # seconds between two polls from which on the machine itself must have paused, and times say nothing
PATIENCE = 300.0  # seconds for a run to get to its end
SURVIVAL = 20.0  # seconds that ranks may outlive one that was killed
RESUME_LIMIT, STOP_LIMIT = 2.0, 5.0  # seconds wanted


class Attempt(NamedTuple):
    """A process (of one or more ranks) from its start to its end.

    Attributes:
        run: Number of the run that it belongs to.
        how: What was done to it.
        rank: Which rank that was done to, None for all of them or none.
        resumed: Whether there was a checkpoint to go on from.
        seconds_to_train: From the start to the end of the first update; None if it never got there.
        seconds_to_end: From the signal until all ranks were gone.
        exit_code: Of the main process.
        trained: Updates when it ended.
        saved: Updates in ``last.ckpt``; None if there is none.
        repeated: Updates that are lost, and have to be made again.
        unfinished: Whether it left a checkpoint that it was writing.
        paused: Whether the machine paused meanwhile, so that the times say nothing.
        wrong: What should not be; None if all is well.
    """

    run: int
    how: str
    rank: int | None
    resumed: bool
    seconds_to_train: float | None
    seconds_to_end: float
    exit_code: int
    trained: int | None
    saved: int | None
    repeated: int | None
    unfinished: bool
    paused: bool
    wrong: str | None


class Plan(NamedTuple):
    """What to do to a process: after some seconds of training, or of starting."""

    how: str
    seconds: float
    rank: int | None


class Clock:
    """Waits in small steps, and notices if the machine did not run in between."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()
        self.paused = False

    def tick(self) -> float:
        """Wait a little; seconds since the start."""
        time.sleep(POLL)
        now = time.monotonic()
        self.paused |= now - self._last > PAUSE
        self._last = now
        return now - self.start


class Run:
    """A training run in a directory of its own, of as many processes as it takes."""

    def __init__(self, directory: Path, number: int, ranks: int) -> None:
        self.directory, self.number, self.ranks = directory, number, ranks
        self.attempts: list[Attempt] = []
        directory.mkdir()
        (directory / "chaos_steps.py").write_text(CALLBACK)

    @property
    def checkpoint(self) -> Path | None:
        """Its ``last.ckpt``, if there is one yet."""
        return next(self.directory.glob("lightning_logs/version_*/checkpoints/last.ckpt"), None)

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written, or was when the run was killed."""
        return any(self.directory.glob("lightning_logs/version_*/checkpoints/.last.ckpt.unfinished"))

    def attempt(self, plan: Plan) -> Attempt:
        """Start a process, and do to it what is planned."""
        resumed = self.checkpoint is not None
        steps = self.directory / f"steps{len(self.attempts)}"
        printed = self.directory / f"printed{len(self.attempts)}"
        for unfinished in self.directory.glob("lightning_logs/version_*/checkpoints/.last.ckpt.unfinished"):
            unfinished.unlink()  # one that is there later is being written later
        clock = Clock()
        with printed.open("w") as file:
            process = self._start(steps, file)
            family = self._wait_for(plan, process, steps, clock)
            told, waited = time.monotonic(), 0.0
            if process.poll() is None and plan.how != TO_THE_END:
                number = signal.SIGTERM if plan.how == TOLD else signal.SIGKILL
                for pid in family if plan.rank is None else family[plan.rank : plan.rank + 1] or family[:1]:
                    os.kill(pid, number)
            limit = PATIENCE if plan.how == TO_THE_END else SURVIVAL
            hanging = False
            while (process.poll() is None or any(map(_is_running, family[1:]))) and not hanging:
                clock.tick()
                waited = time.monotonic() - told
                hanging = waited > limit and not clock.paused
            for pid in family if hanging else []:
                if _is_running(pid):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        made = [line.split() for line in steps.read_text().splitlines()] if steps.exists() else []
        trained = int(made[-1][0]) if made else None
        saved, wrong = self._saved()
        furthest = max((a.trained for a in self.attempts if a.trained is not None and plan.how != TOLD), default=0)
        repeated = None if plan.how == TO_THE_END else max(trained or 0, furthest) - (saved or 0)
        expected = {TO_THE_END: [0], TOLD: [128 + signal.SIGTERM, 0]}.get(plan.how)
        if hanging:
            wrong = f"not all ranks had ended {limit:g} s later"
        elif expected and process.returncode not in expected:
            wrong = wrong or f"exit code {process.returncode}: {_tail(printed)}"
        elif repeated is not None and repeated > (0 if plan.how == TOLD else EVERY_N_STEPS):
            wrong = wrong or f"{repeated} updates lost"
        attempt = Attempt(
            run=self.number,
            how=plan.how,
            rank=plan.rank,
            resumed=resumed,
            seconds_to_train=float(made[0][1]) - clock.start if made else None,
            seconds_to_end=waited,
            exit_code=process.returncode,
            trained=trained,
            saved=saved,
            repeated=repeated,
            unfinished=self.is_writing(),
            paused=clock.paused,
            wrong=wrong,
        )
        self.attempts.append(attempt)
        return attempt

    def _start(self, steps: Path, printed: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "toolagent_pl", "fit", *FIT, f"--trainer.devices={self.ranks}"]
        command += ["--trainer.strategy=ddp"] if self.ranks > 1 else []
        variables = child_environment()
        variables["PYTHONPATH"] = f"{self.directory}{os.pathsep}{variables['PYTHONPATH']}"
        variables |= {"OMP_NUM_THREADS": "1", "CHAOS_STEPS": str(steps)}
        return subprocess.Popen(command, cwd=self.directory, env=variables, stdout=printed, stderr=subprocess.STDOUT)

    def _wait_for(self, plan: Plan, process: subprocess.Popen[bytes], steps: Path, clock: Clock) -> list[int]:
        """Wait for the moment to do what is planned, or for the end of the process; process ids of its ranks."""
        if plan.how == STARTING:
            while process.poll() is None and clock.tick() < plan.seconds:
                pass
            return [process.pid, *_children(process.pid)]
        while process.poll() is None and not steps.exists():
            clock.tick()
        family = [process.pid, *_children(process.pid)]
        if plan.how == TO_THE_END:
            return family
        moment = clock.tick() + plan.seconds
        while process.poll() is None and clock.tick() < moment:
            pass
        while plan.how == WRITING and process.poll() is None and not self.is_writing():
            clock.tick()
        return family

    def _saved(self) -> tuple[int | None, str | None]:
        """Updates in the last checkpoint, and what is wrong with it."""
        if self.checkpoint is None:
            return None, None
        try:
            return int(torch.load(self.checkpoint, weights_only=True)["global_step"]), None
        except Exception as error:  # whatever: it must be readable
            return None, f"last.ckpt cannot be read: {error}"


def _children(pid: int) -> list[int]:
    """Ranks that a rank started."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and "toolagent_pl" in row[2]]


def _is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def _tail(printed: Path) -> str:
    return " | ".join(printed.read_text().strip().splitlines()[-3:])


def _difference(one: Any, other: Any, name: str) -> str | None:
    """Name of the first thing that differs in two nested containers of tensors, to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else name
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return name
        return next(filter(None, (_difference(one[key], other[key], f"{name}.{key}") for key in one)), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return next(filter(None, (_difference(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(pairs))), None)
    return None if type(one) is type(other) and one == other else name


def _compare(run: Run, reference: Run) -> str | None:
    """What differs between the ends of two runs."""
    ends = []
    for checkpoint in (run.checkpoint, reference.checkpoint):
        if checkpoint is None:
            return "there is no checkpoint"
        state = torch.load(checkpoint, weights_only=True)
        ends.append({key: state[key] for key in COMPARED} | {"curriculum": state["callbacks"]["CurriculumCallback"]})
    different = _difference(ends[0], ends[1], "checkpoint")
    return f"{different} differs from the run that was left alone" if different else None


def _plans(draw: random.Random, kills: int, ranks: int, training: float, starting: float) -> list[Plan]:
    """Kills spread over the time of training, and one signal to stop among them."""
    moments = sorted(draw.uniform(0, training) for _ in range(kills + 1))
    hows = draw.choices(list(SHARES), list(SHARES.values()), k=kills)
    hows.insert(draw.randrange(kills + 1), TOLD)
    plans, before = [], 0.0
    for how, moment in zip(hows, moments, strict=True):
        rank = draw.randrange(ranks) if how != TOLD else draw.choice([None, 0])
        if how == STARTING:
            plans.append(Plan(how, draw.uniform(0, starting), rank))
        else:
            plans.append(Plan(how, moment - before, rank))
            before = moment
    return plans


def _is_kill(attempt: Attempt) -> bool:
    return attempt.how in SHARES and attempt.exit_code != 0


def _seconds(attempts: Sequence[Attempt], field: str) -> list[float]:
    return [getattr(a, field) for a in attempts if not a.paused and getattr(a, field) is not None]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _summary(attempts: Sequence[Attempt], wrong: Sequence[str]) -> dict[str, Any]:
    """What the attempts come to. Times are from attempts in which the machine did not pause."""
    kills = [a for a in attempts if _is_kill(a)]
    fresh = _median(_seconds([a for a in attempts if not a.resumed], "seconds_to_train"))
    resumed = _median(_seconds([a for a in attempts if a.resumed], "seconds_to_train"))
    stops = _seconds([a for a in attempts if a.how == TOLD and a.exit_code], "seconds_to_end")
    return {
        "kills": len(kills),
        "kills_by_kind": {how: sum(a.how == how for a in kills) for how in SHARES},
        "kills_that_left_an_unfinished_checkpoint": sum(a.unfinished for a in kills),
        "kills_before_the_first_checkpoint": sum(a.saved is None for a in kills),
        "most_updates_repeated": max((a.repeated or 0 for a in kills), default=0),
        "updates_between_checkpoints": EVERY_N_STEPS,
        "median_seconds_to_train_fresh": fresh,
        "median_seconds_to_train_resumed": resumed,
        "resuming_costs_seconds": None if fresh is None or resumed is None else resumed - fresh,
        "stops": len(stops),
        "median_seconds_to_stop": _median(stops),
        "most_seconds_to_stop": max(stops, default=None),
        "most_seconds_to_end_after_a_kill": max(_seconds(kills, "seconds_to_end"), default=None),
        "attempts_in_which_the_machine_paused": sum(a.paused for a in attempts),
        "wrong": list(wrong),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write; returns the exit status, 0 if nothing went wrong."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    facts = environment()
    console.print(headline(facts))
    draw = random.Random(options.seed)
    attempts: list[Attempt] = []
    wrong: list[str] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        reference = Run(Path(root) / "alone", 0, options.ranks)
        attempts.append(reference.attempt(Plan(TO_THE_END, 0, None)))
        _show(console, attempts[-1])
        if attempts[-1].wrong:
            console.print(f"[red]the run that is left alone fails: {attempts[-1].wrong}[/]")
            return 1
        lines = (reference.directory / "steps0").read_text().splitlines()
        training = float(lines[-1].split()[1]) - float(lines[0].split()[1])
        starting = attempts[0].seconds_to_train or 0.0
        console.print(
            f"left alone: {attempts[0].trained} updates in {training:.1f} s after {starting:.1f} s of starting"
        )
        number = 0
        while (left := options.kills - sum(map(_is_kill, attempts))) > 0 and not wrong[options.give_up - 1 :]:
            number += 1
            run = Run(Path(root) / f"run{number}", number, options.ranks)
            plans = _plans(draw, min(left, options.kills_per_run), options.ranks, training, starting)
            for plan in [*plans, Plan(TO_THE_END, 0, None)]:
                attempts.append(run.attempt(plan))
                _show(console, attempts[-1])
                if attempts[-1].wrong:
                    wrong.append(f"run {number}, {plan.how}: {attempts[-1].wrong}")
                if plan.how != TO_THE_END and attempts[-1].exit_code == 0:
                    break  # it got to its end before its time had come
            different = _compare(run, reference)
            console.print(f"run {number}: {different or 'ends with the same bits'}")
            if different:
                wrong.append(f"run {number}: {different}")
            document = {**facts, "seed": options.seed, "ranks": options.ranks, "runs": number}
            document |= {"seconds": time.monotonic() - start, **_summary(attempts, wrong)}
            document["attempts"] = [attempt._asdict() for attempt in attempts]
            write_json(options.output, document)
    console.print(_table(document))
    for line in wrong:
        console.print(f"wrong: {line}", style="red", markup=False)
    console.print(f"written to {options.output}")
    return 1 if wrong else 0


def _show(console: Console, attempt: Attempt) -> None:
    """A line as it goes."""
    rank = "" if attempt.rank is None else f", rank {attempt.rank}"
    trained = "before its first update" if attempt.trained is None else f"at update {attempt.trained}"
    saved = "no checkpoint" if attempt.saved is None else f"checkpoint of {attempt.saved}"
    began = "" if attempt.seconds_to_train is None else f", trained after {attempt.seconds_to_train:.1f} s"
    ended = f", all gone {attempt.seconds_to_end:.2f} s later" if attempt.how != TO_THE_END else ""
    marks = ", was writing" * attempt.unfinished + ", the machine paused" * attempt.paused
    how = f"{attempt.how}{rank}"
    console.print(
        f"run {attempt.run}: {'resumed' if attempt.resumed else 'fresh':7} {how:22} {trained}, {saved}{began}{ended}"
        f"{marks}{': ' + attempt.wrong if attempt.wrong else ''}",
        markup=False,
    )


def _table(document: dict[str, Any]) -> Table:
    def seconds(value: float | None) -> str:
        return "?" if value is None else f"{value:.2f} s"

    ranks = f"{document['ranks']} rank{'s' * (document['ranks'] > 1)}"
    table = Table(box=box.SIMPLE_HEAD, title=f"{ranks}, {document['runs']} runs", title_justify="left")
    for name, side in (("", "left"), ("measured", "right"), ("wanted", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    kinds = ", ".join(f"{count} {how}" for how, count in document["kills_by_kind"].items())
    table.add_row(f"kills ({kinds})", str(document["kills"]), "")
    table.add_row("something wrong", str(len(document["wrong"])), "0")
    table.add_row("updates repeated, at most", str(document["most_updates_repeated"]), f"at most {EVERY_N_STEPS}")
    table.add_row("first update of a fresh start, median", seconds(document["median_seconds_to_train_fresh"]), "")
    table.add_row("first update of a resumed one, median", seconds(document["median_seconds_to_train_resumed"]), "")
    cost = document["resuming_costs_seconds"]
    table.add_row("resuming costs", seconds(cost), f"at most {RESUME_LIMIT:g} s")
    table.add_row("from SIGTERM to the end, median", seconds(document["median_seconds_to_stop"]), "")
    table.add_row("the longest", seconds(document["most_seconds_to_stop"]), f"at most {STOP_LIMIT:g} s")
    table.add_row(
        "from a kill to the end of all ranks, at most",
        seconds(document["most_seconds_to_end_after_a_kill"]),
        f"at most {SURVIVAL:g} s",
    )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=50, help="how often to kill")
    parser.add_argument("--kills-per-run", type=int, default=10, help="how often to kill one run before its end")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--give-up", type=int, default=5, help="failures after which to stop")
    parser.add_argument("--output", type=Path, default=Path("chaos.json"), help="JSON to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
