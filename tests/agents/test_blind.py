"""The blind agent: what it is told, and what it may choose; and what every agent is judged by."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolagent_pl import CalculatorEnv
from toolagent_pl.agents import BlindAgent, Evaluation, Policy
from toolagent_pl.agents.agent import evaluate, masked, stacked
from toolagent_pl.envs import Observation
from toolagent_pl.problems import Stages
from toolagent_pl.randomness import Purpose
from toolagent_pl.tools import Token

STAGES = Stages(["T0", "T1", "T2"])
SPEC = CalculatorEnv(12, feedback="none").spec(3)


def agent(**options):
    torch.manual_seed(0)
    return BlindAgent(SPEC, **{"d": 16, **options})


def mixed(size):
    """Problems of all stages in turn."""
    number = torch.arange(size)
    return STAGES.draw(number, number % 3, 0, Purpose.PROBLEM, held_out=False)


def nothing(size):
    return Observation(torch.zeros(size, 0), torch.zeros(size, 0, dtype=torch.int64))


def heard(network, problems, *tokens):
    """Policy after these tokens, CTX before them."""
    cache = network.prefill(problems)
    for token in (Token.CTX, *tokens):
        previous = torch.full((problems.size,), int(token))
        policy, cache = network.decode(cache, previous, nothing(problems.size))
    return policy


def test_a_problem_is_read_the_same_in_any_company():
    network, problems = agent(), mixed(12)
    together = network.prefill(problems).hidden
    for row in range(12):
        alone = problems.select(torch.tensor([row]))
        assert_close(network.prefill(alone).hidden, together[row : row + 1])
        length = alone.length.item()  # without the room that a longer problem asks for, too
        bare = alone._replace(operands=alone.operands[:, :length], places=alone.places[:, :length])
        assert_close(network.prefill(bare).hidden, together[row : row + 1])


def test_it_is_told_the_mean_of_its_operands_and_ctx_and_the_stage():
    network, problems = agent(), mixed(9)
    hidden = network.prefill(problems).hidden
    for row, (tape, length, stage) in enumerate(
        zip(problems.operands, problems.length.tolist(), problems.stage, strict=True)
    ):
        told = torch.tensor([*tape[:length].tolist(), Token.CTX])
        wanted = torch.tanh(network.embedding(told).mean(0) + network.stage_embedding(stage))
        assert_close(hidden[row], wanted)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_context_of_the_batch_is_what_the_tutorial_computes(stage):
    network = agent(context="batch")
    problems = STAGES.all_problems(stage, torch.arange(0, 1000, 90))
    told = torch.cat([problems.operands, torch.full((problems.size, 1), int(Token.CTX))], 1)
    everyone = network.embedding(told).mean(1) + network.stage_embedding(problems.stage).unsqueeze(1)  # [B, B, d]
    assert_close(network.prefill(problems).hidden, torch.tanh(everyone.mean(1)))


def test_problems_that_differ_are_told_apart():
    network = agent()
    assert len(network.prefill(STAGES.all_problems(0, torch.tensor([0, 123, 124, 123]))).hidden.unique(dim=0)) == 3
    first, second = (STAGES.all_problems(stage, torch.tensor([0])) for stage in (0, 1))
    assert not torch.allclose(network.prefill(first).hidden, network.prefill(second).hidden)


@pytest.mark.parametrize("plan", [[], [Token.MUL], [Token.MUL, Token.STO, 7]])
def test_it_hears_its_own_tokens_as_grucell_does(plan):
    network, problems = agent().double(), mixed(6)
    hidden = network.prefill(problems).hidden
    for token in (Token.CTX, *plan):
        hidden = network.gru(network.embedding(torch.full((6,), int(token))), hidden)
    policy = heard(network, problems, *plan)
    assert_close(policy.logits, network.policy(hidden))
    assert_close(policy.value, network.value(hidden)[:, 0])


def test_the_tools_are_allowed_by_default():
    network = agent()
    assert network.actions.tolist() == [*map(int, SPEC.vocabulary.actions)]
    policy = heard(network, mixed(4))
    assert policy.logits.shape == (4, 6)
    assert policy.value.shape == (4,)


def test_only_allowed_actions_have_logits():
    network = agent(actions=["ANS", "MUL", "7"])
    assert network.actions.tolist() == [Token.ANS, Token.MUL, 7]
    assert heard(network, mixed(5), Token.MUL, 7).logits.shape == (5, 3)
    assert "actions" not in network.state_dict()


def test_flop_are_six_for_each_weight_that_is_multiplied():
    network = agent(d=32)
    recurrent, heads = 3 * 32 * 32, 7 * 32  # the input's product is looked up
    assert network.flop_per_token() == 6 * (recurrent + heads)


def test_log_probability_and_entropy():
    logits = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(0.9) + 7, math.log(0.1) + 7]])
    judged = evaluate(Policy(logits, torch.tensor([1.0, 2.0])), torch.tensor([0, 1]))
    assert judged.log_prob.exp().tolist() == pytest.approx([0.5, 0.1])
    assert judged.entropy.tolist() == pytest.approx([math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1)])
    assert judged.value.tolist() == [1, 2]
    assert evaluate(Policy(logits, None), torch.tensor([0, 1])).value is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_evaluations_are_float32_whatever_the_network_computes_in(dtype):
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    judged = evaluate(Policy(logits, logits[:, 0]), torch.zeros(50, dtype=torch.int64))
    assert {x.dtype for x in judged} == {torch.float32}
    assert_close(judged.log_prob, logits.float().log_softmax(1)[:, 0])


def test_what_stands_after_the_end_is_zero_whatever_it_was():
    one = Evaluation(torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 2.0]), None)
    steps = stacked([one, one])
    assert steps.value is None
    result = masked(steps, torch.tensor([[True, False], [False, True]]))
    assert result.log_prob[0].tolist() == [1, 0]
    assert result.log_prob[1, 0] == 0
    assert result.entropy.tolist() == [[math.inf, 0], [0, 2]]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"d": 0}, "d"),
        ({"d": 8193}, "d"),
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
