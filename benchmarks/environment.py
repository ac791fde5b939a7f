"""What a benchmark ran on, as it goes into the JSON beside the numbers."""

import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "numpy", "jax", "jaxlib")
QUIET = 0.1  # CPUs busy with something else, up to which a measurement counts as undisturbed
QUIET_SECONDS = 0.5
TABLE_WIDTH = 120


def environment() -> dict[str, Any]:
    """Machine, versions, commit and time."""
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
        "kernels": _kernels(),
        "commit": _commit(),
    }


def _kernels() -> str:
    """What this project computes with on a CPU."""
    from toolagent_pl.kernels import compiled

    module = compiled()
    return module.__name__.rpartition("._")[2] if module else "none"


def headline(facts: dict[str, Any]) -> str:
    """The facts in two lines."""
    machine, versions = facts["machine"], facts["versions"]
    shown = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    load = f"load average {machine['load_average_1min']}"
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gb']} GB, {load}\n"
        f"{shown}; kernels {facts['kernels']}; {facts['commit']}"
    )


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def child_environment() -> dict[str, str]:
    """Environment variables of a child process that must find this checkout's package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def busy_cpu_seconds() -> float | None:
    """CPU time that the whole machine has spent on anything since it started; None where that cannot be told."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = (int(field) for field in fields[:8])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(deadline: float) -> None:
    """Wait until nothing else computes, at most until ``time.monotonic()`` is ``deadline``."""
    while time.monotonic() < deadline:
        busy, start = busy_cpu_seconds(), time.perf_counter()
        time.sleep(QUIET_SECONDS)
        now = busy_cpu_seconds()
        if busy is None or now is None or (now - busy) / (time.perf_counter() - start) <= QUIET:
            return


def warn_of_others(console: Console, others: list[float]) -> None:
    """Say so if measurements were disturbed.

    Args:
        others: For each measurement, how many CPUs were busy with something else.
    """
    if disturbed := sum(share > QUIET for share in others):
        console.print(
            f"[yellow]During {disturbed} of {len(others)} measurements something else was computing "
            f"(up to {max(others):.1f} CPUs): do not trust these numbers.[/]"
        )


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
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
    return f"commit {commit.stdout.strip()}"


def console() -> Console:
    """Where to print, wide enough for the tables even where no terminal says how wide it is."""
    return Console(highlight=False, soft_wrap=True, width=max(Console().width, TABLE_WIDTH))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write what was measured; a benchmark that may be interrupted does so again and again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
