"""The blind agent: what it is told, and what it may choose; and what every agent is judged by."""

import pytest
import torch
from torch.testing import assert_close

from toolagent_pl import CalculatorEnv
from toolagent_pl.envs.calculator.registers import Observation
from toolagent_pl.envs.calculator.stages import Stage, Stages
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.envs.tutorial.blind import BlindAgent
from toolagent_pl.rl.env import select

STAGES = Stages(["T0", "T1", "T2"])
DIGITS = CalculatorEnv(["T0", "T1", "T2"], actions=["7", "MUL", "ADD", "STO", "ANS"], max_steps=12, feedback="none")


def agent(**options):
    torch.manual_seed(0)
    return BlindAgent(DIGITS, **{"d": 16, **options})


def mixed(size):
    """Problems of all stages in turn."""
    number = torch.arange(size)
    return STAGES.draw(number, number % 3, 0, held_out=False)


def nothing(size):
    return Observation(torch.zeros(size, 0), torch.zeros(size, 0, dtype=torch.int64))


def heard(network, problems, *actions):
    """Policy after these actions."""
    cache = network.prefill(problems)
    for action in (-1, *actions):
        policy, cache = network.decode(cache, torch.full((problems.size,), action), nothing(problems.size))
    return policy


def test_a_problem_is_read_the_same_in_any_company():
    network, problems = agent(), mixed(12)
    together = network.prefill(problems)
    for row in range(12):
        alone = select(problems, torch.tensor([row]))
        assert_close(network.prefill(alone), together[row : row + 1])
        length = alone.length.item()  # without the room that a longer problem asks for, too
        bare = alone._replace(operands=alone.operands[:, :length], positions=alone.positions[:, :length])
        assert_close(network.prefill(bare), together[row : row + 1])


def test_it_is_told_the_mean_of_its_operands_and_ctx_and_the_stage():
    network, problems = agent(), mixed(9)
    hidden, columns = network.prefill(problems), (problems.operands, problems.length.tolist(), problems.stage)
    for got, tape, length, stage in zip(hidden, *columns, strict=True):
        told = torch.tensor([*tape[:length].tolist(), Token.CTX])
        assert_close(got, torch.tanh(network.embedding(told).mean(0) + network.stage_embedding(stage)))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_context_of_the_batch_is_what_the_tutorial_computes(stage):
    network = agent(context="batch")
    problems = STAGES.all_problems(stage, torch.arange(0, 1000, 90))
    told = torch.cat([problems.operands, torch.full((problems.size, 1), int(Token.CTX))], 1)
    everyone = network.embedding(told).mean(1) + network.stage_embedding(problems.stage).unsqueeze(1)  # [B, B, d]
    assert_close(network.prefill(problems), torch.tanh(everyone.mean(1)))


@pytest.mark.parametrize("plan", [[], ["MUL"], ["MUL", "STO", "7"]])
def test_it_hears_its_own_tokens_as_a_gru_does(plan):
    network, problems = agent().double(), mixed(6)
    hidden = network.prefill(problems)[None]
    for token in (Token.CTX, *DIGITS.vocabulary.tokens(plan or ["ANS"])[: len(plan)]):
        _, hidden = network.gru(network.embedding(torch.full((1, 6), int(token))), hidden)
    policy = heard(network, problems, *map(DIGITS.actions.index, plan))
    assert_close(policy.logits, network.policy(hidden[0]))
    assert_close(policy.value, network.value(hidden[0])[:, 0])
    assert policy.logits.shape == (6, 5)


def test_flop_are_six_for_each_weight_that_is_multiplied():
    network = agent(d=32)
    recurrent, heads = 3 * 32 * 32, 6 * 32  # the input's product is looked up
    assert network.flop_per_token() == 6 * (recurrent + heads)


def test_wrong_options_are_named():
    for options in ({"d": 0}, {"d": 8193}, {"context": "row"}):
        with pytest.raises(ValueError, match=rf"^{next(iter(options))}: got .*expected"):
            agent(**options)
    with pytest.raises(ValueError, match=r"^stages: got 2 digits, expected 1"):
        BlindAgent(CalculatorEnv([Stage("D", operators=2, digits=2)]))
