"""Environments as transition tables: a finite control state, and registers that tools combine.

What a call does to the control state (is the accumulator empty, how many operands are left, how high is the stack)
depends on that state and the token alone, never on a number. So it is worked out once, for all pairs of them: to
execute a call is to look its transition up, to read two registers, and to write one.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.episodes import ArithmeticEpisode, episodes
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.stages import Stage, Stages
from toolagent_pl.envs.calculator.tools import TOOLS, Token, Tool, find_tools
from toolagent_pl.rl.env import PADDING, Env, execute, over
from toolagent_pl.rl.rollout import Rollout

ACCUMULATOR, EMPTY, FREE = 0, 1, 2  # registers: the accumulator, one with nothing in it, the first of an env's own
COPY = 0  # in the place of a tool: the left register as it is
VALUE, POSITION = 0, 1  # what a register holds
NOOP, VALUED = 7, 8  # columns of a table

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


class Observation(NamedTuple):
    """What tools report before an action; never a number of the calculation.

    Attributes:
        flags: float32 ``[B, F]``: is there an accumulator, a left operand, something in memory; did the last call
            apply (true at the start). ``F`` is 4, or 0 without feedback.
        positions: int64 ``[B, P]``, indices into the prompt: of the next operand, and of the last operand of the value
            in the accumulator, on top of memory and as left operand; -1 where there is none. ``P`` is 4 with ``spans``,
            1 with ``position``, else 0.
    """

    flags: Tensor
    positions: Tensor


class Outcome(NamedTuple):
    """How ``B`` episodes ended.

    Attributes:
        answered: bool ``[B]``, whether ANS was called.
        answer: int64 ``[B]``, the value answered, 0 where there is none.
        valued: bool ``[B]``, whether there was a value to answer with.
        correct: bool ``[B]``, whether the problem was solved.
        steps: int64 ``[B]``, actions taken, ANS and calls that did not apply included.
    """

    answered: Tensor
    answer: Tensor
    valued: Tensor
    correct: Tensor
    steps: Tensor


class Transitions(NamedTuple):
    """What actions do, int64 ``[control states, 1 + A]`` each; padding comes first.

    Attributes:
        control: Next control state. Its lowest bit says whether there is a value in the accumulator.
        tool: Token of a tool, or COPY.
        left, right: Registers that it reads.
        target: Register that it writes.
        noops: 1 where the call does not apply.
    """

    control: Tensor
    tool: Tensor
    left: Tensor
    right: Tensor
    target: Tensor
    noops: Tensor

    @classmethod
    def none(cls, control: Tensor) -> "Transitions":
        """The next control states, and nothing else."""
        zero = torch.zeros_like(control)
        return cls(control, zero + COPY, zero + ACCUMULATOR, zero + EMPTY, zero + ACCUMULATOR, zero + 1)

    def put(self, where: Tensor, **columns: Tensor | int) -> None:
        """Set what happens where ``where`` (bool) is true; columns that are not given stay as in ``none``."""
        for name, value in {"noops": 0, **columns}.items():
            column = getattr(self, name)
            column.copy_(torch.where(where, value, column))

    def table(self) -> Tensor:
        """The columns, int64 ``[control states * (1 + A), 9]``.

        A control state is written as the row of its action 0, so that control plus action is the row of the pair. What
        is read and written are places among all numbers of a state: of the two values, and of the position that goes
        with the result; then of the value and the position of the target. The last two columns are ``noops``, and
        whether there is a value in the accumulator afterwards.

        Nine numbers are no multiple of 16 bytes: a GPU gives each row that is one a block of threads of its own, which
        takes it ten times as long.
        """
        pairs = self.control.shape[1]
        first = self.control * pairs - PADDING
        noops = self.noops.masked_fill(torch.arange(pairs) == 0, 0)
        left, right, target = (2 * register for register in self[2:5])
        position = torch.where(self.tool.eq(COPY), left, right) + POSITION
        columns = [first, self.tool, left, right, position, target, target + POSITION, noops, self.control & 1]
        return torch.stack(columns, 2).flatten(0, 1)


class RegisterState(NamedTuple):
    """State of ``B`` episodes.

    Attributes:
        registers: int64 ``[B, R, 2]``: values, and positions of their last operands in the prompt. One that is empty
            holds any value; which ones are empty follows from the control state.
        control: int64 ``[B]``, the row of the transition table for action 0.
        valued: bool ``[B]``, whether there is a value in the accumulator.
        terminated, truncated: bool ``[B]``.
        applied: bool ``[B]``, whether the last call did anything; true at the start.
        steps, noops: int64 ``[B]``, actions taken, and those of them that did not apply.
        limit: int64 ``[B]``, most steps.
        target: int64 ``[B]``, the right answer.
    """

    registers: Tensor
    control: Tensor
    valued: Tensor
    terminated: Tensor
    truncated: Tensor
    applied: Tensor
    steps: Tensor
    noops: Tensor
    limit: Tensor
    target: Tensor

    @property
    def value(self) -> Tensor:
        """The accumulator, 0 where it is empty; int64 ``[B]``."""
        return torch.where(self.valued, self.registers[:, ACCUMULATOR, VALUE], 0)


class RegisterEnv(Env):
    """Problems of arithmetic, and a machine for them that follows a transition table.

    Args:
        stages: Stages that are trained on, easiest first: names, or stages with a pattern or a number of operators.
        unseen: Stages that are tested on only.
        tools: What expressions are made of: MUL, ADD, SUB, tools, or dotted paths of tools, as in ``mine.MAX``.
        actions: Names of the tokens that may be called; the tools, ANS, STO and RCL without it.

    Attributes:
        vocabulary: Tokens of prompts and of actions.
        tokens: The tokens of the actions, in order.
        flags, positions: Widths of an observation.

    Raises:
        ValueError: If a stage, tool or action is unknown.
    """

    default_agent = "toolagent_pl.envs.calculator.reader.Reader"
    flags = 0
    positions = 0
    memory_depth = 0

    def __init__(
        self,
        stages: Sequence[str | Stage],
        unseen: Sequence[str | Stage],
        tools: Sequence[str | Tool],
        actions: Sequence[str] | None,
    ) -> None:
        self._stages = Stages([*stages, *unseen], find_tools(tools))
        names = self._stages.names
        self.stages, self.unseen = names[: len(stages)], names[len(stages) :]
        self.vocabulary = self._stages.vocabulary
        self.runs_foreign_code = not set(self.vocabulary.tools) <= set(TOOLS)
        self.tokens = self.vocabulary.actions if actions is None else tuple(self.vocabulary.tokens(actions))
        self.actions = tuple(self.vocabulary.name(token) for token in self.tokens)
        self._answer = self.tokens.index(Token.ANS) if Token.ANS in self.tokens else len(self.tokens)
        self._stages_on: dict[torch.device, Stages] = {}
        self._tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def max_digits(self) -> int:
        """Most digits of an operand."""
        return max(stage.digits for stage in self._stages.stages)

    @abstractmethod
    def _transitions(self, width: int, token: Tensor) -> Transitions:
        """The rules, for tapes of up to ``width`` operands; ``token`` has the tokens of the actions, padding first."""

    def _reports(self, width: int) -> Tensor:
        """What is reported in each control state, int64 ``[control states, K]``: see ``observe``."""
        return torch.zeros(1, 0, dtype=torch.int64)

    @abstractmethod
    def _tape_width(self, state: RegisterState) -> int:
        """How many operands the tape of a state has room for."""

    @abstractmethod
    def outcome(self, state: RegisterState) -> Outcome:
        """How the episodes ended, if they are left here."""

    def stages_on(self, device: torch.device) -> Stages:
        """The stages, making their problems on a device."""
        if device not in self._stages_on:
            self._stages_on[device] = self._stages.to(device)
        return self._stages_on[device]

    def problems(self, number: Tensor, stage: Tensor, seed: int, *, held_out: bool) -> Problems:
        """Random expressions; a tenth of all is held out, by a hash."""
        stages = self.stages_on(number.device)
        return stages.draw(number, stage, seed, held_out=held_out, static_shapes=self.static_shapes)

    def size(self, stage: int) -> int | None:
        """How many problems a stage has, if all of them can be tried: those of a pattern."""
        return self._stages.size(stage)

    def enumerated(self, number: Tensor, stage: Tensor) -> Problems:
        """Problems of a pattern by their numbers: the operands written one behind the other; all of one stage."""
        return self.stages_on(number.device).all_problems(int(stage[0]), number)

    def reference_length(self, problems: Problems) -> Tensor:
        """Actions of the reference plan, int64 ``[B]``."""
        return problems.reference_length

    def tables(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Transitions (see ``Transitions.table``) and reports for tapes of up to ``width`` operands.

        Made once: to copy them in each update, a GPU would be waited for.
        """
        key = width, device
        if key not in self._tables:
            token = torch.tensor([PADDING, *self.tokens])
            reports = self._reports(width).repeat_interleave(len(token), 0)  # a row for each one of the transitions
            self._tables[key] = self._transitions(width, token).table().to(device), reports.to(device)
        return self._tables[key]

    def _start(self, problems: Problems, own: Tensor, number: Tensor, limit: Tensor) -> RegisterState:
        """Nothing done yet.

        Args:
            own: int64 ``[B, R - FREE, 2]``, the environment's own registers.
            number: int64 ``[B]``, number of the control state.
            limit: int64 ``[B]``, most steps.
        """
        zero = torch.zeros_like(problems.target)
        no = torch.zeros_like(zero, dtype=torch.bool)
        fixed = torch.stack([zero, zero - 1], 1)[:, None].expand(-1, FREE, -1)
        pairs = 1 + len(self.actions)
        return RegisterState(
            registers=torch.cat([fixed, own], 1),
            control=number * pairs - PADDING,
            valued=no,
            terminated=no,
            truncated=limit.le(0),
            applied=~no,
            steps=zero,
            noops=zero,
            limit=limit,
            target=problems.target,
        )

    def step(self, state: RegisterState, action: Tensor, combine: Combine | None = None) -> RegisterState:
        """The state after an action.

        Args:
            action: int64 ``[B]``; -1 is padding and takes no step.
            combine: What to write, from (token, left, right), int64 ``[B]`` each; the tools' functions without it.
                Where the token is COPY it must be ``left``.
        """
        table, _ = self.tables(self._tape_width(state), state.control.device)
        action = action.masked_fill(over(state), PADDING)
        row = table.index_select(0, state.control + action)  # [B, 9]
        noop, stepped = row[:, NOOP], action.ne(PADDING)
        numbers = state.registers.flatten(1)  # [B, 2 R]
        left, right, position = numbers.gather(1, row[:, 2:5]).unbind(1)
        value = (combine or self.vocabulary.apply)(row[:, 1], left, right)
        registers = numbers.scatter(1, row[:, 5:NOOP], torch.stack([value, position], 1)).view_as(state.registers)
        steps = state.steps + stepped
        terminated = state.terminated | action.eq(self._answer)
        return RegisterState(
            registers=registers,
            control=row[:, 0],
            valued=row[:, VALUED].bool(),
            terminated=terminated,
            truncated=steps.ge(state.limit) & ~terminated,
            applied=torch.where(stepped, noop.eq(0), state.applied),
            steps=steps,
            noops=state.noops + noop,
            limit=state.limit,
            target=state.target,
        )

    def applies(self, state: RegisterState) -> Tensor:
        """Whether each action would do something, bool ``[B, A]``; where an episode is over, before its end."""
        table, _ = self.tables(self._tape_width(state), state.control.device)
        actions = torch.arange(len(self.actions), device=state.control.device)
        return table[state.control[:, None] + actions, NOOP].eq(0)

    def observe(self, state: RegisterState) -> Observation:
        """What the tools report: flags by control state, positions of the registers that the control state names."""
        _, reports = self.tables(self._tape_width(state), state.control.device)
        row = reports.index_select(0, state.control) if self.flags else state.control[:, None][:, :0]
        flags = row[:, : max(0, self.flags - 1)].float()
        if self.flags:
            flags = torch.cat([flags, state.applied[:, None].float()], 1)
        held = row[:, self.flags - 1 : self.flags - 1 + self.positions] if self.positions else row[:, :0]
        return Observation(flags, state.registers[..., POSITION].gather(1, held))

    def solved(self, state: RegisterState) -> Tensor:
        """Whether the right answer was given."""
        return self.outcome(state).correct

    def metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """The share of calls that did not apply."""
        return {"noop_share": rollout.final.noops.sum() / rollout.steps.sum()}

    def episodes(self, rollout: Rollout) -> list[ArithmeticEpisode]:
        """The episodes with the value after each call."""
        actions = rollout.visible_actions[:, : max(1, int(rollout.steps.max()))]
        states = execute(self, rollout.problems, actions)[1:]
        return episodes(self, rollout, states, self.outcome(rollout.final))

    def figures(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Accuracy by number of operators and by shape of tree, tools by step, and an episode of each stage."""
        from toolagent_pl.envs.calculator.figures import all_figures  # matplotlib takes half a second to load

        return all_figures(self, rollouts)

    def run_tokens(self, problems: Problems, tokens: Tensor) -> Outcome:
        """Execute whole plans, given as tokens of any kind.

        Args:
            tokens: int64 ``[B, T]``; a negative one is padding and takes no step.

        Raises:
            ValueError: If there is not one row of int64 for each problem.
        """
        if tokens.ndim != 2 or len(tokens) != problems.size or tokens.dtype != torch.int64:
            raise ValueError(
                f"actions: got {tokens.dtype} of shape {list(tokens.shape)}, "
                f"expected int64 of shape [{problems.size}, steps], a row for each problem"
            )
        machine = self.with_all_tokens()
        known = torch.where(tokens < self.vocabulary.size, tokens, int(Token.EOS))  # one that does nothing
        return machine.outcome(execute(machine, problems, known.clamp(min=PADDING))[-1])

    def with_all_tokens(self) -> "RegisterEnv":
        """The same environment, in which every token is an action: an action is the number of its token."""
        machine = copy.copy(self)
        machine.tokens, machine.actions = tuple(range(self.vocabulary.size)), self.vocabulary.names
        machine._answer, machine._tables = int(Token.ANS), {}
        return machine
