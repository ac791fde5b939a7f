"""Episodes as pictures: as text for a terminal, and as a page that a person steps through."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.episodes import ArithmeticEpisode
from toolagent_pl.envs.calculator.expression import minimal_tokens, parse, text_of
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.single import SingleCalculator, single_problems
from toolagent_pl.envs.calculator.tools import POSITIONS, Vocabulary

MARKS = "NAML"  # of the positions, in their order
BOTH = "*"  # of two positions that are the same
LEGEND = ", ".join(f"{mark} {place}" for mark, place in zip(MARKS, POSITIONS, strict=True))
MIN_WIDTH = 20
_GREEN, _RED, _BOLD, _DIM, _CYAN = "32", "31", "1", "2", "36"


class Moment(NamedTuple):
    """What there is before a call, or at the end; numbers are texts, since JavaScript would round large ones.

    Attributes:
        read: How many operands of the tape are used up.
        accumulator, left: None where they are empty.
        memory: The stack, its top last.
        applied: Whether the call before it did anything.
    """

    read: int
    accumulator: str | None
    memory: list[str]
    left: str | None
    applied: bool


def moments(env: CalculatorEnv, episode: ArithmeticEpisode) -> list[Moment]:
    """What there is before each call of an episode, and at its end."""
    expression, one, found = parse(episode.problem, env.vocabulary), SingleCalculator(env), []
    prompt = minimal_tokens(expression, env.vocabulary)
    one.reset(single_problems(env, Problems.from_trees([prompt], [expression], env.vocabulary))[0])
    for name in (*episode.plan, None):
        accumulator, left = (None if held is None else str(held.number) for held in (one.accumulator, one.left))
        read, memory = len(episode.operands) - len(one.tape), [str(held.number) for held in one.memory]
        found.append(Moment(read, accumulator, memory, left, one.applied))
        if name:
            one.step(env.actions.index(name))
    return found


def pieces(episode: ArithmeticEpisode, vocabulary: Vocabulary) -> list[str]:
    """The expression of an episode cut into the tokens of its prompt, to which its positions point."""
    tokens = minimal_tokens(parse(episode.problem, vocabulary), vocabulary)
    return [text_of([token], vocabulary) for token in tokens[:-1]]


def _marked(positions: Sequence[int], written: Sequence[str]) -> str:
    """A line with a mark under each place."""
    marks: dict[int, str] = {}
    for mark, place in zip(MARKS, positions, strict=False):
        if place >= 0:
            marks[place] = BOTH if place in marks else mark
    return "".join(marks.get(i, " ").rjust(len(piece)) for i, piece in enumerate(written))


def draw(
    given: str,
    episode: ArithmeticEpisode,
    vocabulary: Vocabulary,
    *,
    width: int = 80,
    colour: bool = False,
    next_positions: Sequence[int] | None = None,
) -> str:
    """An episode as lines of text: the expression, then for each call the positions looked at before it, and the value.

    Args:
        given: The expression as it was given; shown too where the prompt is another.
        width: Of the terminal. Where the lines do not fit, the expression is cut into lines of its own.
        colour: Use the colours of terminals.
        next_positions: What the tools report before the next call, of an episode that goes on: in place of the verdict.
    """

    def painted(text: str, *codes: str) -> str:
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if colour and text.strip() else text

    def look(positions: Sequence[int], said: str) -> Iterator[str]:
        marks = _marked(positions, written)
        if beside:
            yield f"{painted(marks, _CYAN)}  {said}" if said else painted(marks.rstrip(), _CYAN)
            return
        for start in range(0, len(marks), width):
            if part := marks[start : start + width].rstrip():
                yield from (painted(episode.problem[start : start + width], _DIM), painted(part, _CYAN))
        if said:
            yield said

    width, written = max(width, MIN_WIDTH), pieces(episode, vocabulary)
    values = ["-" if value is None else str(value) for value in episode.values]
    name = max(map(len, episode.plan), default=0)
    beside = len(episode.problem) + 2 + name + 2 + max(map(len, values), default=0) <= width
    lines = [painted(episode.problem, _BOLD)]
    if "".join(given.split()) != "".join(episode.problem.split()):
        lines.insert(0, painted(f"{' '.join(given.split())} is read as", _DIM))
    for call, value, positions in zip(episode.plan, values, episode.positions, strict=True):
        lines += look(positions, f"{painted(call.ljust(name), _BOLD)}  {value}")
    lines += _verdict(episode, painted) if next_positions is None else look(next_positions, "")
    return "\n".join(lines)


def _verdict(episode: ArithmeticEpisode, painted: Callable[..., str]) -> Iterator[str]:
    answer = "no answer" if episode.answer is None else str(episode.answer)
    if episode.solved:
        said = painted("right", _GREEN, _BOLD)
    else:
        what = "something is left over" if episode.answer == episode.target else f"it is {episode.target}"
        said = f"{painted('wrong', _RED, _BOLD)}: {what}"
    yield f"{answer}, {said}"
    yield painted(f"calls: {len(episode.plan)}, the reference plan: {episode.reference_length}", _DIM)


def page(given: Sequence[str], drawn: Sequence[ArithmeticEpisode], env: CalculatorEnv) -> str:
    """One HTML page, complete in itself, in which a person steps through episodes of expressions as they were given."""
    text = json.dumps([_scene(text, episode, env) for text, episode in zip(given, drawn, strict=True)])
    for character in "<>&":  # what could end the element that the data stand in
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = files("toolagent_pl.envs.calculator").joinpath("player.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", text, 1)


def _scene(given: str, episode: ArithmeticEpisode, env: CalculatorEnv) -> dict[str, Any]:
    """All that the page shows of an episode."""
    tape, states = list(map(str, episode.operands)), moments(env, episode)
    steps = zip(episode.plan, states[:-1], states[1:], episode.positions, strict=True)
    return {
        "given": " ".join(given.split()),
        "pieces": pieces(episode, env.vocabulary),
        "tape": tape,
        "steps": [
            {
                "call": call,
                "value": after.accumulator,
                "said": _sentence(call, before, after, tape[before.read :], env.vocabulary),
                "positions": dict(zip(MARKS, positions, strict=False)),
            }
            for call, before, after, positions in steps
        ],
        "moments": [state._asdict() for state in states],
        "answer": None if episode.answer is None else str(episode.answer),
        "target": str(episode.target),
        "correct": episode.solved,
        "reference": episode.reference_length,
    }


def _sentence(call: str, before: Moment, after: Moment, tape: Sequence[str], vocabulary: Vocabulary) -> str:
    """What a call does, in words; ``tape`` has the operands that are left before it."""
    value = before.accumulator
    if call == "ANS":
        return "Answer with nothing: the accumulator is empty." if value is None else f"Answer with {value}."
    if not after.applied:
        return "It does not apply here, and changes nothing."
    if call == "STO":
        return f"Put the {f'next operand, {tape[0]}' if value is None else f'accumulator, {value}'}, on top of memory."
    if call == "RCL":
        return f"Take {before.memory[-1]} from memory {'into the accumulator' if value is None else 'as left operand'}."
    symbol = next(tool.symbol for tool in vocabulary.tools if tool.name == call)
    if before.left is not None:
        who, left, right = "Left operand and accumulator", before.left, str(value)
    elif value is not None:
        who, left, right = "Accumulator and next operand", value, tape[0]
    else:
        who, left, right = "The next two operands", *tape[:2]
    return f"{who}: {left} {symbol} {f'({right})' if right.startswith('-') else right} = {after.accumulator}."
