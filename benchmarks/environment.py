"""What a benchmark runs on, and how it runs other processes there, one at a time and in quiet."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "numpy", "scipy", "jax", "stable-baselines3", "sb3-contrib", "reasoning-gym")
QUIET = 0.1  # CPUs busy with something else, up to which a measurement counts as undisturbed
QUIET_SECONDS = 0.5
TABLE_WIDTH = 120
LAST_LINES = 3
DOCUMENT = "document.json"  # what a callback of a benchmark writes, in the directory of the run


class Finished(NamedTuple):
    """A process that has ended; ``others`` is how many CPUs were busy with something else meanwhile, 0 if unknown."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    others: float
    printed: str
    error: str | None


def run_python(arguments: Sequence[str], directory: Path, patience: float, threads: int | None = None) -> Finished:
    """Run Python in a directory, once nothing else computes, or ``patience`` seconds are over."""
    wait_until_quiet(patience)
    variables = child_environment()
    if threads:
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    with (directory / "printed").open("w+") as printed:
        busy, start = busy_cpu_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=directory, env=variables, stdout=printed, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds, busy_now = time.perf_counter() - start, busy_cpu_seconds()
        process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: nothing is left for Popen to wait for
        printed.seek(0)
        text = printed.read()
    own = usage.ru_utime + usage.ru_stime
    others = 0.0 if busy is None or busy_now is None else max(0.0, (busy_now - busy - own) / seconds)
    error = " | ".join(text.strip().splitlines()[-LAST_LINES:]) or f"exit status {process.returncode}"
    megabytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Finished(seconds, own, megabytes, others, text, error if process.returncode else None)


def run_fit(
    words: Sequence[str], callback: str, options: Mapping[str, Any], patience: float, threads: int | None = None
) -> tuple[Finished, Any]:
    """Run ``fit`` in an empty directory with a callback, which writes ``DOCUMENT``; that is None if the run fails."""
    own = [f"--trainer.callbacks+={callback}"]
    words_of = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    own += [f"--trainer.callbacks.{name}={word}" for name, word in words_of.items()]
    with tempfile.TemporaryDirectory() as directory:
        done = run_python(["-m", "toolagent_pl", "fit", *words, *own], Path(directory), patience, threads)
        return done, None if done.error else json.loads((Path(directory) / DOCUMENT).read_text())


def run_grid(
    console: Console,
    path: Path,
    common: Mapping[str, Any],
    wanted: Mapping[tuple[str | int, ...], Sequence[str]],
    callback: str,
    options: Mapping[str, Any],
    patience: float = 0.0,
    jobs: int = 1,
) -> tuple[list[dict[str, Any]], bool]:
    """Run ``fit`` with the words of each key, so many at a time; each run that ends becomes a line of JSON at once.

    Args:
        path: What is there already is not run again; a file of runs with other settings ends the process.
        common: ``settings``, which all runs of the file share, and ``environment``, which may differ.
        callback, options: See ``run_fit``.

    Returns:
        All runs of the file, and whether none failed.
    """
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # without half a line, of a process that was killed
    runs: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
    for run in runs:
        if run["settings"] != common["settings"]:
            print(f"error: output: got {path} with {run['settings']}, expected {common['settings']}", file=sys.stderr)
            sys.exit(2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(whole)
    there, good = [run["key"] for run in runs], True
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(run_fit, words, callback, options, patience, threads=1): list(key)
            for key, words in wanted.items()
            if list(key) not in there
        }
        try:
            for future in as_completed(futures):
                key, (done, document) = futures[future], future.result()
                said = f"failed: {done.error}" if done.error else f"done after {done.cpu_seconds:.0f} CPU seconds"
                console.print(*key, said, markup=False)
                good &= not done.error
                if document is not None:
                    runs.append({"key": key, **common, "others": done.others, **document})
                    with path.open("a") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
        finally:
            pool.shutdown(cancel_futures=True)
    return runs, good


def child_environment() -> dict[str, str]:
    """Environment variables of a child process that must find this checkout's packages."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"GOMP_SPINCOUNT": "1000", **os.environ, "PYTHONPATH": path}  # the former as the command line has it


def busy_cpu_seconds() -> float | None:
    """CPU time that the whole machine has spent on anything since it started; None where that cannot be told."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = (int(field) for field in fields[:8])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(patience: float) -> None:
    """Wait until nothing else computes, at most so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        busy, start = busy_cpu_seconds(), time.perf_counter()
        time.sleep(QUIET_SECONDS)
        now = busy_cpu_seconds()
        if busy is None or now is None or (now - busy) / (time.perf_counter() - start) <= QUIET:
            return


def warn_of_others(console: Console, others: Sequence[float]) -> None:
    """Say so if measurements were disturbed by others, which kept so many CPUs busy."""
    if disturbed := sum(share > QUIET for share in others):
        console.print(
            f"[yellow]During {disturbed} of {len(others)} measurements something else was computing "
            f"(up to {max(others):.1f} CPUs): do not trust these numbers.[/]"
        )


def environment() -> dict[str, Any]:
    """Machine, versions, commit and time, as they go into the JSON beside the numbers."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpu": _cpu(),
            "cpus": available_cpus(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_1min": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def started() -> tuple[Console, dict[str, Any]]:
    """Where to print, and the environment, of which two lines are printed."""
    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, TABLE_WIDTH))
    facts = environment()
    machine = facts["machine"]
    shown = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    console.print(
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gb']} GB, load {machine['load_average_1min']}"
    )
    console.print(f"{shown}; {facts['commit']}")
    return console, facts


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Hash of the checkout, marked where the project's own files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
    return f"commit {commit.strip()}"


def write_json(console: Console, path: Path, document: dict[str, Any], last: bool = True) -> None:
    """Write what was measured; a benchmark that may be interrupted does so again and again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    if last:
        console.print(f"written to {path}")


def arguments_of(description: str | None, output: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet before a measurement")
    parser.add_argument("--output", type=Path, default=Path(output), help="JSON to write")
    return parser
