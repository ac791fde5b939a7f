"""What hypothesis draws: expressions, and programs for them."""

from hypothesis import strategies as st

from toolagent_pl.problems.expression import parse, shortest_program
from toolagent_pl.tokens import PADDING, TOOLS, Token

SYMBOL = {"*": Token.MUL, "+": Token.ADD, "-": Token.SUB}

numbers = st.integers(0, 12).map(str)


def _joined(inner):
    return st.builds(lambda left, symbol, right: f"{left}{symbol}{right}", inner, st.sampled_from("*+-"), inner)


# Brackets wherever they please; where there are none, precedence decides.
expressions = st.recursive(numbers, lambda inner: _joined(inner | inner.map("({})".format)), max_leaves=8)

any_action = st.integers(PADDING, max(Token))
random_programs = st.lists(any_action, max_size=24)


@st.composite
def expressions_with_programs(draw, random=random_programs):
    """An expression, and a program: any, or the shortest one with a few actions put in, left out or replaced.

    Random programs rarely get far; damaged ones come near to the answer, where the rules are decided.
    """
    text = draw(expressions)
    if draw(st.booleans()):
        return text, draw(random)
    program = [int(token) for token in shortest_program(parse(text).tree)]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(program)))
        action = draw(st.sampled_from([PADDING, *map(int, TOOLS)]))
        program[at : at + draw(st.integers(0, 1))] = draw(st.sampled_from([[], [action], [action, action]]))
    return text, program
