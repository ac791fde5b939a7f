"""Solves problems of Countdown that people write."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from toolagent_pl.envs.countdown.env import CountdownEnv, CountdownEpisode
from toolagent_pl.rl import saved
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.rollout import collect


class CountdownSolver:
    """Solves written problems with a trained agent, greedily, on the CPU.

    Args:
        agent: A copy of it is kept.
        env: The environment that it was trained in.

    Raises:
        ValueError: If the environment is another one.
    """

    def __init__(self, agent: Agent, env: Env) -> None:
        if not isinstance(env, CountdownEnv):
            raise ValueError(f"env: got {type(env).__name__}, expected a CountdownEnv")
        self.agent, self.env = copy.deepcopy(agent).cpu().eval(), env

    @classmethod
    def from_checkpoint(cls, path: str | Path, allow_custom: bool = False) -> "CountdownSolver":
        """Load an agent, as ``rl.saved.read`` and ``build`` do.

        Args:
            path: A checkpoint of a run, or a folder of a saved agent.
            allow_custom: Run code from outside of this package, if agent or environment are made of it.

        Raises:
            ValueError: If there is no such agent, or it cannot be built.
            OSError: If a file cannot be read.
        """
        return cls(*saved.build(saved.read(path), allow_custom))

    @overload
    def solve(self, problems: str) -> CountdownEpisode: ...  # type: ignore[overload-overlap]

    @overload
    def solve(self, problems: Iterable[str]) -> list[CountdownEpisode]: ...

    def solve(self, problems: str | Iterable[str]) -> CountdownEpisode | list[CountdownEpisode]:
        """Solve one problem, ``25 7 4 3 = 72``, or many at once.

        Raises:
            ValueError: If one cannot be read, or has more numbers than the agent's stages.
        """
        if isinstance(problems, str):
            return self.solve([problems])[0]
        return self.env.episodes(collect(self.agent, self.env, self.env.read(list(problems))))

    def attempt(self, problems: Sequence[str]) -> list[CountdownEpisode | ValueError]:
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
