"""Stages and ladders: every problem, once, with its right answer."""

import itertools

import pytest
import torch

from toolagent_pl.problems import STAGES, Ladder, Stage
from toolagent_pl.tokens import Token

ANSWER = {
    "T0": lambda a, b, c: a * b + c,
    "T1": lambda a, b, c, d: a * b + c - d,
    "T2": lambda a, b, c, d, e: a * b + c - d * e,
}
LADDERS = [["T0"], ["T2"], ["T0", "T1", "T2"], ["T2", "T0"]]


def whole_stage(ladder, position):
    size = ladder.stages[position].size
    stage = torch.full((size,), position)
    return ladder.problems(torch.arange(size), stage, torch.arange(size))


@pytest.mark.parametrize("names", LADDERS)
def test_every_problem_of_every_stage_once(names):
    ladder = Ladder(names)
    for position, name in enumerate(names):
        problems = whole_stage(ladder, position)
        operands = ladder.stages[position].operands
        wanted = list(itertools.product(range(10), repeat=operands))
        tapes = problems.operands[:, :operands]
        assert sorted(map(tuple, tapes.tolist())) == wanted
        assert problems.target.tolist() == [ANSWER[name](*tape) for tape in tapes.tolist()]
        assert (problems.length == operands).all()
        assert not problems.operands[:, operands:].any()
        # Read: the digits, CTX, and EOS up to the width of the ladder.
        assert torch.equal(problems.observation[:, :operands], tapes)
        assert (problems.observation[:, operands] == Token.CTX).all()
        assert (problems.observation[:, operands + 1 :] == Token.EOS).all()


@pytest.mark.parametrize("names", [["T0", "T1", "T2"], ["T2", "T0", "T1"]])
def test_a_problem_is_the_same_in_any_company(names):
    ladder = Ladder(names)
    number = torch.arange(60)
    stage = number % 3
    index = number * 37 % ladder.sizes(stage)
    mixed = ladder.problems(number, stage, index)
    for position in range(3):
        rows = stage == position
        alone = ladder.problems(number[rows], stage[rows], index[rows])
        for in_company, by_itself in zip(mixed.select(rows), alone, strict=True):
            assert torch.equal(in_company, by_itself)


def test_sizes_and_names():
    ladder = Ladder(["T0", "T1", "T2"])
    assert ladder.names == ("T0", "T1", "T2")
    assert [stage.size for stage in ladder.stages] == [1_000, 10_000, 100_000]
    assert ladder.sizes(torch.tensor([2, 0, 0, 1])).tolist() == [100_000, 1_000, 1_000, 10_000]


def test_a_problem_is_written_with_its_digits():
    assert STAGES["T2"].written([1, 2, 3, 4, 5]) == "(1*2+3)-(4*5)"


@pytest.mark.parametrize("names", [[], ["T9"], ["T0", "T0"], ["t0"]])
def test_wrong_ladders_are_refused(names):
    with pytest.raises(ValueError, match=r"^data\.stages: got .*expected .*T0, T1, T2"):
        Ladder(names)


@pytest.mark.parametrize("template", ["*".join("abcdefghijklmnopqrs"), "+".join("abcdefghijklmnopqrst")])
def test_stages_beyond_64_bits_are_refused(template):
    with pytest.raises(ValueError, match=r"^stage X: .*might not fit into 64 bits"):
        Stage("X", template)
