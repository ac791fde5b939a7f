"""What hypothesis draws: expressions, and plans for them; and a tool of one's own."""

import torch
from hypothesis import strategies as st

from toolagent_pl.envs.calculator.expression import parse, reference_plan
from toolagent_pl.envs.calculator.tools import TOOLS, Token, Tool, Vocabulary
from toolagent_pl.rl.env import PADDING

PLAIN = Vocabulary()
MAX = Tool("MAX", "max", 3, torch.maximum)
WITH_MAX = (*TOOLS, MAX)
MAX_TOKEN = 20

numbers = st.integers(0, 12).map(str)


def _joined(inner):
    return st.builds(lambda left, symbol, right: f"{left}{symbol}{right}", inner, st.sampled_from("*+-"), inner)


# Brackets wherever they please; where there are none, precedence decides.
expressions = st.recursive(numbers, lambda inner: _joined(inner | inner.map("({})".format)), max_leaves=8)

# Maxima too, as Python writes them.
expressions_with_max = st.recursive(
    numbers,
    lambda inner: _joined(inner | inner.map("({})".format)) | st.builds("max({},{})".format, inner, inner),
    max_leaves=8,
)

any_action = st.integers(PADDING, max(Token))
random_plans = st.lists(any_action, max_size=24)


@st.composite
def expressions_with_plans(draw, random=random_plans, expressions=expressions, vocabulary=PLAIN):
    """An expression, and a plan: any, or the reference plan's with a few actions put in, left out or replaced.

    Random plans rarely get far; damaged ones come near to the answer, where the rules are decided.
    """
    text = draw(expressions)
    if draw(st.booleans()):
        return text, draw(random)
    plan = [int(token) for token in reference_plan(parse(text, vocabulary).tree)]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(plan)))
        action = draw(st.sampled_from([PADDING, *map(int, vocabulary.actions)]))
        plan[at : at + draw(st.integers(0, 1))] = draw(st.sampled_from([[], [action], [action, action]]))
    return text, plan
