"""Right answers by shape of tree."""

import torch

from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.shapes import ShapeCount, by_shape, shapes


def test_a_shape_is_that_of_the_tree_and_not_of_what_is_written():
    texts = ["7", "1+2", "1+2*3", "1+(2-3)", "1*2+3", "1-2*3-(4+5)"]
    expected = [".", "(..)", "(.(..))", "(.(..))", "((..).)", "((.(..))(..))"]
    assert shapes(Problems.from_expressions(texts)) == expected


def test_the_worst_shape_comes_first_and_few_problems_say_little():
    left, right = Problems.from_expressions(["1+2+3"]), Problems.from_expressions(["1+(2+3)"])
    batches = [(left, torch.tensor([i > 0])) for i in range(3)] + [(right, torch.tensor([i > 8])) for i in range(12)]
    batches.append((Problems.from_expressions(["1+2"]), torch.tensor([False])))
    counts = [ShapeCount("(.(..))", 3, 12), ShapeCount("(..)", 0, 1), ShapeCount("((..).)", 2, 3)]
    assert by_shape(batches) == counts
