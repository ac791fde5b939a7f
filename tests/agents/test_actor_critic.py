"""The actor-critic: what it reads, and what it may choose."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolagent_pl.agents import ActorCritic
from toolagent_pl.agents.agent import chosen_and_entropy
from toolagent_pl.problems import Ladder
from toolagent_pl.tokens import TOOLS, Token

LADDER = Ladder(["T0", "T1", "T2"])


def agent(**options):
    torch.manual_seed(0)
    return ActorCritic(**{"d": 16, **options})


def mixed(size):
    """Problems of all stages in turn."""
    number = torch.arange(size)
    return LADDER.problems(number, number % 3, number * 7 % 1000)


def test_a_problem_is_read_the_same_in_any_company():
    network, problems = agent(), mixed(12)
    together = network.encode(problems)
    for row in range(12):
        alone = problems.select(torch.tensor([row]))
        assert_close(network.encode(alone), together[row : row + 1])
        # Without the padding that a longer problem in the ladder asks for, too.
        bare = alone._replace(observation=alone.observation[:, : alone.length.item() + 1])
        assert_close(network.encode(bare), together[row : row + 1])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_context_of_the_batch_is_what_the_tutorial_computes(stage):
    network = agent(context="batch")
    index = torch.arange(0, 1000, 90)
    alone = Ladder([LADDER.names[stage]]).problems(index, torch.zeros_like(index), index)  # no padding in it
    tokens, stages = network.embedding(alone.observation), torch.full_like(index, stage)
    everyone = tokens.mean(1) + network.stage_embedding(stages).unsqueeze(1)  # [B, B, d]
    got = network.encode(LADDER.problems(index, stages, index))
    assert_close(got, torch.tanh(everyone.mean(1)))


def test_problems_that_differ_are_told_apart():
    hidden = agent().encode(LADDER.problems(*torch.tensor([[0, 0, 0], [0, 0, 1], [123, 124, 123]])))
    assert len(hidden.unique(dim=0)) == 3


def test_probabilities_are_those_of_the_allowed_actions():
    hidden = torch.randn(5, 16)
    everything = agent(actions=[str(token) for token in Token if token <= Token.EOS])
    network = agent(actions=["ANS", "MUL", "7"])
    assert network.actions.tolist() == [Token.ANS, Token.MUL, 7]
    chances = everything.log_policy(hidden).exp()[:, network.actions]
    assert_close(network.log_policy(hidden).exp(), chances / chances.sum(1, keepdim=True))


def test_the_tools_are_allowed_by_default():
    network = agent()
    assert network.actions.tolist() == list(TOOLS)
    assert network.log_policy(torch.randn(4, 3, 16)).shape == (4, 3, 6)
    assert network.values(torch.randn(4, 3, 16)).shape == (4, 3)


def test_entropy_and_chosen_probabilities():
    log_policy = torch.tensor([[[math.log(0.5), math.log(0.5)], [math.log(0.9), math.log(0.1)]]])
    chosen, entropy = chosen_and_entropy(log_policy, torch.tensor([[0, 1]]))
    assert chosen[0].exp().tolist() == pytest.approx([0.5, 0.1])
    assert entropy[0].tolist() == pytest.approx([math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)])


def test_choices_are_judged_by_both_heads():
    network, hidden, choices = agent(), torch.randn(9, 16), torch.arange(9) % 6
    judgement = network.judge(hidden, choices)
    assert_close(judgement.log_prob, network.log_policy(hidden)[torch.arange(9), choices])
    assert_close(judgement.entropy, torch.distributions.Categorical(logits=network.log_policy(hidden)).entropy())
    assert_close(judgement.value, network.value(hidden)[:, 0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"d": 0}, "d"),
        ({"stages": 0}, "stages"),
        ({"actions": []}, "actions"),
        ({"actions": ["MUL", "DIV"]}, "actions"),
        ({"actions": ["MUL", "MUL"]}, "actions"),
        ({"actions": ["("]}, "actions"),
        ({"context": "row"}, "context"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=rf"^model\.agent\.{named}: got .*expected"):
        agent(**options)
