"""Problems that people write, solved by a trained agent, and how it chose each action as a page."""

import copy
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch

from toolagent_pl.rl import saved
from toolagent_pl.rl.agent import Agent, allowed
from toolagent_pl.rl.env import Env, Episode, select
from toolagent_pl.rl.rollout import collect

SHOWN = 5  # actions of each step on a page
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>How each action was chosen</title>
<style>
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; }
th { width: 14rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-top: 1px solid #8888; }
h2, td { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>How each action was chosen</h1>
<p>What was there before each action; then the likeliest actions with their probabilities, of which the first was
taken.</p>
BODY
</body>
</html>
"""


class Choice(NamedTuple):
    """How an action was chosen.

    Attributes:
        seen: What there was before it.
        actions: The likeliest ones with their probabilities, that which was taken first.
    """

    seen: str
    actions: list[tuple[str, float]]


class ProblemSolver:
    """Solves written problems with a trained agent, greedily, on the CPU.

    Args:
        agent: A copy of it is kept.
        env: The environment that it was trained in, which must be able to ``read``.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, agent: Agent, env: Env) -> None:
        if type(env).read is Env.read:
            raise ValueError(f"env: got {type(env).__name__}, expected one that reads problems")
        self.agent, self.env = copy.deepcopy(agent).cpu().eval(), env

    @classmethod
    def from_checkpoint(cls, path: str | Path, allow_custom: bool = False) -> "ProblemSolver":
        """Load an agent, as ``rl.saved.read`` and ``build`` do.

        Args:
            path: A checkpoint of a run, a folder of a saved agent, or the name of one that comes with the package.
            allow_custom: Run code from outside of this package, if agent or environment are made of it.

        Raises:
            ValueError: If there is no such agent, or it cannot be built.
            OSError: If a file cannot be read.
        """
        return cls(*saved.build(saved.read(path), allow_custom))

    @overload
    def solve(self, problems: str) -> Any: ...  # type: ignore[overload-overlap]

    @overload
    def solve(self, problems: Iterable[str]) -> Sequence[Any]: ...

    def solve(self, problems: str | Iterable[str]) -> Any:
        """The episode of one problem, or those of many at once.

        Raises:
            ValueError: If one cannot be read.
        """
        if isinstance(problems, str):
            return self.solve([problems])[0]
        return self.env.episodes(collect(self.agent, self.env, self.env.read(list(problems))))

    def attempt(self, problems: Sequence[str]) -> list[Episode | ValueError]:
        """An episode for each problem, and the error in place of each that is refused."""
        errors = [self._error(problem) for problem in problems]
        solved = iter(self.solve([one for one, error in zip(problems, errors, strict=True) if error is None]))
        return [next(solved) if error is None else error for error in errors]

    def _error(self, problem: str) -> ValueError | None:
        try:
            self.env.read([problem])
        except ValueError as error:
            return error
        return None

    @torch.no_grad()
    def choices(self, problems: Sequence[str]) -> list[list[Choice]]:
        """How each action of each problem's episode was chosen."""
        rollout = collect(self.agent, self.env, self.env.read(problems), continue_after_done=True)
        cache, found = self.agent.prefill(rollout.problems), [list[Choice]() for _ in problems]
        for t, running in enumerate(rollout.mask):
            observation, mask = select((rollout.observations, rollout.action_mask), t)
            policy, cache = self.agent.decode(cache, rollout.previous[t], observation)
            chances = allowed(policy.logits, mask).softmax(1)
            for row in running.nonzero()[:, 0].tolist():
                seen, names = self.env.explain(observation, row)
                taken = int(rollout.actions[t, row])
                others = [action for action in chances[row].argsort(descending=True).tolist() if action != taken]
                shown = [(names[action], float(chances[row, action])) for action in [taken, *others[: SHOWN - 1]]]
                found[row].append(Choice(seen, [one for one in shown if one[1] > 0]))
        return found

    def page(self, problems: Sequence[str]) -> str:
        """One HTML page, complete in itself, with the choices of all episodes."""
        parts = []
        for episode, choices in zip(self.solve(problems), self.choices(problems), strict=True):
            rows = [f"<h2>{escape(str(episode))}</h2>\n<table>"]
            for seen, actions in choices:
                lines = [f"<meter value={p:.4f}></meter> {p:.1%} {escape(name)}" for name, p in actions]
                rows.append(f"<tr><th>{escape(seen)}<td>{'<br>'.join(lines)}")
            parts.append("\n".join([*rows, "</table>"]))
        return PAGE.replace("BODY", "\n".join(parts), 1)
