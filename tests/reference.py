"""Slow, plain Python versions of what the package computes with tensors, for one problem at a time."""

from operator import add, mul, sub

from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl.env import PADDING

ARITHMETIC = {Token.MUL: mul, Token.ADD: add, Token.SUB: sub}


class Calculator:
    """The calculator's rules.

    ``tools`` says what each operator's token computes. With ``join``, something else than numbers is computed, from
    (token, left, right): a value's place in the prompt is that of its right operand.
    """

    def __init__(self, tape, max_steps=None, memory_depth=8, tools=ARITHMETIC, join=None):
        self.tape, self.memory, self.tools = list(tape), [], tools
        self.value = self.left = None
        self.max_steps, self.memory_depth = max_steps, memory_depth
        self.join = join or (lambda token, left, right: tools[token](left, right))
        self.steps = self.noops = 0
        self.answered, self.applied = False, True

    @property
    def truncated(self):
        return self.steps == self.max_steps and not self.answered

    @property
    def over(self):
        return self.answered or self.truncated

    def press(self, action):
        """Take one action; returns what an operator has computed, if one was carried out."""
        if self.over or action < 0:
            return None
        self.steps += 1
        result = None
        if action in self.tools:
            result = self._operate(action)
            self.applied = result is not None
        else:
            rule = {Token.STO: self._store, Token.RCL: self._recall, Token.ANS: self._answer}.get(action)
            self.applied = rule is not None and rule()
        self.noops += not self.applied
        return result

    def _operate(self, tool):
        if self.left is not None:
            left, right, self.left = self.left, self.value, None
        elif self.value is not None and self.tape:
            left, right = self.value, self.tape.pop(0)
        elif self.value is None and len(self.tape) >= 2:
            left, right = self.tape.pop(0), self.tape.pop(0)
        else:
            return None
        self.value = self.join(tool, left, right)
        return self.value

    def _store(self):
        if self.left is not None or len(self.memory) == self.memory_depth:
            return False
        if self.value is not None:
            self.memory.append(self.value)
            self.value = None
        elif self.tape:
            self.memory.append(self.tape.pop(0))
        else:
            return False
        return True

    def _recall(self):
        if self.left is not None or not self.memory:
            return False
        if self.value is None:
            self.value = self.memory.pop()
        else:
            self.left = self.memory.pop()
        return True

    def _answer(self):
        self.answered = True
        return True

    def solved(self, target):
        leftover = self.tape or self.memory or self.left is not None
        return bool(self.answered and self.value == target and not leftover)

    @property
    def flags(self):
        """What tools report of the state."""
        return [self.value is not None, self.left is not None, bool(self.memory), self.applied]

    @property
    def held(self):
        """Next operand, accumulator, top of memory, left operand; -1 where there is none."""
        first = self.tape[0] if self.tape else None
        top = self.memory[-1] if self.memory else None
        return [-1 if one is None else one for one in (first, self.value, top, self.left)]


def tutorial_episode(operands, stage, actions, max_steps):
    """The tutorial's (reward, steps), oddities included."""
    a, b, c, d, e = operands
    goals = [a * b, a * b + c, a * b + c - d, d * e, a * b + c - d * e]
    shares = [[0.25, 0.5, 0, 0, 0], [0.25, 0.5, 0.75, 0, 0], [0.2, 0.4, 0, 0.6, 0.6]][stage]
    value, stored, steps = None, False, 0
    for action in actions:
        if action < 0:
            continue
        if steps == max_steps:
            break
        steps += 1
        if action == Token.ANS:
            hits = [value is not None and value == goal for goal in goals]
            return hits[stage] + 0.2 * sum(share for share, hit in zip(shares, hits, strict=True) if hit), steps
        if action == Token.MUL:
            value = a * b if value is None else value * d if stage else value
        elif action == Token.ADD and value is not None:
            value += c
        elif action == Token.SUB and value is not None and stage:
            value -= e if stage == 2 and stored else d
        elif action == Token.STO:
            stored = True
        elif action == Token.RCL and stored:
            value = d * e if stage == 2 else value or 0
    return 0.0, steps


def splitmix64(state, count):
    """The first outputs of SplitMix64 from ``state``, as unsigned integers."""
    mask = 2**64 - 1
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


def padded(plans):
    """Rows of actions of one length."""
    longest = max(map(len, plans))
    return [[*plan, *[PADDING] * (longest - len(plan))] for plan in plans]
