"""Whether a GPU computes what a CPU computes, and how fast.

``python -m benchmarks.gpu --check`` compares the two, and looks for what makes the CPU wait for the GPU.
``python -m benchmarks.gpu --measure`` trains with growing batches until memory is out. ``bash benchmarks/gpu.sh`` does
both, and trains with the command line. With ``--device cpu`` all of it can be tried where there is no GPU.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch._dynamo
from lightning.fabric.utilities.throughput import get_available_flops
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.bare import BareLoop
from benchmarks.check import EPISODES, TOLERANCE, TOOL_BIAS
from benchmarks.contestants.contestant import ACTIONS, OPERANDS, VOCABULARY, flop_per_token, initial_weights
from benchmarks.contestants.this_project import ThisProject
from benchmarks.environment import console as wide_console
from benchmarks.environment import environment, headline, write_json
from benchmarks.throughput import positive
from toolagent_pl.learning.rollout import MAX_HORIZON, rollout
from toolagent_pl.machines import CalculatorMachine, TutorialMachine, execute
from toolagent_pl.machines.rewards import OutcomeReward, ProgressReward, TutorialReward
from toolagent_pl.module import LEAST_FOR_COMPILING
from toolagent_pl.problems import Ladder
from toolagent_pl.problems.stream import FixedProblems, ProblemStream
from toolagent_pl.randomness import Purpose, random_uniform
from toolagent_pl.tokens import TOOLS

CPU = torch.device("cpu")
NAMES = ("T0", "T1", "T2")
PROGRAMS = 4096
STEPS = 12
NEARLY_ALL = 0.99  # of the greedy episodes; where two actions are equally likely, rounding decides
COMPILED_UPDATES = 6
TRAINED = 25  # updates, before greedy actions are compared
NOT_FINITE = 25  # call of the reward that returns NaN: that of step 24, from 0
D = 96
STAGE = 2
SLICE = 10  # updates between two looks at the clock
# Name, precision of matrix products as PyTorch calls it, and that of autocast.
PRECISIONS = (("float32", "highest", None), ("TF32", "high", None), ("bf16", "highest", torch.bfloat16))
LAUNCHES = {"cuda": ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"), "cpu": ("aten::",)}


class CheckError(AssertionError):
    """A GPU computes something else, or is waited for."""


class NotFinite(OutcomeReward):
    """Returns NaN once."""

    calls = 0

    def __call__(self, *args: Any) -> Tensor:
        """Reward of each step, float32 ``[T, B]``."""
        NotFinite.calls += 1
        return super().__call__(*args) * (float("nan") if NotFinite.calls == NOT_FINITE else 1.0)


def equal(what: str, device_tensor: Tensor, cpu_tensor: Tensor) -> None:
    """Raise unless both are the same, bit for bit."""
    if not torch.equal(device_tensor.cpu(), cpu_tensor):
        wrong = int((device_tensor.cpu() != cpu_tensor).sum())
        raise CheckError(f"{what}: {wrong} of {cpu_tensor.numel()} numbers differ")


def relative(what: str, ours: Any, expected: Any) -> float:
    """Largest difference of two arrays over the largest number in them; raises if it is not small."""
    ours, expected = (np.asarray(torch.as_tensor(x).detach().cpu()) for x in (ours, expected))
    off = float(np.abs(ours - expected).max() / max(np.abs(expected).max(), 1e-12))
    if not off <= TOLERANCE:
        raise CheckError(f"{what}: off by {off:.1e}, more than {TOLERANCE:.0e}")
    return off


def check_machines(device: torch.device) -> str:
    """Random programs on both machines: all states, outcomes and rewards."""
    draw = torch.Generator().manual_seed(0)
    number = torch.arange(PROGRAMS)
    ladder = Ladder(NAMES)
    stage = torch.randint(len(NAMES), (PROGRAMS,), generator=draw)
    problems = ladder.problems(number, stage, torch.randint(1000, (PROGRAMS,), generator=draw))
    tools = torch.tensor(TOOLS)[torch.randint(len(TOOLS), (PROGRAMS, STEPS), generator=draw)]
    any_token = torch.randint(-1, VOCABULARY, (PROGRAMS, STEPS), generator=draw)
    actions = torch.where(torch.rand(PROGRAMS, STEPS, generator=draw) < 0.8, tools, any_token)
    answered = 0
    for machine, rewards in (
        (CalculatorMachine(STEPS), [OutcomeReward(), ProgressReward()]),
        (TutorialMachine(STEPS), [OutcomeReward(), TutorialReward()]),
    ):
        name = type(machine).__name__
        expected = execute(machine, problems, actions)
        states = execute(machine, problems.to(device), actions.to(device))
        for t, (state, other) in enumerate(zip(states, expected, strict=True)):
            for field in ("value", "valued", "done", "answered", "steps", "idle"):
                equal(f"{name}, {field} after {t} steps", getattr(state, field), getattr(other, field))
        outcome, other = machine.outcome(states[-1]), machine.outcome(expected[-1])
        for field, ours, theirs in zip(outcome._fields, outcome, other, strict=True):
            equal(f"{name}, {field}", ours, theirs)
        answered += int(other.answered.sum())
        for reward in rewards:
            paid = reward(machine, states[-1], actions.T.to(device))
            relative(f"{name}, {type(reward).__name__}", paid, reward(machine, expected[-1], actions.T))
    return f"{2 * PROGRAMS:,} random programs, {answered:,} of them answer: all states, outcomes and rewards equal"


def check_problems(device: torch.device) -> str:
    """The problems of the stream, and those to validate and test on."""
    compared = 0
    for mixture in ([1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.025, 0.025, 0.95]):
        for position in (0, 1, 12345):
            batches = []
            for where in (device, CPU):
                stream = ProblemStream(Ladder(NAMES), 3, 2 * PROGRAMS, batches=1, rank=1, ranks=2, device=where)
                stream.mixture = mixture
                batches.append(stream.batch(position))
            compared += batches[1].size
            for field, ours, theirs in zip(batches[0]._fields, *batches, strict=True):
                equal(f"{field} of batch {position}", ours, theirs)
    fixed = [FixedProblems(Ladder(NAMES), None, 2**14, device=where) for where in (device, CPU)]
    for ours, theirs in zip(*fixed, strict=True):
        compared += theirs.size
        for field, one, other in zip(theirs._fields, ours, theirs, strict=True):
            equal(f"{field} of all problems", one, other)
    return f"{compared:,} problems equal, bit for bit"


def check_noise(device: torch.device) -> str:
    """The noise that actions are drawn with."""
    counter = torch.arange(PROGRAMS * MAX_HORIZON) * 7919
    for seed in (0, 2**32 - 1):
        ours, theirs = (random_uniform(seed, Purpose.ACTION, counter.to(where)) for where in (device, CPU))
        equal(f"noise of seed {seed}", ours, theirs)
    return f"{2 * len(counter):,} draws equal, bit for bit"


def check_gradients(device: torch.device) -> str:
    """Loss and gradients of given actions, of the tutorial's agent and of the default one."""
    off = 0.0
    random = np.random.default_rng(0)
    for stage in range(len(NAMES)):
        operands = random.integers(0, 10, (EPISODES, OPERANDS))
        actions = random.choice([int(tool) for tool in TOOLS], (EPISODES, ACTIONS))
        weights = initial_weights(D, stage)
        weights["policy_bias"][list(TOOLS)] += TOOL_BIAS
        results = []
        for where in (device, CPU):
            contestant = ThisProject(EPISODES, stage, 0, D, where)
            contestant.load(weights)
            results.append(contestant.loss_and_gradients(operands, actions))
        (loss, gradients), (expected_loss, expected) = results
        off = max(off, relative(f"loss on {NAMES[stage]}", loss, expected_loss))
        for part in expected:
            off = max(off, relative(f"gradient of {part} on {NAMES[stage]}", gradients[part], expected[part]))
    loops = [BareLoop(EPISODES, where, mixture=(0.2, 0.3, 0.5)) for where in (device, CPU)]
    module, problems = loops[1].module, loops[1].stream.batch(0)
    choices = rollout(module.agent, module.machine, problems, module.horizon, module.seed, True).choices
    losses = []
    for loop in loops:
        module, where = loop.module, loop.stream.device
        episodes = rollout(
            module.agent, module.machine, problems.to(where), module.horizon, past_end=True, choices=choices.to(where)
        )
        rewards = module.reward(module.machine, episodes.final, episodes.tokens)
        assert episodes.judgement is not None
        terms = module.algorithm(episodes, rewards, episodes.judgement, lambda x: x)
        terms.loss.backward()
        losses.append(terms.loss)
    off = max(off, relative("loss of the default agent", *losses))
    for name, parameter in loops[1].module.named_parameters():
        ours = loops[0].module.get_parameter(name).grad
        off = max(off, relative(f"gradient of {name} of the default agent", ours, parameter.grad))
    return f"losses and gradients of given actions are off by at most {off:.0e}"


def check_actions(device: torch.device) -> str:
    """Greedy actions of an agent that has learned a little."""
    loop = BareLoop(EPISODES, device)
    for _ in range(TRAINED):
        loop.update()
    same = total = 0
    module, at_home = loop.module, copy.deepcopy(loop.module).cpu()
    for ours, theirs in zip(*(FixedProblems(module.ladder, 1000, 1000, device=w) for w in (device, CPU)), strict=True):
        with torch.no_grad():
            ended = [one.act(batch).final for one, batch in ((module, ours), (at_home, theirs))]
        fields = [(one.value, one.steps, one.answered) for one in ended]
        equal_rows = torch.stack([a.cpu() == b for a, b in zip(*fields, strict=True)]).all(0)
        same, total = same + int(equal_rows.sum()), total + len(equal_rows)
    if same < NEARLY_ALL * total:
        raise CheckError(f"{same:,} of {total:,} greedy episodes end equally")
    return f"{same:,} of {total:,} greedy episodes end equally"


def check_compiled(device: torch.device) -> str:
    """Updates of a compiled step; the third and later ones replay CUDA graphs."""
    if torch.__version__ < LEAST_FOR_COMPILING:
        return f"SKIPPED: PyTorch {torch.__version__} cannot compile a step"
    loops = [BareLoop(EPISODES, device, stages=["T0"], max_steps=3) for _ in range(2)]
    plain, compiled = (loop.module for loop in loops)
    learn = torch.compile(compiled.learn, dynamic=False, mode="reduce-overhead")
    stream, off = loops[0].stream, 0.0
    compiled.learn(stream.batch(0))  # the machine makes its table
    for position in range(COMPILED_UPDATES):
        problems = stream.batch(position)
        expected, step = plain.learn(problems, with_points=True), learn(problems, with_points=True)
        for module, loss in ((plain, expected.loss), (compiled, step.loss)):
            module.zero_grad()
            loss.backward()
        points = [torch.stack([*one.points.values()]) for one in (step, expected)]  # some of them are nearly 0
        off = max(off, relative(f"points of step {position}", *points))
        for name, weight in plain.named_parameters():
            gradient = compiled.get_parameter(name).grad
            off = max(off, relative(f"gradient of {name} of step {position}", gradient, weight.grad))
    if device.type == "cuda" and (skipped := counters["inductor"]["cudagraph_skips"]):
        raise CheckError(f"{skipped} graphs of the compiled step are no CUDA graphs")
    return f"points and gradients of {COMPILED_UPDATES} compiled steps are off by at most {off:.0e}"


def check_no_waiting(device: torch.device) -> str:
    """Nothing in an update makes the CPU wait for the GPU, the making of its problems included."""
    if device.type != "cuda":
        return f"SKIPPED: {device.type} has no mode that tells of waiting"
    loops = {"the default agent": BareLoop(1024, device), "the tutorial": ThisProject(1024, STAGE, 0, D, device)}
    waits = []
    for name, loop in loops.items():
        for _ in range(3):  # tables and Adam's state are made
            loop.update()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop.update()
        except RuntimeError as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame[0]]
            line = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"
            waits.append(f"{name} waits in {line} ({str(error).splitlines()[0]})")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if waits:
        raise CheckError("; ".join(waits))
    return "an update of the default agent, and one of the tutorial, wait for nothing"


def check_not_finite(device: torch.device) -> str:
    """A run whose reward is NaN once stops with one line, and leaves a good checkpoint."""
    from toolagent_pl.cli import main as command_line

    accelerator = "gpu" if device.type == "cuda" else "cpu"
    NotFinite.calls = 0
    with empty_directory():
        try:
            command_line(
                [
                    "fit",
                    f"--trainer.accelerator={accelerator}",
                    "--trainer.devices=1",
                    "--data.batch_size=64",
                    "--data.batches_per_epoch=100",
                    "--trainer.log_every_n_steps=10",
                    "--checkpoint.every_n_train_steps=20",
                    "--model.reward=benchmarks.gpu.NotFinite",
                ]
            )
        except SystemExit as stopped:
            said = str(stopped.code)
        else:
            raise CheckError("the run did not stop")
        expected = f"error: step {NOT_FINITE - 1}: loss or gradient is not finite"
        if not said.startswith(expected) or "\n" in said or "last.ckpt" not in said:
            raise CheckError(f"got {said!r}, expected one line that begins with {expected!r}")
        checkpoint = torch.load(next(Path.cwd().rglob("last.ckpt")), map_location="cpu", weights_only=True)
    step = checkpoint["global_step"]
    if step != 20 or not all(bool(weight.isfinite().all()) for weight in checkpoint["state_dict"].values()):
        raise CheckError(f"the last checkpoint, of step {step}, is not that of step 20, or not good")
    return f"stops with: {said.split(';')[0]}; the last checkpoint is good"


@contextmanager
def empty_directory() -> Iterator[None]:
    """Work in a directory that is gone afterwards."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(here)


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "machines": check_machines,
    "problems": check_problems,
    "noise": check_noise,
    "gradients": check_gradients,
    "actions": check_actions,
    "compiled": check_compiled,
    "no waiting": check_no_waiting,
    "not finite": check_not_finite,
}


def check(console: Console, device: torch.device) -> bool:
    """Make all checks, and print what comes out; whether all are passed."""
    torch.set_float32_matmul_precision("highest")  # no TF32: it rounds to three digits
    good = True
    for name, function in CHECKS.items():
        start = time.perf_counter()
        try:
            text, passed = function(device), True
        except Exception as error:  # whatever goes wrong on a device never tried
            traceback.print_exc()
            text, passed = f"{type(error).__name__}: {error}", False
        good &= passed
        verdict = "ok    " if passed else "FAILED"
        console.print(f"{verdict} {name:10} {text} ({time.perf_counter() - start:.1f} s)", markup=False)
    return good


def measure(console: Console, options: argparse.Namespace) -> dict[str, Any]:
    """Speed of training by precision and batch."""
    device = options.device
    rows, products = [], {}
    for name, precision, low in PRECISIONS:
        if name not in options.precision:
            continue
        torch.set_float32_matmul_precision(precision)
        products[name] = {"measured": _product_flops(device, low), "data_sheet": _data_sheet_flops(device, low)}
        for batch in options.batch:
            torch._dynamo.reset()  # it compiles a function eight times, and then no more
            try:
                row = _speed(ThisProject(batch, STAGE, 0, D, device, low, options.compile), options.seconds)
            except torch.OutOfMemoryError:
                console.print(f"{name}: memory is out at a batch of {batch:,}")
                break
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            flops = row["tokens_per_second"] * flop_per_token(D)
            shares = {f"mfu_{peak}": flops / value if value else None for peak, value in products[name].items()}
            rows.append({"precision": name, "batch": batch, **row, **shares})
    torch.set_float32_matmul_precision("highest")
    console.print(_table(rows, products))
    return {"peak_flops": products, "results": rows}


def _speed(contestant: ThisProject, seconds: float) -> dict[str, Any]:
    """Time, memory and launches of updates."""
    device, batch = contestant.device, contestant.stream.batch_size
    for _ in range(3):  # compiles, warms up, and records
        contestant.update()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    done, start = 0, time.perf_counter()
    while not done or time.perf_counter() - start < seconds:
        for _ in range(SLICE if device.type == "cuda" else 1):
            contestant.update()
            done += 1
        _wait(device)
    each = (time.perf_counter() - start) / done
    # What graphs use was allocated before, and is only reserved by now.
    peak = torch.cuda.max_memory_reserved() / 2**20 if device.type == "cuda" else None
    return {
        "ms_per_update": each * 1e3,
        "tokens_per_second": batch * ACTIONS / each,
        "peak_mb": peak,
        "launches": _launches(contestant, device),
    }


def _launches(contestant: ThisProject, device: torch.device) -> int:
    """Kernels that one update launches; operations, on a CPU."""
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        contestant.update()
        _wait(device)
    names = LAUNCHES[device.type]
    return sum(event.count for event in profile.key_averages() if event.key.startswith(names))


def _product_flops(device: torch.device, low: torch.dtype | None) -> float:
    """FLOP/s of a product of two large matrices, the best of a few."""
    size, count = (8192, 5) if device.type == "cuda" else (512, 2)
    left, right = (torch.rand(size, size, device=device).to(low or torch.float32) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            left @ right
        _wait(device)
        best = min(best, (time.perf_counter() - start) / count)
    return 2 * size**3 / best


def _data_sheet_flops(device: torch.device, low: torch.dtype | None) -> float | None:
    """As Lightning knows them; it takes TF32 for granted where it is allowed."""
    known = get_available_flops(device, low or torch.float32) if device.type == "cuda" else None
    return float(known) if known else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _table(rows: list[dict[str, Any]], products: dict[str, dict[str, float | None]]) -> Table:
    title = f"One training update of the tutorial on {NAMES[STAGE]}, d = {D}; MFU and the TFLOP/s that it is a share of"
    table = Table("precision", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("batch", "ms/update", "tokens/s", "peak MB", "launches", "of data sheet", "of measured product"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = []
        for peak, flops in sorted(products[row["precision"]].items()):
            share = row[f"mfu_{peak}"]
            shares.append("unknown" if not share or not flops else f"{100 * share:.2f}% of {flops / 1e12:.1f}")
        table.add_row(
            row["precision"],
            f"{row['batch']:,}",
            f"{row['ms_per_update']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}",
            f"{row['launches']:,}",
            *shares,
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or measure; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = wide_console()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        console.print("there is no GPU here; --device cpu tries the rest")
        return 2
    facts = environment() | {"device": str(options.device)}
    if options.device.type == "cuda":
        properties = torch.cuda.get_device_properties(options.device)
        facts["gpu"] = {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
        facts["versions"]["cuda"] = torch.version.cuda
        console.print(f"{properties.name}, {facts['gpu']['memory_gb']} GB, CUDA {torch.version.cuda}")
    console.print(headline(facts))
    if options.check:
        return 0 if check(console, options.device) else 1
    small = options.device.type == "cpu"
    options.batch = options.batch or ([64, 256] if small else [4**i for i in range(5, 11)])
    document = facts | {
        "d": D,
        "compiled": options.compile,
        "flop_per_token": flop_per_token(D),
        **measure(console, options),
    }
    write_json(options.output, document)
    console.print(f"written to {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare with the CPU")
    what.add_argument("--measure", action="store_true", help="measure speed and memory")
    add("--device", type=torch.device, default=torch.device("cuda"), help="cuda or cpu (default: cuda)")
    names = [name for name, _, _ in PRECISIONS]
    add("--precision", choices=names, nargs="+", default=names, help="of matrix products (default: all)")
    add("--compile", action="store_true", help="measure compiled updates; each batch and precision takes a minute more")
    add("--batch", type=positive, nargs="+", help="problems in an update (default: 1,024 to 1,048,576)")
    add("--seconds", type=float, default=1.0, help="of each measurement (default: 1)")
    add("--output", type=Path, default=Path("gpu.json"), help="JSON to write (default: gpu.json)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
