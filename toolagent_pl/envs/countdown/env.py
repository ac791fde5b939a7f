"""Countdown: numbers, and a target that they must make with the four operations, each number used once."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.envs.countdown.problems import EMPTY, SYMBOLS, Problems, Stage, ascending, combine, read
from toolagent_pl.rl.env import Env, Episode, keep_ended
from toolagent_pl.rl.rollout import Rollout

OPERATIONS = len(SYMBOLS)


def pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of positions, in the order of the actions: those of the first n numbers come first."""
    return [(i, j) for j in range(count) for i in range(j)]


class State(NamedTuple):
    """State of ``B`` episodes.

    Attributes:
        numbers: int64 ``[B, K]``, the numbers that are left, ascending, then -1.
        target: int64 ``[B]``.
        terminated: bool ``[B]``, whether one number is left, or the last action was not allowed.
        truncated: bool ``[B]``, never.
        steps: int64 ``[B]``.
    """

    numbers: Tensor
    target: Tensor
    terminated: Tensor
    truncated: Tensor
    steps: Tensor


class Observation(NamedTuple):
    """What the agent sees, int64.

    Attributes:
        numbers: ``[B, K]``, the numbers that are left, ascending, then -1.
        target: ``[B]``.
        results: ``[B, A]``, what each action would make, -1 where it is not allowed; ``[B, 0]`` without ``lookahead``.
    """

    numbers: Tensor
    target: Tensor
    results: Tensor


@dataclass(frozen=True)
class CountdownEpisode(Episode):
    """One episode; its plan are the calls with their results.

    Attributes:
        numbers: The numbers.
        target: What they should make.
        expression: What was made of them, ``(25-7)*4``.
        value: That of the expression; None if more than one number is left.
    """

    numbers: list[int]
    target: int
    expression: str
    value: int | None

    @property
    def story(self) -> str:
        """What was made of the numbers, ``(25-7)*4 = 72``."""
        return self.expression if self.value is None else f"{self.expression} = {self.value}"


class CountdownEnv(Env):
    """Make a target of some numbers: pick two of them and an operation, until one number is left.

    Results are natural numbers or 0: the smaller number is subtracted from the larger one, and division must be exact.
    What is not allowed ends the episode; ``action_mask`` tells. The numbers that are left stand in ascending order, and
    an action is a pair of positions and an operation: ``b-a`` subtracts the first from the second.

    The stages C2 to C6 have as many numbers, uniform in 1 to 99, and a target, uniform in 10 to 100; problems that
    cannot be solved are left out, by an exact solver. A tenth of all problems is held out, by a hash of the sorted
    numbers and the target. Targets that end with 3 are never trained on; C3_new has nothing else.

    Source: Gandhi et al., "Stream of Search (SoS): Learning to Search in Language", COLM 2024.

    Args:
        stages: Stages that are trained on, easiest first: names, or the arguments of ``Stage``.
        unseen: Stages that are tested on only.
        lookahead: 1 for an observation of what each action would make; with 0 an agent has to know.

    Raises:
        ValueError: If a stage is unknown or has no problems, or ``lookahead`` is neither.
    """

    default_agent = "toolagent_pl.envs.countdown.agent.CountdownAgent"
    static_shapes = True
    problems_wait = True

    def __init__(
        self,
        stages: Sequence[str | Mapping[str, Any] | Stage] = ("C3", "C4"),
        unseen: Sequence[str | Mapping[str, Any] | Stage] = (),
        lookahead: Literal[0, 1] = 0,
    ) -> None:
        if lookahead not in (0, 1):
            raise ValueError(f"lookahead: got {lookahead}, expected 0 or 1")
        trained, tested = ([Stage.find(stage) for stage in some] for some in (stages, unseen))
        if not trained or any(stage.new_targets for stage in trained):
            raise ValueError(f"stages: got {[s.name for s in trained]}, expected one or more with targets to train on")
        self.stages, self.unseen = (tuple(stage.name for stage in some) for some in (trained, tested))
        self._stages = every = [*trained, *tested]
        if len({stage.name for stage in every}) < len(every):
            raise ValueError(f"stages: got {list(self.all_stages)}, expected each name at most once")
        self.lookahead, self.width = lookahead, max(stage.numbers for stage in every)
        self.actions = tuple(f"{'abcdef'[j]}{symbol}{'abcdef'[i]}" for i, j in pairs(self.width) for symbol in SYMBOLS)
        self._pairs = torch.tensor(pairs(self.width))
        if lookahead:
            self.default_agent = "toolagent_pl.envs.countdown.agent.AfterstateAgent"

    def problems(self, number: Tensor, stage: Tensor, seed: int, *, held_out: bool) -> Problems:
        """Those that each stage makes."""
        numbers = torch.full((len(number), self.width), EMPTY, device=number.device)
        target = torch.zeros_like(number)
        for position, one in enumerate(self._stages):
            rows = stage.eq(position).nonzero()[:, 0]
            numbers[rows, : one.numbers], target[rows] = one.problems(number[rows], seed, held_out)
        return Problems(number, stage, numbers, target)

    def read(self, lines: Sequence[str]) -> Problems:
        """Problems as people write them, ``25 7 4 3 = 72``, with no more numbers than the stages; solvable or not."""
        rows = [read(line, self.width) for line in lines]
        number, columns = torch.arange(len(rows)), torch.tensor(rows, dtype=torch.int64).view(-1, self.width + 1)
        return Problems(number, torch.full_like(number, -1), ascending(columns[:, :-1]), columns[:, -1])

    def horizon(self, problems: Problems) -> int:
        """Each action leaves one number less."""
        return problems.numbers.shape[1] - 1

    def reset(self, problems: Problems) -> State:
        """All numbers are there."""
        no = torch.zeros_like(problems.target, dtype=torch.bool)
        return State(problems.numbers, problems.target, no, no, torch.zeros_like(problems.target))

    def results(self, numbers: Tensor) -> Tensor:
        """What each action makes of numbers ``[B, K]``, int64 ``[B, A]``, -1 where it is not allowed."""
        values = numbers.double().masked_fill(numbers.eq(EMPTY), torch.nan)
        one, other = self._pairs.to(numbers.device).unbind(1)
        made = torch.stack(combine(values[:, one], values[:, other]), 2)
        return made.nan_to_num(EMPTY).long().flatten(1)

    def step(self, state: State, action: Tensor) -> State:
        """The result in place of the two numbers."""
        at = action.clamp(min=0)
        result = self.results(state.numbers).gather(1, at[:, None])
        allowed = result.ne(EMPTY)
        pair = self._pairs.to(at.device)[at // OPERATIONS]
        numbers = ascending(state.numbers.scatter(1, pair, EMPTY).scatter(1, pair[:, :1], result))
        ended, kept = numbers[:, 1].eq(EMPTY) | ~allowed[:, 0], torch.where(allowed, numbers, state.numbers)
        return keep_ended(state, state._replace(numbers=kept, terminated=ended, steps=state.steps + 1), action)

    def observe(self, state: State) -> Observation:
        """The numbers that are left and the target, and what each action would make."""
        results = self.results(state.numbers) if self.lookahead else state.numbers[:, :0]
        return Observation(state.numbers, state.target, results)

    def observation_bounds(self) -> dict[str, tuple[float, float]]:
        """No number is larger than the product of the largest ones."""
        most = max(2, *(max(stage.high, stage.target_high) for stage in self._stages))
        return {"target": (1, most)} | dict.fromkeys(("numbers", "results"), (EMPTY, most**self.width))

    def action_mask(self, state: State) -> Tensor:
        """Which actions are allowed; where one number is left, the first, which does nothing any more."""
        mask = self.results(state.numbers).ne(EMPTY)
        mask[:, 0] |= ~mask.any(1)
        return mask

    def solved(self, state: State) -> Tensor:
        """Whether the target is all that is left."""
        return state.numbers[:, 1].eq(EMPTY) & state.numbers[:, 0].eq(state.target)

    def explain(self, observation: Observation, row: int) -> tuple[str, list[str]]:
        """The numbers that are left, and each action as a call with its result."""
        numbers = observation.numbers[row]
        left, made = numbers.tolist(), self.results(numbers[None])[0].tolist()
        terms = [(left[j], symbol, left[i]) for i, j in pairs(self.width) for symbol in SYMBOLS]
        calls = [f"{x}{symbol}{y}={result}" for (x, symbol, y), result in zip(terms, made, strict=True)]
        return " ".join(str(number) for number in left if number != EMPTY), calls

    def episodes(self, rollout: Rollout) -> list[CountdownEpisode]:
        """The episodes as expressions."""
        problems, seen, action = rollout.problems, rollout.observations.numbers, rollout.actions
        results = self.results(seen.flatten(0, 1)).gather(1, action.reshape(-1, 1)).view(action.shape)
        calls = torch.stack([rollout.visible_actions, results.T], 2)
        columns = (problems.stage, problems.numbers, problems.target, calls, rollout.solved)
        return [self._episode(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _episode(self, stage: int, row: list[int], target: int, calls: list[Any], solved: bool) -> CountdownEpisode:
        numbers = [number for number in row if number != EMPTY]
        terms, plan = [(number, str(number)) for number in numbers], []  # what is left, and what it was made of
        for action, result in calls:
            if action < 0 or result == EMPTY:  # not allowed, which ended the episode
                break
            i, j = self._pairs[action // OPERATIONS].tolist()
            symbol, (x, left), (y, right) = SYMBOLS[action % OPERATIONS], terms.pop(j), terms.pop(i)
            plan.append(f"{x}{symbol}{y}={result}")
            terms = sorted([*terms, (result, f"({left}{symbol}{right})")], key=itemgetter(0))
        made = " ".join(ast.unparse(ast.parse(text)).replace(" ", "") for _, text in terms)  # no needless brackets
        problem, value = f"{' '.join(map(str, numbers))} = {target}", terms[0][0] if len(terms) == 1 else None
        return CountdownEpisode(self.stage_name(stage), problem, plan, solved, numbers, target, made, value)
