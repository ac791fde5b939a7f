"""Stages: sets of problems, made in whole batches from random numbers, on any device.

An expression is a word in postfix notation and a tape of operands; what an agent reads and what an environment needs
follow from these two.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.expression import INT64_MAX, magnitude_bound, parse, reference_plan
from toolagent_pl.envs.calculator.problems import Problems, evaluate, running_sum
from toolagent_pl.envs.calculator.tools import TOOLS, Token, Tool, Vocabulary
from toolagent_pl.rl.random_numbers import Purpose, random_below, random_bits

BASE = 10
MAX_OPERATORS = 60
MAX_DIGITS = 6
MAX_ENUMERATION = 1_000_000  # problems; a larger stage is tested on a sample
DRAWS = 128  # set aside for each problem: more than a word is long
LEAF, NOTHING = 0, -1  # in a postfix word, where they are no token of an operator


@dataclass(frozen=True)
class Stage:
    """A named set of problems: those of a pattern, or all expressions with a number of operators.

    Numbers are int64. From 19 operators on a value might in principle not fit: it is then taken modulo 2^64, in the
    target as in the environment. Patterns, and operands of several digits, are refused where that could happen.

    Args:
        name: Shown in tables, and used in the names of metrics.
        pattern: An expression over letters, ``a*(b-c)``; each letter is an operand of its own.
        operators: How many operators, in place of a pattern. Every binary tree is equally likely, and every tool.
        tools: Names of the tools that random operators are drawn from; all of them without it.
        digits: Most digits of an operand. Each number of digits is equally likely, and then each number.

    Raises:
        ValueError: If there is not one of ``pattern`` and ``operators``, or a number is out of range.
    """

    name: str
    pattern: str | None = None
    operators: int | None = None
    tools: tuple[str, ...] | None = None
    digits: int = 1

    def __post_init__(self) -> None:
        wrong = ""
        if not re.fullmatch(r"\w{1,40}", self.name):
            wrong = f"name {self.name!r}, expected letters and digits"
        elif (self.pattern is None) == (self.operators is None):
            wrong = f"{self.name} with both or none of pattern and operators, expected one"
        elif self.operators is not None and not 1 <= self.operators <= MAX_OPERATORS:
            wrong = f"{self.name} with {self.operators} operators, expected 1 to {MAX_OPERATORS}"
        elif self.pattern is not None and self.tools is not None:
            wrong = f"{self.name} with pattern and tools, expected tools only with operators"
        elif not 1 <= self.digits <= MAX_DIGITS:
            wrong = f"{self.name} with {self.digits} digits, expected 1 to {MAX_DIGITS}"
        if wrong:
            raise ValueError(f"stages: got {wrong}")


BUILT_IN = {s.name: s for s in (Stage("T0", "a*b+c"), Stage("T1", "(a*b+c)-d"), Stage("T2", "(a*b+c)-(d*e)"))}


def find_stage(stage: str | Stage | Mapping[str, Any]) -> Stage:
    """A stage by name: T0, T1, T2, or E and a number of operators; or by the options of ``Stage``, as files have them.

    Raises:
        ValueError: If there is none of this name.
    """
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, Mapping):
        return Stage(**stage)
    if stage in BUILT_IN:
        return BUILT_IN[stage]
    if match := re.fullmatch(r"E([1-9][0-9]?)", stage):
        return Stage(stage, operators=int(match[1]))
    raise ValueError(
        f"stages: got unknown {stage!r}, expected {', '.join(BUILT_IN)}, E1 to E{MAX_OPERATORS}, "
        "or a name with a pattern or a number of operators"
    )


class Stages:
    """An ordered list of stages, easiest first, that makes batches mixed from all of them.

    Args:
        stages: Names or stages, each name at most once.
        tools: Those that expressions are made of.

    Raises:
        ValueError: If a stage is unknown or repeated, cannot be read, or might leave int64; or if there is none.
    """

    def __init__(self, stages: Sequence[str | Stage], tools: Sequence[Tool] = TOOLS) -> None:
        self.stages = tuple(find_stage(stage) for stage in stages)
        self.names = tuple(stage.name for stage in self.stages)
        if not stages or len(set(self.names)) < len(stages):
            raise ValueError(f"stages: got {list(self.names)}, expected one or more, each at most once")
        self.vocabulary = Vocabulary(tools)
        words = [self._word(stage) for stage in self.stages]
        width = max(map(len, words))
        self._length = torch.tensor([len(word) for word in words])
        self._words = torch.tensor([[*word, *[NOTHING] * (width - len(word))] for word in words])  # [S, W]
        self._is_random = torch.tensor([stage.pattern is None for stage in self.stages])
        self._any_random = any(stage.pattern is None for stage in self.stages)
        self._digits = torch.tensor([stage.digits for stage in self.stages])
        self._most_digits = max(stage.digits for stage in self.stages)
        choices = [self._choices(stage) for stage in self.stages]
        longest = max(map(len, choices))
        self._choice = torch.tensor([[*row, *row[:1] * (longest - len(row))] for row in choices])
        self._choice_count = torch.tensor([len(row) for row in choices])
        self._precedence = torch.tensor([*self.vocabulary.precedences, 0])  # NOTHING, as -1, is the last

    def _word(self, stage: Stage) -> list[int]:
        """Postfix word of a pattern; of a number of operators, one word of the right length."""
        word: list[int] = []
        if stage.operators is not None:
            given = f"{stage.operators} operators and {stage.digits} digits"
            word = [LEAF] * (stage.operators + 1) + [self.vocabulary.operators[0]] * stage.operators
        else:
            given = repr(stage.pattern)
            try:
                leaves, tree = parse(str(stage.pattern), self.vocabulary, names=True)
            except ValueError as error:
                raise ValueError(f"stages: got {stage.name} with {error}") from None
            if len(set(leaves)) < len(leaves) or not tree:
                raise ValueError(f"stages: got {stage.name} with {given}, expected operators, and letters that differ")
            taken = 0
            for token, _, _, end in tree:
                word += [LEAF] * (end - taken) + [token]
                taken = max(taken, end)
        largest = magnitude_bound([BASE**stage.digits - 1] * word.count(LEAF))
        if largest > INT64_MAX and (stage.pattern is not None or stage.digits > 1):
            raise ValueError(f"stages: got {stage.name} with {given}, which might not fit into 64 bits")
        return word

    def _choices(self, stage: Stage) -> list[int]:
        """Tokens that random operators are drawn from."""
        names = [tool.name for tool in self.vocabulary.tools]
        wanted = stage.tools or names
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"stages: got {stage.name} with tool {unknown[0]!r}, expected some of {names}")
        return [token for token, name in zip(self.vocabulary.operators, names, strict=True) if name in wanted]

    def _longest_prompt(self, n: int) -> int:
        """Tokens that a prompt of n operands can have at most.

        2 n - 1 operands and operators, brackets around each operator but the outermost, further digits, and CTX.
        """
        return 2 * n + 2 * (n - 2) * (n > 2) + n * (self._most_digits - 1)

    def to(self, device: torch.device | str) -> "Stages":
        """The same stages, making their batches on ``device``."""
        moved = copy.copy(self)
        vars(moved).update({name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)})
        return moved

    def size(self, stage: int) -> int | None:
        """How many problems a stage has, if all of them can be tried; else None."""
        one, size = self.stages[stage], BASE ** int(self._words[stage].eq(LEAF).sum())
        return None if one.pattern is None or one.digits > 1 or size > MAX_ENUMERATION else size

    def longest_plan(self, stage: int) -> tuple[int, list[int]]:
        """Actions of the longest reference plan of a stage, and the tokens that its plans are made of."""
        one = self.stages[stage]
        if one.operators is None:
            plan = reference_plan(parse(str(one.pattern), self.vocabulary, names=True).tree)
            return len(plan), sorted(set(plan))
        memory = [Token.STO, Token.RCL] if one.operators > 1 else []
        return 3 * one.operators - 1, [*self._choices(one), Token.ANS, *memory]

    def all_problems(self, stage: int, index: Tensor) -> Problems:
        """Problems of a stage that has a size, by their numbers: the operands written one behind the other.

        Args:
            index: int64 ``[B]``, ``0 <= index < size``.
        """
        word = self._words[stage, : int(self._length[stage])].expand(len(index), -1)
        count = int(word[0].eq(LEAF).sum())
        place = torch.tensor([BASE**j for j in reversed(range(count))], device=index.device)
        return self._assemble(index, torch.full_like(index, stage), word, index[:, None] // place % BASE)

    def draw(
        self, number: Tensor, stage: Tensor, seed: int, *, held_out: bool, static_shapes: bool = False
    ) -> Problems:
        """A random problem of its stage for each row, a pure function of (seed, number).

        A tenth of all problems, by their hash, is held out: they are drawn with ``held_out``, and never without.

        Args:
            number: int64 ``[B]``, number of the problem in its run.
            stage: int64 ``[B]``.
        """
        cut = number.device.type == "cpu" and not static_shapes  # a GPU would have to be waited for
        words = self._words[:, : int(self._length[stage].max())] if cut else self._words
        word = words.index_select(0, stage)
        if self._any_random:
            word = torch.where(self._is_random[stage][:, None], self._random_words(number, stage, seed, word), word)
        length = word.eq(LEAF).sum(1)
        tape = torch.arange((word.shape[1] + 1) // 2, device=number.device)
        counter = number[:, None] * DRAWS + tape  # [B, N]
        # One draw makes an operand: its last digit, then how many digits it has, then the others.
        draw = random_bits(seed, Purpose.PROBLEM_OPERANDS, counter, bits=62)
        last = draw % BASE
        higher = torch.zeros_like(draw)
        if self._most_digits > 1:
            digits = self._digits.index_select(0, stage)[:, None]
            draw = draw // BASE
            more = draw % digits  # digits before the last one
            power = torch.pow(BASE, (more - 1).clamp(min=0))
            higher = torch.where(more.gt(0), power + draw // digits % (9 * power), higher)
        inside = tape < length[:, None]
        operands = (higher * BASE + last) * inside
        # The last digit of the last operand decides, whatever the rest is, so that no draw is made in vain.
        tail = (length - 1)[:, None]
        rest = operands.scatter(1, tail, higher.gather(1, tail))
        offset = _hash(word + 1, rest + inside) % BASE
        draw = random_below(seed, Purpose.PROBLEM, number * DRAWS + (DRAWS - 1), torch.full_like(number, BASE - 1))
        wanted = torch.zeros_like(draw) if held_out else draw + 1  # 1 to 9 are trained on
        digit = (wanted - offset) % BASE
        operands = operands.scatter(1, tail, higher.gather(1, tail) * BASE + digit[:, None])
        return self._assemble(number, stage, word, operands, static_shapes)

    def _random_words(self, number: Tensor, stage: Tensor, seed: int, fixed: Tensor) -> Tensor:
        """Uniform postfix words of the length of ``fixed``, int64 ``[B, W]`` both.

        By the cycle lemma (Dvoretzky and Motzkin, "A problem of arrangements", 1947) just one rotation of a word of
        n + 1 leaves and n operators is a postfix word, the one that starts behind the last minimum of the sums of
        +1 for a leaf and -1 for an operator. So the rotation of a uniformly shuffled word is a uniform tree.
        """
        width = fixed.shape[1]
        position = torch.arange(width, device=number.device)
        length = fixed.ne(NOTHING).sum(1, keepdim=True)  # [B, 1]
        outside = position >= length
        bits = random_bits(seed, Purpose.PROBLEM, number[:, None] * DRAWS + position, bits=62)  # [B, W]
        order = (bits >> 20).masked_fill(outside, INT64_MAX).argsort(1)
        rank = torch.empty_like(order).scatter_(1, order, position.expand_as(order))
        leaf = rank <= length // 2
        rise = torch.where(leaf, 1, -1).masked_fill(outside, width)
        # Of equal sums the last one: the position breaks ties.
        start = (running_sum(rise) * width - position).argmin(1, keepdim=True) + 1
        leaf = leaf.gather(1, ((position + start) % length).clamp(max=width - 1))
        choice = (bits & 0xFFFFF) % self._choice_count.index_select(0, stage)[:, None]
        word = torch.where(leaf, LEAF, self._choice.index_select(0, stage).gather(1, choice))
        return word.masked_fill(outside, NOTHING)

    def _assemble(
        self, number: Tensor, stage: Tensor, word: Tensor, operands: Tensor, static_shapes: bool = False
    ) -> Problems:
        """Everything that follows from postfix words ``[B, W]`` and operands ``[B, N]``."""
        nodes = _nodes(word, self._precedence)
        n = operands.shape[1]
        tape = torch.arange(n, device=word.device)
        length = word.eq(LEAF).sum(1)
        inside = tape < length[:, None]
        is_operator = word.gt(LEAF)
        m = max(1, (word.shape[1] - 1) // 2)
        before = torch.arange(word.shape[1], device=word.device) - nodes.end  # how many operators
        row = torch.where(is_operator, before, m)  # nothing stands in the last row, cut off below
        columns = torch.stack([word, nodes.start, nodes.split, nodes.end], 2) * is_operator[..., None]
        tree = word.new_zeros(len(word), m + 1, 4).scatter_(1, row[..., None].expand(-1, -1, 4), columns)[:, :m]

        # Before an operand stand its operator and opening brackets, behind it closing ones.
        nothing = word.new_zeros(len(word), n)
        child_start = nodes.split
        left, right = nodes.left_bracket.long(), nodes.right_bracket.long()
        opens = nothing.scatter_add(1, nodes.start.clamp(max=n - 1), left)
        opens = opens.scatter_add(1, child_start.clamp(max=n - 1), right)
        closes = nothing.scatter_add(1, (nodes.split - 1).clamp(min=0), left)
        closes = closes.scatter_add(1, (nodes.end - 1).clamp(min=0), right)
        digits = torch.ones_like(operands)
        for k in range(1, self._most_digits):
            digits = digits + (operands >= BASE**k)
        behind_operator = tape.gt(0).long()
        size = (behind_operator + opens + digits + closes) * inside
        last = running_sum(size) - closes - 1  # index of the last digit
        prompt_length = size.sum(1) + 1
        width = self._longest_prompt(n)  # and behind it a place for what is not there
        nowhere = torch.where(inside, last, width)
        prompt = word.new_full((len(word), width + 1), NOTHING)
        for k in range(self._most_digits):
            there = inside & digits.gt(k)
            prompt.scatter_(1, torch.where(there, last - k, width), operands // BASE**k % BASE)
        first = last - digits - opens  # the operator's place
        between = self._between(tree, n)
        prompt.scatter_(1, torch.where(inside & tape.gt(0), first, width), between)
        # What is left are brackets: opening ones behind an operator, closing ones behind an operand.
        balance = running_sum(prompt.gt(Token.CTX).long().scatter_add(1, nowhere, torch.full_like(nowhere, -1)))
        prompt = torch.where(prompt.eq(NOTHING), torch.where(balance.lt(0), Token.CLOSE, Token.OPEN), prompt)
        position = torch.arange(width + 1, device=word.device)
        end = (prompt_length - 1)[:, None]
        prompt = torch.where(position < end, prompt, torch.where(position == end, Token.CTX, Token.EOS))
        if word.device.type == "cpu" and not static_shapes:  # a GPU would have to be waited for
            width = int(prompt_length.max())
        return Problems(
            number=number,
            stage=stage,
            prompt=prompt[:, :width],
            prompt_length=prompt_length,
            operands=operands,
            positions=torch.where(inside, last, -1),
            length=length,
            target=evaluate(tree, operands, self.vocabulary),
            tree=tree,
        )

    @staticmethod
    def _between(tree: Tensor, n: int) -> Tensor:
        """Token of the operator before each operand, int64 ``[B, N]``; that with ``split`` there."""
        token, _, split, _ = tree.unbind(2)
        return token.new_zeros(len(tree), n).scatter_add_(1, split, token)


class _Nodes(NamedTuple):
    """For each position of postfix words ``[B, W]``, the subtree that ends there: spans of the tape, and brackets."""

    start: Tensor
    split: Tensor
    end: Tensor
    left_bracket: Tensor
    right_bracket: Tensor


def _nodes(word: Tensor, precedence: Tensor) -> _Nodes:
    """What operands the operators join, and which of these need brackets."""
    leaf, is_operator = word.eq(LEAF), word.gt(LEAF)
    position = torch.arange(word.shape[1], device=word.device)
    leaves = running_sum(leaf.long())
    height = 2 * leaves - position  # of the stack behind each position, and one more
    # A subtree begins behind the last position at which the stack was lower than at its end.
    lower = (height[:, None, :] < height[:, :, None]) & (position[None, :] < position[:, None])  # [B, W, W]
    begin = torch.where(lower, position, -1).amax(2) + 1
    start = (leaves - leaf.long()).gather(1, begin)
    right = (position - 1).clamp(min=0).expand_as(word)  # where the right operand ends
    left = (begin.gather(1, right) - 1).clamp(min=0)
    split = start.gather(1, right) * is_operator
    binds = precedence[word].masked_fill(leaf, INT64_MAX)
    left_bracket = is_operator & (binds.gather(1, left) < binds)
    right_bracket = is_operator & (binds.gather(1, right) <= binds)
    return _Nodes(start, split, leaves, left_bracket, right_bracket)


def _hash(word: Tensor, operands: Tensor) -> Tensor:
    """A number from 0 to 2^62 - 1 for each row of two; zeros at the end of a row change nothing."""
    mixed = torch.zeros_like(word[:, 0])
    for first, values in ((0, word), (DRAWS, operands)):
        k = torch.arange(first, first + values.shape[1], device=values.device)
        mixed = mixed + (values * (random_bits(0, Purpose.HELD_OUT, k) | 1)).sum(1)
    return random_bits(1, Purpose.HELD_OUT, mixed, bits=62)
