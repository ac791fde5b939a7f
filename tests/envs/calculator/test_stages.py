"""Stages: every problem as likely as the next, written as it is read, and a tenth of them held out."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import PLAIN, WITH_MAX
from toolagent_pl import Problems
from toolagent_pl.envs.calculator.expression import text_of
from toolagent_pl.envs.calculator.stages import DRAWS, MAX_OPERATORS, Stage, Stages
from toolagent_pl.envs.calculator.tools import TOOLS, Token, Tool, Vocabulary
from toolagent_pl.rl.env import select

ANSWER = {
    "T0": lambda a, b, c: a * b + c,
    "T1": lambda a, b, c, d: a * b + c - d,
    "T2": lambda a, b, c, d, e: a * b + c - d * e,
}
MIXED = ["T0", "E1", "T2", Stage("D", operators=3, digits=3), Stage("P", "a*(b-c)", digits=2), "E5"]


def draw(stages, size, *, first=0, stage=None, seed=0, held_out=False):
    """Problems ``first`` and following: of one stage, or of all in turn."""
    number = torch.arange(first, first + size)
    position = number % len(stages.names) if stage is None else torch.full_like(number, stage)
    return stages.draw(number, position, seed, held_out=held_out)


def texts(problems, vocabulary=PLAIN):
    return [text_of(prompt, vocabulary) for prompt in problems.prompt.tolist()]


def plain(problems):
    """Each problem without its padding, and without its number and stage."""
    rows = []
    for row in zip(*(column.tolist() for column in problems), problems.reference_length.tolist(), strict=True):
        _, _, prompt, width, operands, positions, length, target, tree, book = row
        assert prompt[width:] == [Token.EOS] * (len(prompt) - width)
        assert not any(operands[length:])
        assert positions[length:] == [-1] * (len(positions) - length)
        rows.append((prompt[:width], operands[:length], positions[:length], target, [r for r in tree if any(r)], book))
    return rows


def chi_square(counts, expected):
    """Per degree of freedom, about 1 where all are equally likely."""
    return sum((count - expected) ** 2 for count in counts) / expected / (len(counts) - 1)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(
    ("tools", "names"),
    [(TOOLS, MIXED), (WITH_MAX, MIXED), (WITH_MAX[2:], ["E1", MIXED[3], Stage("P", "a max (b-c)"), "E5"])],
)
def test_a_drawn_problem_is_what_is_read_from_its_prompt(tools, names, held_out):
    vocabulary, problems = Vocabulary(tools), draw(Stages(names, tools), 600, held_out=held_out)
    read = Problems.from_expressions(texts(problems, vocabulary), tools)
    assert plain(problems) == plain(read)
    assert problems.number.tolist() == list(range(600))
    assert problems.stage.tolist() == [i % len(names) for i in range(600)]
    assert all(column.dtype == torch.int64 for column in problems)


def test_targets_are_those_of_python_and_wrap_around_beyond_64_bits():
    problems = draw(Stages([*MIXED, "E12", "E60"]), 800)
    assert problems.target.tolist() == [(eval(text) + 2**63) % 2**64 - 2**63 for text in texts(problems)]


def test_expressions_are_uniform_over_trees_operators_and_digits():
    """The 5 trees of 3 operators, each with 27 choices of them."""
    size = 27_000
    problems = draw(Stages(["E3"]), size)
    trees, spans = (Counter(map(str, part.tolist())) for part in (problems.tree, problems.tree[..., 1:]))
    assert (len(trees), len(spans)) == (5 * 27, 5)
    assert 0.6 < chi_square(trees.values(), size / 135) < 1.5
    assert chi_square(spans.values(), size / 5) < 4
    for operand in problems.operands.unbind(1):
        assert 0.1 < chi_square(operand.bincount(minlength=10).tolist(), size / 10) < 3


@pytest.mark.parametrize(("operators", "trees"), [(1, 1), (2, 2), (4, 14)])
def test_every_tree_is_drawn_from_a_single_tool(operators, trees):
    stages = Stages([Stage("S", operators=operators, tools=("SUB",)), "E6"])  # narrower than its company
    problems = draw(stages, 14_000, stage=0)
    assert set(problems.tree[..., 0].unique().tolist()) - {0} == {Token.SUB}
    seen = problems.tree.flatten(1).unique(dim=0, return_counts=True)[1].tolist()
    assert len(seen) == trees
    if trees > 1:
        assert chi_square(seen, 14_000 / trees) < 3


def test_each_number_of_digits_is_equally_likely_and_then_each_number():
    size = 30_000
    problems = draw(Stages([Stage("D", operators=2, digits=3)]), size)
    for operand in problems.operands.unbind(1):
        digits = operand.ge(10).long() + operand.ge(100)
        assert chi_square(digits.bincount().tolist(), size / 3) < 5
        assert operand.max() > 990
        for least in (1, 10, 100):  # the first digit, from 1 to 9
            some = operand[operand.ge(least) & operand.lt(10 * least)]
            leading = (some // least).bincount(minlength=10)[1:].tolist()
            assert chi_square(leading, len(some) / 9) < 3.2


def test_operands_and_trees_are_unrelated():
    problems = draw(Stages(["E2"]), 20_000)
    pairs = problems.tree[:, 0, 1] * 30 + (problems.tree[:, 0, 0] - Token.MUL) * 10 + problems.operands[:, 0]
    assert 0.5 < chi_square(pairs.bincount(minlength=60).tolist(), 20_000 / 60) < 1.7
    neighbours = problems.operands[:-1, 0] * 10 + problems.operands[1:, 1]
    assert 0.5 < chi_square(neighbours.bincount(minlength=100).tolist(), 20_000 / 100) < 1.6


def test_a_tenth_of_all_problems_is_held_out():
    """Of E1's 300, 30 are; all of these are drawn with ``held_out``, and all of the others without."""
    stages = Stages(["E1"])
    trained = set(texts(draw(stages, 5000)))
    held_out = set(texts(draw(stages, 5000, seed=3, held_out=True)))
    assert not trained & held_out
    assert (len(trained), len(held_out)) == (270, 30)


def test_a_problem_is_held_out_whatever_stage_it_is_drawn_for():
    stages = Stages(["T0", "E2", Stage("W", operators=2, digits=2), "E5"])
    held_out = set(texts(draw(Stages(["T0"]), 3000, held_out=True)))
    assert len(held_out) == 100
    for stage, sizes in enumerate([(2000, 2000), (10_000, 10_000), (30_000, 30_000)]):
        for wanted, size in enumerate(sizes):
            problems = draw(stages, size, stage=stage, seed=7, held_out=bool(wanted))
            words = problems.tree[:, 0, 0].eq(Token.MUL) & problems.tree[:, 1, 0].eq(Token.ADD)
            same = words & problems.tree[:, 1, 2].eq(2) & problems.operands.lt(10).all(1)
            found = set(texts(select(problems, same)))
            assert len(found) > 70
            assert found <= held_out if wanted else not found & held_out


SPLITTABLE = Stages(MIXED)


@given(st.integers(0, 2**40), st.lists(st.integers(0, 30), max_size=4), st.integers(0, 2**31), st.booleans())
def test_a_problem_is_a_function_of_seed_and_number(seed, sizes, first, held_out):
    whole = draw(SPLITTABLE, sum(sizes) + 1, first=first, seed=seed, held_out=held_out)
    parts, start = [], first
    for size in [*sizes, 1]:
        parts += plain(draw(SPLITTABLE, size, first=start, seed=seed, held_out=held_out)) if size else []
        start += size
    assert parts == plain(whole)


def test_a_problem_is_the_same_in_any_company():
    together = draw(SPLITTABLE, 300)
    for position, name in enumerate(MIXED):
        mine = select(together, together.stage == position)
        alone = Stages([name]).draw(mine.number, torch.zeros_like(mine.number), 0, held_out=False)
        assert plain(alone) == plain(mine)


def test_seeds_and_numbers_give_other_problems():
    stages = Stages(["E4"])
    one = draw(stages, 2000)
    for other in (draw(stages, 2000, seed=1), draw(stages, 2000, first=2000)):
        assert len(set(texts(one)) & set(texts(other))) < 10
    assert len(set(texts(one))) > 1990


def test_no_two_problems_share_a_draw():
    assert DRAWS > 2 * MAX_OPERATORS + 1  # a word of the most operators, and one draw for what is held out


def test_every_problem_of_a_pattern_once():
    stages = Stages(["T1", "E4", "T0", "T2", Stage("W", "a*b", digits=2), Stage("L", "a+b+c+d+e+f+g")])
    assert [stages.size(i) for i in range(6)] == [10_000, None, 1_000, 100_000, None, None]
    for position, name, count in ((2, "T0", 3), (0, "T1", 4), (3, "T2", 5)):
        problems = stages.all_problems(position, torch.arange(10**count))
        tapes = problems.operands[:, :count]
        assert tapes.tolist() == [list(tape) for tape in itertools.product(range(10), repeat=count)]
        assert problems.target.tolist() == [ANSWER[name](*tape) for tape in tapes.tolist()]
        assert (problems.stage == position).all()
        some = select(problems, torch.arange(0, 10**count, 97))
        assert plain(some) == plain(Problems.from_expressions(texts(some)))


def test_longest_plans():
    stages = Stages(["T0", "T1", "T2", "E1", "E2", "E3", "E9"])
    assert [stages.longest_plan(i)[0] for i in range(7)] == [3, 4, 7, 2, 5, 8, 26]
    for i, size in ((4, 200), (5, 2000)):
        assert draw(stages, size, stage=i).reference_length.max() == stages.longest_plan(i)[0]
    assert set(stages.longest_plan(2)[1]) == {*PLAIN.actions}
    assert set(stages.longest_plan(3)[1]) == {Token.MUL, Token.ADD, Token.SUB, Token.ANS}


def test_a_pattern_of_ones_own():
    stages = Stages([Stage("P", "a*(b-c)"), Stage("Q", "(x-(y+z))-w*v")])
    problems = stages.all_problems(0, torch.arange(1000))
    assert problems.target.tolist() == [a * (b - c) for a, b, c in itertools.product(range(10), repeat=3)]
    assert texts(problems)[123] == "1*(2-3)"
    assert problems.reference_length.unique().tolist() == [5]
    drawn = draw(stages, 100, stage=1)
    assert drawn.target.tolist() == [(x - (y + z)) - w * v for x, y, z, w, v in drawn.operands.tolist()]
    assert texts(drawn)[0].count("(") == 1  # those that say nothing are left out


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ([], "expected one or more, each at most once"),
        (["T0", "T0"], "expected one or more, each at most once"),
        (["T9"], "got unknown 'T9', expected T0, T1, T2, E1 to E60"),
        (["t0"], "got unknown 't0', expected T0, T1, T2, E1 to E60"),
        (["E0"], "got unknown 'E0', expected T0, T1, T2, E1 to E60"),
        (["E100"], "got unknown 'E100', expected T0, T1, T2, E1 to E60"),
        (["E61"], "got E61 with 61 operators, expected 1 to 60"),
        ([Stage("X", "a*a")], "got X with 'a*a', expected operators, and letters that differ"),
        ([Stage("X", "a")], "got X with 'a', expected operators, and letters that differ"),
        ([Stage("X", "a/b")], "got X with expression 'a/b': got '/'"),
        ([Stage("X", "a*2")], "got X with expression 'a*2': got '2'"),
        ([Stage("X", "*".join("abcdefghijklmnopqrst"))], "which might not fit into 64 bits"),
        ([Stage("X", "a*b*c*d", digits=6)], "which might not fit into 64 bits"),
        ([Stage("X", operators=10, digits=6)], "with 10 operators and 6 digits, which might not fit into 64 bits"),
        ([Stage("X", operators=1, tools=("MAX",))], "got X with tool 'MAX', expected some of ['MUL', 'ADD', 'SUB']"),
    ],
)
def test_wrong_stages_are_refused(names, named):
    with pytest.raises(ValueError, match=r"^stages: got ") as error:
        Stages(names)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"pattern": "a*b", "operators": 1}, {"operators": 0}, {"operators": 61}, {"operators": 1, "digits": 7},
        {"pattern": "a*b", "tools": ("MUL",)}, {"pattern": "a*b", "digits": 0}, {"name": "a b", "operators": 1},
    ],
)  # fmt: skip
def test_a_stage_without_meaning_is_refused(options):
    with pytest.raises(ValueError, match=r"^stages: got .*expected"):
        Stage(**{"name": "X", **options})


def test_tools_of_a_stage_are_some_of_all_tools():
    power = Tool("AVG", "avg", 1, lambda a, b: torch.div(a + b, 2, rounding_mode="floor"))
    stages = Stages([Stage("A", operators=2, tools=("AVG", "SUB")), "E2"], (*TOOLS, power))
    some, all_of_them = (draw(stages, 2000, stage=i).tree[..., 0].unique().tolist() for i in range(2))
    assert some == [Token.SUB, 20]
    assert all_of_them == [Token.MUL, Token.ADD, Token.SUB, 20]
