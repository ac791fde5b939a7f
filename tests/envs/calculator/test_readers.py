"""Agents that read: what they decide depends on the problem and on what the tools report, and on nothing else."""

import pytest
import torch

from tests.strategies import WITH_MAX
from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.reader import STEEP, Reader
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.envs.calculator.transformer import TransformerReader
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.env import select
from toolagent_pl.rl.rollout import collect

KINDS = {
    "reader": Reader,
    "recurrent": lambda env: Reader(env, recurrent=True),
    "transformer": lambda env: TransformerReader(env, d=16, heads=2, layers=1),
}
ENV = CalculatorEnv(["T0", "E2", "E4"])


class Masked(CalculatorEnv):
    """Only what would change something is allowed."""

    def action_mask(self, state):
        return self.applies(state)


def made(kind, env):
    torch.manual_seed(0)
    agent = KINDS[kind](env)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def drawn(count=60):
    number = torch.arange(count)
    return ENV.problems(number, number % 3, 0, held_out=False)


@pytest.mark.parametrize("env", [ENV, Masked(ENV.stages)], ids=["", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_a_rollout_gives_what_decoding_it_gives(kind, env):
    """Numbers and gradients."""
    agent = made(kind, env)
    rollout = collect(agent, env, drawn(), seed=1)
    stepwise = Agent.forward(agent, rollout)
    gradients = []
    for evaluation in (stepwise, agent(rollout)):
        agent.zero_grad()
        total = evaluation.log_prob.sum() + 0.3 * evaluation.entropy.sum() + 0.5 * evaluation.value.square().sum()
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None]))
        for one, other in zip(evaluation, stepwise, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for name in ("log_prob", "value"):
            one, other = getattr(evaluation, name), getattr(rollout, name)
            torch.testing.assert_close(one[rollout.mask], other[rollout.mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert float(gradients[0].abs().max()) > 0.1
    assert (env is ENV) == bool(rollout.final.noops.sum())


@pytest.mark.parametrize("feedback", ["none", "spans"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_company_in_a_batch_does_not_matter(kind, feedback):
    env = CalculatorEnv(ENV.stages, feedback=feedback)
    agent, problems = made(kind, env), drawn()
    together = collect(agent, env, problems, seed=1)
    shortest = select(problems, slice(0, 60, 3))  # T0: their prompts and tapes are padded in the whole batch
    length, numbers = int(shortest.prompt_length.max()), int(shortest.length.max())
    tape = {"operands": shortest.operands[:, :numbers], "positions": shortest.positions[:, :numbers]}
    cut = shortest._replace(prompt=shortest.prompt[:, :length], **tape)
    alone = collect(agent, env, cut, seed=1)
    steps = len(alone.mask)
    assert torch.equal(alone.mask, together.mask[:steps, ::3])
    assert torch.equal(alone.actions[alone.mask], together.actions[:steps, ::3][alone.mask])
    torch.testing.assert_close(alone.value[alone.mask], together.value[:steps, ::3][alone.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_matters(kind):
    agent, problems = made(kind, ENV), Problems.from_expressions(["1-(2-3)", "1-2-3"])
    observation = ENV.observe(ENV.reset(problems))
    previous = torch.tensor([-1, -1])
    policy, _ = agent.decode(agent.prefill(problems), previous, observation)
    moved = observation._replace(positions=observation.positions.masked_fill(observation.positions == 0, 2))
    other, _ = agent.decode(agent.prefill(problems), previous, moved)
    assert not torch.allclose(policy.logits[0], policy.logits[1], atol=1e-3)  # the expressions differ
    assert not torch.allclose(policy.logits, other.logits, atol=1e-3)  # and so do the positions


@pytest.mark.parametrize("feedback", ["none", "flags", "position", "spans"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_feedback_and_tools_of_ones_own_can_be_read(kind, feedback):
    env = CalculatorEnv(["E2"], feedback=feedback, tools=WITH_MAX)
    agent = KINDS[kind](env)
    problems = Problems.from_expressions(["max(3*4,5)-2", "12+3", "7"], WITH_MAX)
    rollout = collect(agent, env, problems, seed=0)
    evaluation = agent(rollout)
    (evaluation.log_prob.sum() + evaluation.value.sum()).backward()
    assert agent.actions == 7
    assert bool(evaluation.log_prob[rollout.mask].isfinite().all())


def test_a_position_that_is_not_there_is_compared_with_nothing():
    """At first there is only the next operand: no accumulator, no memory, and so no pair."""
    agent, problems = made("reader", ENV), drawn()
    observation = ENV.observe(ENV.reset(problems))
    assert (observation.positions >= 0).sum(1).eq(1).all()
    previous = torch.full_like(problems.stage, -1)
    policies = []
    for _ in range(2):
        policies.append(agent.decode(agent.prefill(problems), previous, observation)[0])
        with torch.no_grad():
            agent.pair_bias.add_(1.0)
    assert policies[0].logits.equal(policies[1].logits)
    assert policies[0].value.equal(policies[1].value)


def test_digits_say_nothing_about_a_plan():
    agent = made("reader", ENV)
    rollout = collect(agent, ENV, Problems.from_expressions(["1-(2-3)*4", "9-(0-7)*5"]))
    assert torch.equal(rollout.actions[:, 0], rollout.actions[:, 1])


def test_what_brackets_add_to_scores_may_cancel_out_and_what_operators_add_may_not():
    agent = Reader(ENV, balance=0.5)
    problems = Problems.from_expressions(["(1-2)*(3-(4+5))", "7-3"])
    with torch.no_grad():
        agent.depth.zero_()
        agent.depth[ENV.vocabulary.names.index("(")] = 1.0
        agent.depth[ENV.vocabulary.names.index(")")] = -1.0
        assert agent.auxiliary_loss(problems) == 0
        agent.depth[Token.SUB] = 0.25  # twice in the first problem, once in the second
    loss = agent.auxiliary_loss(problems)
    assert loss == 0.5 * (2**2 + 1) * (STEEP * 0.25) ** 2 * agent.scores
    loss.backward()
    assert agent.depth.grad[Token.SUB].all()


def test_symbols_say_what_there_is_in_a_gap_however_often():
    agent = made("reader", ENV)
    caches = [agent.prefill(Problems.from_expressions([text])) for text in ("((1-2))*3", "(1-2)*3")]
    bounded = [cache.symbols[0, 1:, :-1] for cache in caches]
    own = agent.symbol.out_features
    assert bounded[0][:, :own].equal(bounded[1][:, :own])
    assert not bounded[0].equal(bounded[1])  # the scores change more


def test_sizes_out_of_range_are_refused():
    wrong = [(Reader, {"hidden": 0}), (Reader, {"balance": -1}), (TransformerReader, {"d": 7})]
    for kind, option in [*wrong, (TransformerReader, {"heads": 3})]:
        with pytest.raises(ValueError, match=f"^{next(iter(option))}: got {next(iter(option.values()))}"):
            kind(ENV, **option)
