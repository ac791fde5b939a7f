"""What a benchmark runs on, and how it runs other processes there, one at a time and in quiet."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "numpy", "jax", "reasoning-gym")
QUIET = 0.1  # CPUs busy with something else, up to which a measurement counts as undisturbed
QUIET_SECONDS = 0.5
TABLE_WIDTH = 120
LAST_LINES = 3


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
