"""Agents that read: what they decide depends on the problem and on what the tools report, and on nothing else."""

import pytest
import torch

from toolagent_pl.agents import Agent, Reader, TransformerReader
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning.rollout import collect, collect_and_evaluate
from toolagent_pl.problems import Problems, Stages
from toolagent_pl.randomness import Purpose
from toolagent_pl.tools import TOOLS, Token, Tool

KINDS = {
    "reader": lambda spec: Reader(spec),
    "recurrent": lambda spec: Reader(spec, recurrent=True),
    "transformer": lambda spec: TransformerReader(spec, d=16, heads=2, layers=1),
}


def made(kind: str, env: CalculatorEnv) -> Agent:
    torch.manual_seed(0)
    agent = KINDS[kind](env.spec(3))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def drawn(count: int = 60) -> Problems:
    number = torch.arange(count)
    return Stages(["T0", "E2", "E4"]).draw(number, number % 3, 0, Purpose.PROBLEM, held_out=False)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_a_rollout_gives_what_was_recorded_while_acting(kind):
    env = CalculatorEnv(max_steps="auto")
    agent = made(kind, env)
    rollout, recorded = collect_and_evaluate(agent, env, drawn(), seed=1)
    gradients = []
    for evaluation in (recorded, agent(rollout)):
        agent.zero_grad()
        total = evaluation.log_prob.sum() + 0.3 * evaluation.entropy.sum() + 0.5 * evaluation.value.square().sum()
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None]))
        torch.testing.assert_close(evaluation.log_prob, recorded.log_prob, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(evaluation.value, recorded.value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert float(gradients[0].abs().max()) > 0.1


@pytest.mark.parametrize("feedback", ["none", "spans"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_company_in_a_batch_does_not_matter(kind, feedback):
    env = CalculatorEnv(max_steps="auto", feedback=feedback)
    agent = made(kind, env)
    problems = drawn()
    together = collect(agent, env, problems, seed=1)
    shortest = problems.select(slice(0, 60, 3))  # T0: their prompts and tapes are padded in the whole batch
    length, numbers = int(shortest.prompt_length.max()), int(shortest.length.max())
    cut = shortest._replace(
        prompt=shortest.prompt[:, :length],
        operands=shortest.operands[:, :numbers],
        places=shortest.places[:, :numbers],
    )
    alone = collect(agent, env, cut, seed=1)
    steps = len(alone.mask)
    assert torch.equal(alone.mask, together.mask[:steps, ::3])
    assert torch.equal(alone.tokens[alone.mask], together.tokens[:steps, ::3][alone.mask])
    torch.testing.assert_close(alone.value[alone.mask], together.value[:steps, ::3][alone.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_matters(kind):
    env = CalculatorEnv(max_steps="auto")
    agent = made(kind, env)
    problems = Problems.from_expressions(["1-(2-3)", "1-2-3"])
    observation = env.observe(env.reset(problems))
    previous = torch.full((2,), int(Token.CTX))
    policy, _ = agent.decode(agent.prefill(problems), previous, observation)
    moved = observation._replace(places=observation.places.masked_fill(observation.places == 0, 2))
    other, _ = agent.decode(agent.prefill(problems), previous, moved)
    assert not torch.allclose(policy.logits[0], policy.logits[1], atol=1e-3)  # the expressions differ
    assert not torch.allclose(policy.logits, other.logits, atol=1e-3)  # and so do the places


@pytest.mark.parametrize("feedback", ["none", "flags", "position", "spans"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_feedback_and_tools_of_ones_own_can_be_read(kind, feedback):
    tools = (*TOOLS, Tool("MAX", "max", 3, torch.maximum))
    env = CalculatorEnv(max_steps="auto", feedback=feedback, tools=tools)
    agent = KINDS[kind](env.spec(1))
    problems = Problems.from_expressions(["max(3*4,5)-2", "12+3", "7"], tools)
    rollout, evaluation = collect_and_evaluate(agent, env, problems, seed=0)
    (evaluation.log_prob.sum() + evaluation.value.sum()).backward()
    assert len(agent.actions) == 7
    assert bool(evaluation.log_prob[rollout.mask].isfinite().all())


def test_a_place_that_is_not_there_is_compared_with_nothing():
    """At first there is only the next operand: no accumulator, no memory, and so no pair."""
    env = CalculatorEnv(max_steps="auto")
    agent, problems = made("reader", env), drawn()
    observation = env.observe(env.reset(problems))
    assert (observation.places >= 0).sum(1).eq(1).all()
    previous = torch.full_like(problems.stage, Token.CTX)
    policies = []
    for _ in range(2):
        policies.append(agent.decode(agent.prefill(problems), previous, observation)[0])
        with torch.no_grad():
            agent.pair_bias.add_(1.0)
    assert policies[0].logits.equal(policies[1].logits)
    assert policies[0].value.equal(policies[1].value)


def test_digits_say_nothing_about_a_plan():
    env = CalculatorEnv(max_steps="auto")
    agent = made("reader", env)
    rollout = collect(agent, env, Problems.from_expressions(["1-(2-3)*4", "9-(0-7)*5"]))
    assert torch.equal(rollout.tokens[:, 0], rollout.tokens[:, 1])


def test_what_tokens_add_to_all_scores_shrinks_to_nothing_unless_it_is_learned():
    agent = Reader(CalculatorEnv().spec(1), shrink=1.0)
    before = agent.depth.detach().clone()
    agent.after_update(0.1)
    kept = before.abs() > 0.1
    torch.testing.assert_close(agent.depth[kept], before[kept] - 0.1 * before[kept].sign())
    assert float(agent.depth[~kept].abs().max()) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda spec: Reader(spec, hidden=0), "model.agent.hidden: got 0"),
        (lambda spec: Reader(spec, shrink=-1), "model.agent.shrink: got -1"),
        (lambda spec: Reader(spec, actions=["MUL", "FOO"]), "model.agent.actions: got unknown 'FOO'"),
        (lambda spec: TransformerReader(spec, d=7), "model.agent.d: got 7"),
        (lambda spec: TransformerReader(spec, heads=3), "model.agent.heads: got 3"),
    ],
)
def test_sizes_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(CalculatorEnv().spec(1))
