"""Whether a GPU computes what a CPU computes, and how fast.

``python -m benchmarks.gpu --check`` compares the two, and looks for what makes the CPU wait for the GPU.
``python -m benchmarks.gpu --measure`` trains with growing batches until memory is out. ``bash benchmarks/gpu.sh`` does
both, and trains with the command line. With ``--device cpu`` all of it can be tried where there is no GPU.
"""

import argparse
import copy
import gc
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, get_args

import torch
import torch._dynamo
from packaging.version import Version
from rich import box
from rich.console import Console
from rich.table import Table
from torch._dynamo.utils import counters

from benchmarks.bare import DEFAULT_RUN, TUTORIAL, BareLoop, Mode, make_module
from benchmarks.environment import arguments_of, started, write_json
from toolagent_pl import CalculatorEnv, ToolAgent, TutorialEnv
from toolagent_pl.envs.calculator import ProgressReward, Stage
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.rl import Advantages, Rollout, collect, execute
from toolagent_pl.rl.random_numbers import Purpose, random_uniform
from toolagent_pl.rl.trees import tree_map
from toolagent_pl.rl.updates import normalized
from toolagent_pl.training.acceleration import MIN_FOR_COMPILING
from toolagent_pl.training.stream import FixedProblems, ProblemStream, Sample

CPU = torch.device("cpu")
AGENTS = ("blind", "reader")
MIXED: tuple[str | Stage, ...] = (*TUTORIAL, "E1", "E5", Stage("digits", operators=3, digits=3))
PLANS, STEPS = 2048, 12
EPISODES = 256
TOLERANCE = 1e-4
UPDATES = 6
SLICE = 10  # updates between two looks at the clock
# Name, precision of matrix products as PyTorch calls it, and that of autocast.
PRECISIONS = (("float32", "highest", None), ("TF32", "high", None), ("bf16", "highest", torch.bfloat16))


class CheckError(AssertionError):
    """A GPU computes something else, or is waited for."""


def equal(what: str, ours: Any, theirs: Any) -> int:
    """Raise unless all tensors of two named tuples are the same, bit for bit; how many rows they have."""
    for field, one, other in zip(theirs._fields, ours, theirs, strict=True):
        if not torch.equal(one.cpu(), other):
            raise CheckError(f"{what}, {field}: {int((one.cpu() != other).sum())} of {other.numel()} numbers differ")
    return len(theirs[0])


def relative(what: str, ours: Any, expected: Any) -> float:
    """Largest difference of two tensors over the largest number in them; raises if it is not small."""
    ours, expected = ours.detach().cpu(), expected.detach().cpu()
    off = float((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not off <= TOLERANCE:
        raise CheckError(f"{what}: off by {off:.1e}, more than {TOLERANCE:.0e}")
    return off


def moved(tree: Any, device: torch.device) -> Any:
    """Tensors of a named tuple on another device."""
    return tree_map(lambda x: x.to(device), tree)


def check_envs(device: torch.device) -> str:
    """Random plans in both environments: all states, observations and outcomes."""
    draw = torch.Generator().manual_seed(0)
    answered = 0
    for env in (CalculatorEnv(MIXED, max_steps=STEPS), TutorialEnv(TUTORIAL, max_steps=STEPS)):
        name = type(env).__name__
        problems = ProblemStream(env, 0, PLANS, batches=1).batch(0)
        actions = torch.randint(-1, len(env.actions), (PLANS, STEPS), generator=draw)  # -1 is padding
        expected = execute(env, problems, actions)
        states = execute(env, moved(problems, device), actions.to(device))
        for t, (state, other) in enumerate(zip(states, expected, strict=True)):
            equal(f"{name} after {t} steps", state, other)
            equal(f"{name}, observation after {t} steps", env.observe(state), env.observe(other))
        equal(f"{name}, outcome", env.outcome(states[-1]), env.outcome(expected[-1]))
        answered += int(env.outcome(expected[-1]).answered.sum())
    return f"{2 * PLANS:,} random plans, {answered:,} of them answer: all states and outcomes equal"


def check_problems(device: torch.device) -> str:
    """The problems of the stream, those to validate and test on, and the noise that actions are drawn with."""
    compared, env = 0, CalculatorEnv(MIXED)
    for position in (0, 1, 12345):
        streams = [ProblemStream(env, 3, 2 * PLANS, 1, rank=1, ranks=2, device=at) for at in (device, CPU)]
        compared += equal(f"batch {position}", *(_narrow(stream.batch(position)) for stream in streams))
    for sample, whole in ((Sample.TEST, True), (Sample.VALIDATION, False)):
        fixed = [FixedProblems(env, len(MIXED), sample, PLANS, 2**14, whole, device=at) for at in (device, CPU)]
        for ours, theirs in zip(*fixed, strict=True):
            compared += equal(sample.name, _narrow(ours), _narrow(theirs))
    counter = torch.arange(2**20) * 7919
    for seed in (0, 2**32 - 1):
        ours, theirs = (random_uniform(seed, Purpose.ACTION, counter.to(at)).cpu() for at in (device, CPU))
        if not torch.equal(ours, theirs):
            raise CheckError(f"noise of seed {seed} differs")
    return f"{compared:,} problems, and {2 * len(counter):,} draws of noise, equal, bit for bit"


def _narrow(problems: Any) -> Any:
    """Without padding of prompts that only a GPU has, which would have to be waited for to do without."""
    return problems._replace(prompt=problems.prompt[:, : int(problems.prompt_length.max())])


def check_gradients(device: torch.device) -> str:
    """Losses and gradients of given episodes, of both agents, with two rewards."""
    off = 0.0
    for agent in AGENTS:
        module = make_module(agent, reward=ProgressReward())
        problems = ProblemStream(module.env, 0, EPISODES, batches=1).batch(0)
        given = collect(module.agent, module.env, problems, seed=0, continue_after_done=True).actions
        results = []
        for at in (device, CPU):
            one = copy.deepcopy(module).to(at)
            rollout = collect(one.agent, one.env, moved(problems, at), continue_after_done=True, actions=given.to(at))
            advantages = one.algorithm.advantages(rollout, one.rewards(rollout))
            advantages = normalized(advantages, rollout.mask, one.mean_over_ranks)
            results.append((_loss(one, rollout, advantages), one))
        (loss, ours), (expected_loss, expected) = results
        off = max(off, relative(f"loss of the {agent}", loss, expected_loss))
        off = max(off, _off_gradients(f"of the {agent}", ours, expected))
    return f"losses and gradients of given actions are off by at most {off:.0e}"


def _loss(module: ToolAgent, rollout: Rollout, advantages: Advantages) -> torch.Tensor:
    """Loss of a whole rollout, whose gradients are computed."""
    rows = torch.arange(len(rollout.solved), device=module.device)
    arguments = rollout, rows, advantages, rollout.mask.sum(), module.ent_coef.to(module.device)
    loss, _ = module.acceleration(module.minibatch_loss, *arguments)
    module.zero_grad()
    loss.backward()
    return loss.detach()


def _off_gradients(what: str, ours: ToolAgent, expected: ToolAgent) -> float:
    learning = [(name, weight.grad) for name, weight in expected.named_parameters() if weight.grad is not None]
    return max(relative(f"gradient of {name} {what}", ours.get_parameter(name).grad, one) for name, one in learning)


def check_replayed(device: torch.device) -> str:
    """Updates whose kernels are replayed, from their third one on; weights and steered entropy after each of them."""
    if device.type != "cuda":
        return f"SKIPPED: {device.type} has no CUDA graphs"
    off = 0.0
    for agent, options in (("blind", {}), ("reader", DEFAULT_RUN)):
        loops = [BareLoop(make_module(agent, **options), EPISODES, device, mode=mode) for mode in ("eager", "replayed")]
        plain, replayed = (loop.module for loop in loops)
        for position in range(UPDATES):
            for loop in loops:
                loop.update()
            if int(plain.actions_taken) != int(replayed.actions_taken):
                raise CheckError(f"the {agent} takes other actions in update {position}")
            for name, weight in plain.named_parameters():
                what = f"{name} of the {agent} after update {position}"
                off = max(off, relative(what, replayed.get_parameter(name), weight))
        off = max(off, relative(f"weight of the entropy of the {agent}", replayed.ent_coef, plain.ent_coef))
    return f"weights after {UPDATES} replayed updates are off by at most {off:.0e}"


def check_compiled(device: torch.device) -> str:
    """Rollouts and losses that are compiled; the third and later ones replay CUDA graphs."""
    if Version(torch.__version__) < Version(MIN_FOR_COMPILING):
        return f"SKIPPED: PyTorch {torch.__version__} cannot compile a step"
    torch.manual_seed(0)
    env = CalculatorEnv(["T0"], max_steps=3, feedback="none")
    plain = ToolAgent(env, agent=BlindAgent).to(device)
    compiled = ToolAgent(copy.copy(env), agent=BlindAgent, compile_step=True).to(device)
    compiled.load_state_dict(plain.state_dict())
    stream, off = ProblemStream(compiled.env, 0, EPISODES, batches=1, device=device), 0.0
    for position in range(UPDATES):
        losses = []
        for module in (compiled, plain):
            rollout, _, advantages = module.acceleration(module.collect, stream.batch(position), copied=False)
            losses.append(_loss(module, rollout, advantages))
        off = max(off, relative(f"loss of update {position}", *losses))
        off = max(off, _off_gradients(f"of update {position}", compiled, plain))
    if device.type == "cuda" and (skipped := counters["inductor"]["cudagraph_skips"]):
        raise CheckError(f"{skipped} graphs of the compiled step are no CUDA graphs")
    return f"losses and gradients of {UPDATES} compiled updates are off by at most {off:.0e}"


def check_no_waiting(device: torch.device) -> str:
    """Nothing in an update makes the CPU wait for the GPU, the making of its problems included."""
    if device.type != "cuda":
        return f"SKIPPED: {device.type} has no mode that tells of waiting"
    for agent in AGENTS:
        loop = BareLoop(make_module(agent), 1024, device)
        for _ in range(3):  # tables and Adam's state are made
            loop.update()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return f"updates of {' and '.join(AGENTS)} wait for nothing"


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "envs": check_envs,
    "problems": check_problems,
    "gradients": check_gradients,
    "replayed": check_replayed,
    "compiled": check_compiled,
    "no waiting": check_no_waiting,
}


def check(console: Console, device: torch.device, names: Sequence[str]) -> bool:
    """Make these checks, and print what comes out; whether all are passed."""
    torch.set_float32_matmul_precision("highest")  # no TF32: it rounds to three digits
    good = True
    for name in names:
        start = time.perf_counter()
        try:
            text, passed = CHECKS[name](device), True
        except Exception as error:  # whatever goes wrong on a device never tried
            traceback.print_exc()
            text, passed = f"{type(error).__name__}: {error}", False
        good &= passed
        verdict = "ok    " if passed else "FAILED"
        console.print(f"{verdict} {name:10} {text} ({time.perf_counter() - start:.1f} s)", markup=False)
    return good


def measure(console: Console, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed of training by agent, precision, how it is run, and batch."""
    device, rows = options.device, []
    for agent, (name, precision, low), mode in product(options.agents, PRECISIONS, options.modes):
        if name not in options.precision:
            continue
        torch.set_float32_matmul_precision(precision)
        for batch in options.batch:
            torch._dynamo.reset()  # it compiles a function eight times, and then no more
            try:
                loop = BareLoop(make_module(agent), batch, device, low=low, mode=mode)
                speed = _speed(loop, options.seconds)
                rows.append({"agent": agent, "precision": name, "mode": mode, "batch": batch, **speed})
            except torch.OutOfMemoryError:
                console.print(f"{agent}, {name}, {mode}: memory is out at a batch of {batch:,}")
                break
            finally:
                loop = None  # type: ignore[assignment]
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    torch.set_float32_matmul_precision("highest")
    return rows


def _speed(loop: BareLoop, seconds: float) -> dict[str, Any]:
    """Time and memory of updates."""
    on_gpu = loop.device.type == "cuda"
    for _ in range(3):  # compiles, warms up, and records
        loop.update()
    before = int(loop.actions)  # waits
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    updates, start = 0, time.perf_counter()
    while not updates or time.perf_counter() - start < seconds:
        for _ in range(SLICE if on_gpu else 1):
            loop.update()
            updates += 1
        actions = int(loop.actions) - before
    elapsed = time.perf_counter() - start
    # What graphs use was allocated before, and is only reserved by now.
    peak = torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None
    return {"ms_per_update": 1e3 * elapsed / updates, "tokens_per_second": actions / elapsed, "peak_mb": peak}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or measure; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here; --device cpu tries the rest")
        return 2
    console, facts = started()
    if options.device.type == "cuda":
        facts["gpu"] = str(torch.cuda.get_device_properties(options.device))
        facts["versions"]["cuda"] = torch.version.cuda
        console.print(f"{facts['gpu']}, CUDA {torch.version.cuda}", markup=False)
    if options.check:
        return 0 if check(console, options.device, options.checks) else 1
    options.batch = options.batch or ([64, 256] if options.device.type == "cpu" else [4**i for i in (5, 7, 8, 9, 10)])
    options.modes = options.modes or (["eager"] if options.device.type == "cpu" else ["eager", "replayed"])
    rows = measure(console, options)
    table = Table("agent", "precision", "mode", box=box.SIMPLE_HEAD, title="One training update", title_justify="left")
    for column in ("batch", "ms/update", "tokens/s", "peak MB"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = [f"{row['batch']:,}", f"{row['ms_per_update']:.2f}", f"{row['tokens_per_second']:,.0f}"]
        table.add_row(
            row["agent"], row["precision"], row["mode"], *numbers, f"{row['peak_mb']:,.0f}" if row["peak_mb"] else ""
        )
    console.print(table)
    write_json(console, options.output, {**facts, "results": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments_of(__doc__, "gpu.json")
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="compare with the CPU")
    what.add_argument("--measure", action="store_true", help="measure speed and memory")
    add("--device", type=torch.device, default=torch.device("cuda"), help="cuda or cpu")
    add("--checks", choices=CHECKS, nargs="+", default=list(CHECKS), metavar="NAME", help="what to compare")
    add("--agents", choices=AGENTS, nargs="+", default=list(AGENTS), help="who learns")
    names = [name for name, _, _ in PRECISIONS]
    add("--precision", choices=names, nargs="+", default=names, help="of matrix products")
    add("--modes", choices=get_args(Mode), nargs="+", help="how (without it, eager, on a GPU also replayed)")
    add("--batch", type=int, nargs="+", help="problems in an update (1,024 to 1,048,576 without it)")
    add("--seconds", type=float, default=0.3, help="of each measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
