"""The calculator for language models: problems and reports are texts, and each tool is a method that a model calls.

``text_calculator`` makes a class of the form that TRL's ``environment_factory`` takes, whose every public method but
``reset`` is a tool; ``prompt`` and ``dataset`` stand beside it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar

import torch

from toolagent_pl.envs.calculator.env import CalculatorEnv, Feedback
from toolagent_pl.envs.calculator.expression import parse, reference_plan, text_of
from toolagent_pl.envs.calculator.single import (
    BLOCK,
    SingleCalculator,
    SingleProblem,
    single_problem,
    single_problems,
)
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.rl.random_numbers import Purpose, random_below

MAX_NUMBER = 2**55 - 1
BLOCKS = 32  # of problems that are kept: those of a group of samples, and rows that follow one another, are made once
METHODS = {"MUL": "multiply", "ADD": "add", "SUB": "subtract", "ANS": "answer", "STO": "store", "RCL": "recall"}
RULES = {
    "STO": "Push the accumulator onto the memory, a stack, and empty it; if it is empty, push the next operand.",
    "RCL": "Pop the memory: it is the left operand of the next operator; if the accumulator is empty, it goes there.",
    "ANS": "Answer with the accumulator and end. It is right only if all operands are used and nothing is left over.",
}
INTRODUCTION = """\
Work out an expression by calling tools that take no arguments, one at a time. The operands lie on a tape in the \
order in which they are written, and each is taken once. An accumulator holds a result, a memory others. An operator \
joins the recalled left operand and the accumulator; without one, the accumulator and the next operand; if the \
accumulator is empty, the next two operands. Until a recalled left operand is used, store and recall do not apply. A \
call that does not apply changes nothing, but counts."""


class TextCalculator:
    """An episode at a time, in words; ``text_calculator`` makes the classes that have tools.

    Attributes:
        reward: 1.0 once the problem is solved, else 0.0.
        done: Whether there is no episode, or it has ended.
    """

    _env: ClassVar[CalculatorEnv]
    _values: ClassVar[bool]
    _tools: ClassVar[dict[str, int]]  # actions by the names of the methods
    _problem: ClassVar[Callable[[int, int | None, int], SingleProblem]]  # of a number, a stage and a seed

    def __init__(self) -> None:
        self.reward, self.done = 0.0, True
        self._calculator = SingleCalculator(self._env)

    def reset(
        self,
        number: int | None = None,
        stage: str | None = None,
        seed: int = 0,
        expression: str | None = None,
        **columns: Any,
    ) -> str:
        """Begin an episode; trainers hand over the columns of their data set.

        Args:
            number: Which of the endless problems.
            stage: Name of its stage; drawn by the number without it.
            seed: Of the run that has this problem.
            expression: A problem of your own, in place of a number.
            columns: Others, which mean nothing here.

        Raises:
            ValueError: If there is no such problem.
        """
        env = self._env
        check_whole(number=number)
        if expression is not None:
            problem = single_problem(env, expression)
        elif number is None:
            raise ValueError("number: got none, expected one, or an expression")
        elif stage not in (None, *env.stages):
            raise ValueError(f"stage: got {stage!r}, expected {', '.join(env.stages)}")
        else:
            position = None if stage is None else env.stages.index(stage)
            problem = type(self)._problem(int(number), position, int(seed))
        self._calculator.reset(problem)
        self.reward, self.done = 0.0, False
        return f"Expression: {self._expression}\nCalls: at most {problem.limit}\n{self._report()}"

    @property
    def _expression(self) -> str:
        return text_of(self._calculator.problem.prompt, self._env.vocabulary)

    @property
    def _stage(self) -> str | None:
        return self._env.stage_name(self._calculator.problem.stage)

    def _call(self, action: int) -> str:
        if self.done:
            raise ValueError("The episode is over: nothing can be called until it is reset.")
        calculator = self._calculator
        calculator.step(action)
        self.done, self.reward = calculator.over, float(calculator.solved)
        if calculator.terminated:
            given = f" {self._number}" if self._values else ""
            verdict = "right" if calculator.solved else "wrong, something is left" if calculator.right else "wrong"
            return f"Answered{given}: {verdict}."
        ended = f" The limit of {calculator.steps} calls is reached: the episode is over." if self.done else ""
        return self._report() + ended

    @property
    def _number(self) -> str:
        value = self._calculator.accumulator
        return str(value.number) if value else "empty"

    def _report(self) -> str:
        """What the tools report, as much of it as the feedback has; flags and positions are those of all others."""
        said, flags = [], self._calculator.flags
        following, *ends = [*self._calculator.positions, *[-1] * 4][:4]
        at, top, left = (f", ends at {end}" if end >= 0 else "" for end in ends)
        if flags and not flags[3]:
            said.append("the call does not apply")
        if self._values:
            said.append(f"accumulator: {self._number}{at}")
        elif flags:
            said.append(f"accumulator: {'in use' if flags[0] else 'empty'}{at}")
        if flags:
            said.append(f"left operand: {'recalled' if flags[1] else 'none'}{left}")
            said.append(f"memory: {'in use' if flags[2] else 'empty'}{top}")
        if self._env.positions:
            said.append(f"next operand: {f'at {following}' if following >= 0 else 'none'}")
        return "; ".join(said or ["called"]) + "."


def check_whole(**numbers: Any) -> None:
    """Refuse what is not the number of a problem, by a ValueError with its name; None is accepted."""
    for name, number in numbers.items():
        if not (number is None or (isinstance(number, Integral) and 0 <= int(number) <= MAX_NUMBER)):
            raise ValueError(f"{name}: got {number!r}, expected a whole number from 0 to {MAX_NUMBER}")


def text_calculator(
    stages: Sequence[str | Stage] = ("E1", "E2", "E3"),
    *,
    held_out: bool = False,
    feedback: Feedback = "flags",
    values: bool = True,
    **options: Any,
) -> type[TextCalculator]:
    """A class of text environments with these problems, and a method for each tool, such as ``multiply``.

    Args:
        stages: That problems are drawn from, each as likely as the others.
        held_out: Draw from the tenth of all problems that is never drawn without it.
        feedback: What the tools report: ``none``, ``flags``, ``position`` or ``spans``; see ``CalculatorEnv``.
        values: Report the value of the accumulator.
        options: ``max_steps``, ``memory_depth``, ``tools`` of ``CalculatorEnv``; a tool of your own is called by its
            name in small letters.

    Raises:
        ValueError: If an option is out of range, or tools cannot be told from one another or from ``reset``.
    """
    env = CalculatorEnv(stages, feedback=feedback, **options)
    env.check()
    names = [METHODS.get(name, name.lower()) for name in env.actions]
    if len({*names, "reset", "reward", "done"}) < len(names) + 3 or any(name.startswith("_") for name in names):
        raise ValueError(f"tools: got methods {', '.join(names)}, expected names that differ, and from reset")

    @lru_cache(BLOCKS)
    def block(first: int, stage: int | None, seed: int) -> list[SingleProblem]:
        number = torch.arange(first, first + BLOCK)
        drawn = random_below(seed, Purpose.STAGE, number, torch.tensor(len(env.stages)))
        stages = drawn if stage is None else torch.full_like(number, stage)
        return single_problems(env, env.problems(number, stages, seed, held_out=held_out))

    def problem(number: int, stage: int | None, seed: int) -> SingleProblem:
        return block(number - number % BLOCK, stage, seed)[number % BLOCK]

    methods = {name: _method(name, action, _rule(env, action)) for action, name in enumerate(names)}
    told = {"_env": env, "_values": values, "_problem": staticmethod(problem)}
    told |= {"_tools": {name: action for action, name in enumerate(names)}, "__doc__": TextCalculator.__doc__}
    return type("TextCalculator", (TextCalculator,), {**told, **methods})


def _rule(env: CalculatorEnv, action: int) -> str:
    tool = env.vocabulary.by_token.get(env.tokens[action])
    return RULES[env.actions[action]] if tool is None else f"Calculate left {tool.symbol} right, into the accumulator."


def _method(name: str, action: int, rule: str) -> Callable[[TextCalculator], str]:
    def call(self: TextCalculator) -> str:
        return self._call(action)

    call.__name__, call.__qualname__ = name, f"TextCalculator.{name}"
    call.__annotations__ = {"return": str}  # trainers make a schema of them, in which ``self`` has no place
    call.__doc__ = f"{rule}\n\nArgs:\n\nReturns:\n    What the tools report.\n"
    return call


def prompt(environment: type[TextCalculator]) -> str:
    """What a model is told before the problem: the rules of the tools."""
    env = environment._env
    rules = [f"- {name}: {_rule(env, action)}" for name, action in environment._tools.items()]
    if env.positions:
        rules.append(
            "Positions count the symbols of the expression from 0; a number or value is where its last digit is."
        )
    return "\n".join([INTRODUCTION, *rules, ""])


def dataset(environment: type[TextCalculator], count: int, seed: int = 0, first: int = 0) -> list[dict[str, Any]]:
    """Rows of a data set, as in ``datasets.Dataset.from_list(dataset(...))``: a prompt, and what ``reset`` takes.

    The problems are ``count`` from number ``first`` on, of a run with this seed, from 0 to 2^56 - 1.
    """
    message = {"role": "user", "content": prompt(environment)}
    found = [environment._problem(number, None, seed) for number in range(first, first + count)]
    stage = environment._env.stage_name
    return [{"prompt": [message], "number": one.number, "stage": stage(one.stage), "seed": seed} for one in found]


def reference_calls(episode: TextCalculator) -> list[str]:
    """The calls of the reference plan for the problem of an episode, as a demonstration."""
    env = episode._env
    names = {env.tokens[action]: name for name, action in episode._tools.items()}
    return [names[token] for token in reference_plan(parse(episode._expression, env.vocabulary).tree)]
