"""Episodes as pictures: as text for a terminal, and as a page that a person steps through."""

import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import torch

from toolagent_pl.envs.calculator.env import LEFT, MEMORY, CalculatorEnv
from toolagent_pl.envs.calculator.episodes import ArithmeticEpisode
from toolagent_pl.envs.calculator.expression import minimal_tokens, parse, text_of
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import ACCUMULATOR, VALUE
from toolagent_pl.envs.calculator.tools import POSITIONS, Vocabulary
from toolagent_pl.rl.env import execute

MARKS = "NAML"  # of the positions, in their order
BOTH = "*"  # of two positions that are the same
LEGEND = ", ".join(f"{mark} {place}" for mark, place in zip(MARKS, POSITIONS, strict=True))
MIN_WIDTH = 20
_GREEN, _RED, _BOLD, _DIM, _CYAN = "32", "31", "1", "2", "36"


class Moment(NamedTuple):
    """What there is before a call, or at the end.

    Attributes:
        read: How many operands of the tape are used up.
        accumulator: None where it is empty.
        memory: The stack, its top last.
        left: The left operand; None where there is none.
        applied: Whether the call before it did anything.
    """

    read: int
    accumulator: int | None
    memory: list[int]
    left: int | None
    applied: bool


def moments(env: CalculatorEnv, episode: ArithmeticEpisode) -> list[Moment]:
    """What there is before each call of an episode, and at its end."""
    problems = Problems.from_expressions([episode.problem], env.vocabulary.tools, minimal_brackets=True)
    actions = torch.tensor([[env.actions.index(name) for name in episode.plan]], dtype=torch.int64)
    states = execute(env, problems, actions)
    found = []
    for state in states:
        registers = state.registers[0, :, VALUE].tolist()
        number = int(state.control[0]) // (1 + len(env.actions))  # as CalculatorEnv numbers its control states
        rest, recalled, valued = number >> 2, number >> 1 & 1, number & 1
        remaining, depth = divmod(rest, env.memory_depth + 1)
        found.append(
            Moment(
                read=len(episode.operands) - remaining,
                accumulator=registers[ACCUMULATOR] if valued else None,
                memory=registers[MEMORY : MEMORY + depth],
                left=registers[LEFT] if recalled else None,
                applied=bool(state.applied[0]),
            )
        )
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

    width = max(width, MIN_WIDTH)
    written = pieces(episode, vocabulary)
    values = ["-" if value is None else str(value) for value in episode.values]
    name = max(map(len, episode.plan), default=0)
    beside = len(episode.problem) + 2 + name + 2 + max(map(len, values), default=0) <= width
    lines = []
    if "".join(given.split()) != "".join(episode.problem.split()):
        lines.append(painted(f"{' '.join(given.split())} is read as", _DIM))
    lines.append(painted(episode.problem, _BOLD))

    def look(positions: Sequence[int], said: str) -> None:
        marks = _marked(positions, written)
        if beside:
            lines.append(f"{painted(marks, _CYAN)}  {said}" if said else painted(marks.rstrip(), _CYAN))
            return
        for start in range(0, len(marks), width):
            if part := marks[start : start + width].rstrip():
                lines.extend([painted(episode.problem[start : start + width], _DIM), painted(part, _CYAN)])
        if said:
            lines.append(said)

    for call, value, positions in zip(episode.plan, values, episode.positions, strict=True):
        look(positions, f"{painted(call.ljust(name), _BOLD)}  {value}")
    if next_positions is None:
        lines += _verdict(episode, painted)
    else:
        look(next_positions, "")
    return "\n".join(lines)


def _verdict(episode: ArithmeticEpisode, painted: Any) -> Iterator[str]:
    answer = "no answer" if episode.answer is None else str(episode.answer)
    if episode.solved:
        said = painted("right", _GREEN, _BOLD)
    elif episode.answer == episode.target:
        said = painted("wrong", _RED, _BOLD) + ": something is left over"
    else:
        said = painted("wrong", _RED, _BOLD) + f": it is {episode.target}"
    yield f"{answer}, {said}"
    yield painted(f"calls: {len(episode.plan)}, the reference plan: {episode.reference_length}", _DIM)


def page(given: Sequence[str], drawn: Sequence[ArithmeticEpisode], env: CalculatorEnv) -> str:
    """One HTML page, complete in itself, in which a person steps through episodes.

    Its data are texts only: JavaScript would round large numbers.

    Args:
        given: The expressions as they were given.
        drawn: Their episodes.
        env: The environment that they ran in.
    """
    data = [_scene(text, episode, env) for text, episode in zip(given, drawn, strict=True)]
    text = json.dumps(data, ensure_ascii=True)
    for character in "<>&":  # what could end the element that the data stand in
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = files("toolagent_pl.envs.calculator").joinpath("player.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", text, 1)


def _scene(given: str, episode: ArithmeticEpisode, env: CalculatorEnv) -> dict[str, Any]:
    """All that the page shows of an episode."""
    states = moments(env, episode)
    said = [
        _sentence(before, after, call, episode, env.vocabulary)
        for before, after, call in zip(states, states[1:], episode.plan, strict=False)
    ]
    return {
        "given": " ".join(given.split()),
        "pieces": pieces(episode, env.vocabulary),
        "tape": [str(operand) for operand in episode.operands],
        "steps": [
            {
                "call": call,
                "value": _text(value),
                "said": sentence,
                "positions": dict(zip(MARKS, positions, strict=False)),
            }
            for call, value, sentence, positions in zip(
                episode.plan, episode.values, said, episode.positions, strict=True
            )
        ],
        "moments": [
            {
                "read": state.read,
                "accumulator": _text(state.accumulator),
                "memory": [str(value) for value in state.memory],
                "left": _text(state.left),
            }
            for state in states
        ],
        "answer": _text(episode.answer),
        "target": str(episode.target),
        "correct": episode.solved,
        "reference": episode.reference_length,
    }


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _sentence(before: Moment, after: Moment, call: str, episode: ArithmeticEpisode, vocabulary: Vocabulary) -> str:
    """What a call does, in words."""
    value, following = before.accumulator, [str(operand) for operand in episode.operands[before.read :]]
    if call == "ANS":
        return "Answer with nothing: the accumulator is empty." if value is None else f"Answer with {value}."
    if not after.applied:
        return "It does not apply here, and changes nothing."
    if call == "STO":
        what = f"the next operand, {following[0]}," if value is None else f"the accumulator, {value},"
        return f"Put {what} on top of memory."
    if call == "RCL":
        return f"Take {before.memory[-1]} from memory {'into the accumulator' if value is None else 'as left operand'}."
    symbol = next(tool.symbol for tool in vocabulary.tools if tool.name == call)
    if before.left is not None:
        who, left, right = "Left operand and accumulator", str(before.left), str(value)
    elif value is not None:
        who, left, right = "Accumulator and next operand", str(value), following[0]
    else:
        who, left, right = "The next two operands", *following[:2]
    right = f"({right})" if right.startswith("-") else right
    return f"{who}: {left} {symbol} {right} = {after.accumulator}."
