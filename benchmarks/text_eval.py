"""How well policies call the calculator's tools: a language model beside the agent that comes with the package.

Run ``python -m benchmarks.text_eval --policy shipped random scripted http://localhost:8000/v1 --model NAME``. A URL is
that of a server that speaks OpenAI's protocol (``/chat/completions`` with tools); a key for it is taken from the
environment variable ``OPENAI_API_KEY``. The problems are the first of each held-out sample that ``test`` tries. A
problem is right if it is solved; else wrong (another answer, or too many calls), malformed (a reply that calls no tool,
or one that is not there), late (no reply in time) or failed (the server refuses, or cannot be reached).
"""

import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import getdoc
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from benchmarks.environment import arguments_of, started, write_json
from toolagent_pl.interop.text import TextCalculator, prompt, reference_calls, text_calculator
from toolagent_pl.training.stream import Sample

OUTCOMES = ("right", "wrong", "malformed", "late", "failed")
BUILT_IN = ("shipped", "random", "scripted")


class Problem(NamedTuple):
    """A problem of the held-out sample."""

    stage: str
    number: int
    expression: str
    operators: int
    memory: int  # most values that the reference plan has in memory at a time


class Result(NamedTuple):
    """What became of a problem."""

    outcome: str
    calls: int
    seconds: float


Policy = Callable[[TextCalculator, str], str | None]  # plays an episode; an outcome, None for what the episode says


def held_out(environment: type[TextCalculator], count: int) -> list[Problem]:
    """The first problems of the sample that ``test`` tries, of each stage."""
    env, found = environment._env, []
    for position, stage in enumerate(env.stages):
        number = torch.arange(count)
        problems = env.problems(number, torch.full_like(number, position), Sample.TEST, held_out=True)
        episode = environment()
        columns = (problems.length.tolist(), problems.memory_needed.tolist())
        for n, (length, memory) in enumerate(zip(*columns, strict=True)):
            episode.reset(number=n, stage=stage, seed=Sample.TEST)
            found.append(Problem(stage, n, episode._expression, length - 1, memory))
    return found


def played(calls: Sequence[str], episode: TextCalculator) -> None:
    """Make these calls, as long as the episode lasts."""
    for name in calls:
        if not episode.done:
            getattr(episode, name)()


def scripted(episode: TextCalculator, _: str) -> None:
    """The reference plan."""
    played(reference_calls(episode), episode)


def at_random(seed: int) -> Policy:
    """Any tool, each as likely as the others."""
    rng = random.Random(seed)

    def play(episode: TextCalculator, _: str) -> None:
        while not episode.done:
            played([rng.choice(list(episode._tools))], episode)

    return play


def shipped(environment: type[TextCalculator], problems: Sequence[Problem]) -> Policy:
    """The agent that comes with the package; it plans all problems at once, and its calls are made here."""
    from toolagent_pl import Solver

    solutions = Solver.from_checkpoint().solve([problem.expression for problem in problems])
    names = dict(zip(environment._env.actions, environment._tools, strict=True))
    plans = {one.expression: [names[name] for name in one.plan] for one in solutions}
    return lambda episode, _: played(plans[episode._expression], episode)


class ChatPolicy:
    """A language model behind a server that speaks OpenAI's protocol.

    Args:
        url: Of the server, up to and with ``/v1``.
        model: Its name there.
        timeout: Seconds that a reply may take.
    """

    def __init__(self, url: str, model: str, timeout: float) -> None:
        self.url, self.model, self.timeout = url.rstrip("/") + "/chat/completions", model, timeout

    def __call__(self, episode: TextCalculator, told: str) -> str | None:
        """Talk until the episode ends; the first reply that is no call of a tool ends it."""
        tools = [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": str(getdoc(getattr(episode, name))).split("\n")[0],
                    "parameters": {"type": "object", "properties": {}},
                },
            }
            for name in episode._tools
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"{prompt(type(episode))}{told}"}]
        while not episode.done:
            try:
                reply = self._ask({"model": self.model, "messages": messages, "tools": tools, "temperature": 0})
            except TimeoutError:
                return "late"
            except urllib.error.URLError as error:
                return "late" if isinstance(error.reason, TimeoutError) else "failed"
            except (OSError, ValueError):  # a connection that breaks, or a body that is no JSON
                return "failed"
            try:
                message = reply["choices"][0]["message"]
                calls = [(call["id"], call["function"]["name"]) for call in message["tool_calls"]]
            except (KeyError, IndexError, TypeError):
                return "malformed"
            if not calls or any(name not in episode._tools for _, name in calls):
                return "malformed"
            messages.append(
                {"role": "assistant", "content": message.get("content"), "tool_calls": message["tool_calls"]}
            )
            for call, name in calls:
                if not episode.done:
                    said = getattr(episode, name)()
                    messages.append({"role": "tool", "tool_call_id": call, "content": said})
        return None

    def _ask(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        deadline, reply = time.monotonic() + self.timeout, b""
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            while part := response.read1():
                reply += part
                if time.monotonic() > deadline:
                    raise TimeoutError
        return json.loads(reply)


def evaluate(
    environment: type[TextCalculator], policy: Policy, problems: Sequence[Problem], at_a_time: int = 1
) -> list[Result]:
    """Play all problems, so many at a time."""

    def play(problem: Problem) -> Result:
        episode, start = environment(), time.perf_counter()
        told = episode.reset(number=problem.number, stage=problem.stage, seed=Sample.TEST)
        outcome = policy(episode, told) or ("right" if episode.reward else "wrong")
        return Result(outcome, episode._calculator.steps, time.perf_counter() - start)

    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(play, problems))


def summary(problems: Sequence[Problem], results: Sequence[Result]) -> dict[str, Any]:
    """Outcomes in all, and right ones by number of operators and by memory needed."""

    def by(column: str) -> list[dict[str, Any]]:
        groups: dict[int, list[bool]] = {}
        for problem, result in zip(problems, results, strict=True):
            groups.setdefault(getattr(problem, column), []).append(result.outcome == "right")
        return [{column: key, "problems": len(of), "right": sum(of)} for key, of in sorted(groups.items())]

    counts = Counter(result.outcome for result in results)
    return {
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "calls": sum(result.calls for result in results) / len(results),
        "seconds": sum(result.seconds for result in results) / len(results),
        "by_operators": by("operators"),
        "by_memory": by("memory"),
    }


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy by number of operators and by memory needed, a line for each policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, column, words in zip(
        figure.subplots(1, 2, sharey=True), ("operators", "memory"), ("operators", "values in memory"), strict=True
    ):
        for i, (name, of) in enumerate(found.items()):
            rows = of[f"by_{column}"]
            accuracy = [row["right"] / row["problems"] for row in rows]
            axes.plot([row[column] for row in rows], accuracy, marker="os^Dv"[i % 5], ms=10 - 2 * i, label=name)
        axes.set(xlabel=words, ylim=(-0.03, 1.03))
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.axes[0].set_ylabel("held-out problems solved")
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print, write and draw; returns the exit status."""
    options = _parser().parse_args(arguments)
    console, facts = started()
    try:
        environment = text_calculator(options.stages, held_out=True, feedback=options.feedback)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    problems, found = held_out(environment, options.problems), {}
    for name in options.policy:
        if name == "shipped":
            policy = shipped(environment, problems)
        elif name in BUILT_IN:
            policy = scripted if name == "scripted" else at_random(options.seed)
        else:
            policy = ChatPolicy(name, options.model, options.timeout)
        at_a_time = 1 if name in BUILT_IN else options.at_a_time
        label = name if name in BUILT_IN or options.model in found else options.model
        found[label] = summary(problems, evaluate(environment, policy, problems, at_a_time))
        settings = {key: value for key, value in vars(options).items() if key not in ("output", "patience")}
        write_json(console, options.output, {**facts, "settings": settings, "results": found}, last=False)
    for column, words in (("operators", "operators"), ("memory", "values in memory")):
        table = Table(words, "problems", *found, box=box.SIMPLE_HEAD, title="Held-out problems solved")
        for i, row in enumerate(next(iter(found.values()))[f"by_{column}"]):
            shares = [of[f"by_{column}"][i]["right"] / row["problems"] for of in found.values()]
            table.add_row(str(row[column]), f"{row['problems']:,}", *(f"{share:.1%}" for share in shares))
        console.print(table)
    table = Table("policy", *OUTCOMES, "calls", "seconds", box=box.SIMPLE_HEAD, title="What became of them")
    for name, of in found.items():
        counts = [f"{of['outcomes'][outcome]:,}" for outcome in OUTCOMES]
        table.add_row(name, *counts, f"{of['calls']:.1f}", f"{of['seconds']:.2g}")
    console.print(table)
    draw(found, options.output.with_suffix(".png"))
    console.print(f"written to {options.output} and {options.output.with_suffix('.png')}")
    return 0


def _parser() -> Any:
    parser = arguments_of(__doc__, "text_eval.json")
    parser.add_argument("--policy", nargs="+", default=["shipped"], help=f"{', '.join(BUILT_IN)}, or URLs")
    parser.add_argument("--model", default="model", help="name of the language model, for its server and the tables")
    parser.add_argument("--stages", nargs="+", default=[f"E{n}" for n in range(1, 9)], help="problems")
    parser.add_argument("--problems", type=int, default=100, help="of each stage, at most 10,000")
    parser.add_argument("--feedback", default="flags", help="what the tools report to a language model")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that a reply may take")
    parser.add_argument("--at_a_time", type=int, default=8, help="problems that are asked for at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the random policy")
    return parser


if __name__ == "__main__":
    sys.exit(main())
