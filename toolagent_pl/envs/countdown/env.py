"""Countdown: numbers, and a target that they must make with the four operations, each number used once."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from toolagent_pl.envs.countdown.problems import EMPTY, Problems, Stage, ascending, find_stage, is_held_out, read
from toolagent_pl.envs.countdown.solver import SYMBOLS, combine, solvable
from toolagent_pl.rl.env import Env, Episode, keep_ended
from toolagent_pl.rl.random_numbers import Purpose, random_below
from toolagent_pl.rl.rollout import Rollout

OPERATIONS = len(SYMBOLS)
BITS = 20  # draws set aside for a problem, as a power of 2: 8 for each candidate
CALLS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


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
        results: ``[B, A]``, with ``lookahead``, what each action would make, -1 where it is not allowed; else
            ``[B, 0]``.
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
        stages: Stages that are trained on, easiest first: names, or stages with a name, numbers, low, high, target_low,
            target_high.
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
        trained, tested = ([find_stage(stage) for stage in some] for some in (stages, unseen))
        if not trained or any(stage.new_targets for stage in trained):
            raise ValueError(f"stages: got {[s.name for s in trained]}, expected one or more with targets to train on")
        self.stages, self.unseen = (tuple(stage.name for stage in some) for some in (trained, tested))
        self._stages = every = [*trained, *tested]
        if len({stage.name for stage in every}) < len(every):
            raise ValueError(f"stages: got {list(self.all_stages)}, expected each name at most once")
        self._largest = max(max(stage.high, stage.target_high) for stage in every)
        self._targets = pad_sequence([torch.tensor(stage.targets) for stage in every], batch_first=True)
        columns = [(s.numbers, s.low, s.high - s.low + 1, len(s.targets), s.new_targets) for s in every]
        self._table = torch.tensor(columns, dtype=torch.int64)
        self.lookahead, self.width = lookahead, max(stage.numbers for stage in every)
        pairs = [(i, j) for j in range(self.width) for i in range(j)]  # those of the first n numbers come first
        letters = "abcdef"
        self.actions = tuple(f"{letters[j]}{symbol}{letters[i]}" for i, j in pairs for symbol in SYMBOLS)
        self._pairs = torch.tensor(pairs)
        if lookahead:
            self.default_agent = "toolagent_pl.envs.countdown.agent.AfterstateAgent"

    def problems(self, number: Tensor, stage: Tensor, seed: int, *, held_out: bool) -> Problems:
        """The first of each problem's candidates that can be solved and belongs to the right part.

        Raises:
            ValueError: If there is none among many, as of a stage that has no problems.
        """
        numbers, target = number.new_zeros(len(number), self.width), torch.zeros_like(number)
        open_rows, first, count = torch.arange(len(number), device=number.device), 0, 4
        while len(open_rows):
            if first + count > 1 << BITS - 3:
                name = self.stage_name(int(stage[open_rows[0]]))
                raise ValueError(f"stages: got {name}, expected one of which a problem is found in {first} draws")
            candidate = (number[open_rows, None] << BITS - 3) + torch.arange(first, first + count, device=number.device)
            stages = stage[open_rows].repeat_interleave(count)
            some, goal, good = self._candidates(candidate.flatten(), stages, seed, held_out)
            chosen = good.view(-1, count).int().argmax(1) + torch.arange(0, len(good), count, device=number.device)
            numbers[open_rows], target[open_rows] = some[chosen], goal[chosen]
            open_rows = open_rows[~good[chosen]]
            first, count = first + count, min(2 * count, 1024)
        return Problems(number, stage, ascending(numbers), target)

    def _candidates(self, draw: Tensor, stage: Tensor, seed: int, held_out: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers, targets, and whether they are good."""
        size, low, span, targets, new = self._table.to(draw.device)[stage].unbind(1)
        column = torch.arange(self.width, device=draw.device)
        counter = draw << 3
        numbers = low[:, None] + random_below(seed, Purpose.PROBLEM, counter[:, None] + column, span[:, None])
        numbers = numbers.masked_fill(column >= size[:, None], EMPTY)
        goal = self._targets.to(draw.device)[stage, random_below(seed, Purpose.PROBLEM, counter + 7, targets)]
        good = new.bool() | is_held_out(numbers, goal).eq(held_out)
        for count in {stage.numbers for stage in self._stages}:
            rows = (good & size.eq(count)).nonzero()[:, 0]
            if len(rows):
                good[rows] = solvable(numbers[rows, :count], goal[rows], self._largest)
        return numbers, goal, good

    def read(self, lines: Sequence[str]) -> Problems:
        """Problems as people write them, ``25 7 4 3 = 72``; whether they can be solved is not asked.

        Raises:
            ValueError: If a line cannot be read, or has more numbers than the stages.
        """
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
        after = State(
            numbers=torch.where(allowed, numbers, state.numbers),
            target=state.target,
            terminated=numbers[:, 1].eq(EMPTY) | ~allowed[:, 0],
            truncated=state.truncated,
            steps=state.steps + 1,
        )
        return keep_ended(state, after, action)

    def observe(self, state: State) -> Observation:
        """The numbers that are left and the target, and what each action would make."""
        results = self.results(state.numbers) if self.lookahead else state.numbers[:, :0]
        return Observation(state.numbers, state.target, results)

    def observation_bounds(self) -> dict[str, tuple[float, float]]:
        """No number is larger than the product of the largest ones."""
        numbers = EMPTY, max(2, self._largest) ** self.width
        return {"numbers": numbers, "target": (1, self._largest), "results": numbers}

    def action_mask(self, state: State) -> Tensor:
        """Which actions are allowed; where one number is left, the first, which does nothing any more."""
        mask = self.results(state.numbers).ne(EMPTY)
        mask[:, 0] |= ~mask.any(1)
        return mask

    def solved(self, state: State) -> Tensor:
        """Whether the target is all that is left."""
        one_left = state.numbers[:, 1:].eq(EMPTY).all(1)
        return one_left & state.numbers[:, 0].eq(state.target)

    def solvable(self, state: State) -> Tensor:
        """Whether the target can be reached from here, bool ``[B]``: for judging moves; an agent never learns it."""
        found, left = self.solved(state), state.numbers.ne(EMPTY).sum(1)
        for count in range(2, self.width + 1):
            rows = left.eq(count).nonzero()[:, 0]
            if len(rows):
                found = found.index_copy(0, rows, solvable(state.numbers[rows, :count], state.target[rows]))
        return found

    def episodes(self, rollout: Rollout) -> list[CountdownEpisode]:
        """The episodes as expressions."""
        problems = rollout.problems
        columns = (problems.stage, problems.numbers, problems.target, rollout.visible_actions, rollout.solved)
        return [self._episode(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _episode(self, stage: int, row: list[int], target: int, actions: list[int], solved: bool) -> CountdownEpisode:
        numbers = [number for number in row if number != EMPTY]
        terms, plan = [(number, str(number)) for number in numbers], []  # what is left, and what it was made of
        for action in actions:
            one, other = self._pairs[action // OPERATIONS].tolist()
            if action < 0 or other >= len(terms):
                break
            symbol, (y, right), (x, left) = SYMBOLS[action % OPERATIONS], terms[one], terms[other]
            if symbol == "/" and (y == 0 or x % y):  # not allowed, which ended the episode
                break
            value = CALLS[symbol](x, y)
            plan.append(f"{x}{symbol}{y}={value}")
            del terms[other], terms[one]
            terms = sorted([*terms, (value, f"({left}{symbol}{right})")], key=itemgetter(0))
        made = " ".join(ast.unparse(ast.parse(text)).replace(" ", "") for _, text in terms)  # no needless brackets
        return CountdownEpisode(
            stage=self.stage_name(stage),
            problem=f"{' '.join(map(str, numbers))} = {target}",
            plan=plan,
            solved=solved,
            numbers=numbers,
            target=target,
            expression=made,
            value=terms[0][0] if len(terms) == 1 else None,
        )
