"""Rollouts: who acts, how chance plays in, and what is replayed to learn from."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.testing import assert_close

from toolagent_pl import CalculatorMachine, TutorialMachine
from toolagent_pl.agents import ActorCritic, Agent
from toolagent_pl.learning.algorithms import TutorialA2C
from toolagent_pl.learning.losses import tutorial_loss
from toolagent_pl.learning.rollout import rollout, visible_actions
from toolagent_pl.machines.machine import execute
from toolagent_pl.machines.rewards import TutorialReward
from toolagent_pl.machines.tutorial import tutorial_reward
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Ladder
from toolagent_pl.tokens import PADDING, TOOLS, Token

LADDER = Ladder(["T0", "T1", "T2"])
HORIZON = 7
MACHINE = CalculatorMachine(max_steps=HORIZON)


class PlainActorCritic(ActorCritic):
    """The same network, stepped with nothing but PyTorch's own GRU."""

    begin = Agent.begin

    def step(self, hidden, heard):
        return self.gru(self.embedding(heard), hidden)


def agent(kind=ActorCritic, **options):
    torch.manual_seed(1)
    return kind(**{"d": 16, **options})


def problems(size):
    number = torch.arange(size)
    return LADDER.problems(number, number % 3, number * 61 % 1000)


def policies(network, episodes):
    """Log-probabilities of the actions at all steps, ``[T, B, A]``, by stepping the agent along."""
    recurrence = network.begin(network.encode(episodes.problems), len(episodes.tokens))
    heard = [torch.full_like(episodes.tokens[0], Token.CTX), *episodes.tokens[:-1].clamp(min=0)]
    return network.log_policy(torch.stack([recurrence.step(token).clone() for token in heard])).detach()


def test_greedy_takes_the_likeliest_action():
    network = agent()
    episodes = rollout(network, MACHINE, problems(60), HORIZON)
    likeliest = policies(network, episodes).argmax(2)
    assert torch.equal(episodes.choices[episodes.mask], likeliest[episodes.mask])
    assert torch.equal(episodes.tokens[episodes.mask], network.actions[episodes.choices][episodes.mask])


def test_sampled_actions_follow_the_policy():
    """Whatever the step and whatever was said before, each action comes as often as its probability says."""
    network = agent(actions=["MUL", "ADD", "STO", "ANS"])
    with torch.no_grad():
        network.policy.weight *= 6  # far from even
    episodes = rollout(network, MACHINE, problems(6000), HORIZON, seed=9, past_end=True)
    chance = policies(network, episodes).exp()  # [T, B, A]
    surprise = torch.nn.functional.one_hot(episodes.choices, 4) - chance
    before = torch.cat([torch.zeros_like(episodes.choices[:1]), episodes.choices[:-1]])
    compared = 0
    for t in range(HORIZON):
        for previous in range(4):
            rows = before[t] == previous
            variance = (chance[t, rows] * (1 - chance[t, rows])).sum(0)
            score = surprise[t, rows].sum(0) / variance.clamp(min=1).sqrt()
            compared += int((variance > 20).sum())
            assert score.abs().max() < 4.5
    assert compared > 50


def test_actions_do_not_depend_on_how_a_batch_is_split():
    network, batch = agent(), problems(500)
    whole = rollout(network, MACHINE, batch, HORIZON, seed=3)
    parts = [rollout(network, MACHINE, batch.select(part), HORIZON, seed=3) for part in (slice(123), slice(123, None))]
    assert torch.equal(torch.cat([part.tokens for part in parts], 1), whole.tokens)
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        rollout(network, MACHINE, batch.select(shuffled), HORIZON, seed=3).tokens, whole.tokens[:, shuffled]
    )


def test_noise_is_that_of_the_seed():
    def tokens(seed):
        return rollout(agent(), MACHINE, problems(50), HORIZON, seed=seed).tokens

    assert torch.equal(tokens(3), tokens(3))
    assert not torch.equal(tokens(3), tokens(4))


def test_noise_is_not_taken_from_pytorchs_generator():
    network = agent()
    state = torch.get_rng_state()
    rollout(network, MACHINE, problems(50), HORIZON, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_draws_of_noise_are_the_same():
    network = agent()
    torch.nn.init.zeros_(network.policy.weight)
    torch.nn.init.zeros_(network.policy.bias)  # an even policy: choices show the noise
    choices = rollout(network, MACHINE, problems(3000), HORIZON, seed=3, past_end=True).choices
    for later in range(1, HORIZON):
        assert (choices[later:] == choices[:-later]).float().mean().item() == pytest.approx(1 / 6, abs=0.03)
        neighbours = choices[later:, :-1] == choices[:-later, 1:]
        assert neighbours.float().mean().item() == pytest.approx(1 / 6, abs=0.03)


def test_equal_problems_are_tried_in_different_ways():
    same = problems(1).select(torch.zeros(100, dtype=torch.int64))._replace(number=torch.arange(100))
    assert len(rollout(agent(), MACHINE, same, HORIZON, seed=3).tokens.unique(dim=1).T) > 50


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("actions", [["MUL", "ADD", "ANS"], ["9"], [str(tool) for tool in TOOLS]])
def test_only_allowed_tokens_are_emitted(actions, seed):
    network = agent(actions=actions)
    tokens = rollout(network, MACHINE, problems(200), HORIZON, seed, past_end=True).tokens
    assert {str(Token(token)) for token in tokens.unique().tolist()} <= set(actions)


@pytest.mark.parametrize("machine", [MACHINE, CalculatorMachine(max_steps=3), TutorialMachine(max_steps=HORIZON)])
def test_the_mask_covers_the_episode_and_no_more(machine):
    episodes = rollout(agent(), machine, problems(300), HORIZON, seed=2)
    horizon = min(HORIZON, machine.max_steps)  # when all have ended, the rollout has
    assert episodes.mask.shape == (horizon, 300)
    assert torch.equal(episodes.mask.sum(0), episodes.final.steps)
    for b, length in enumerate(episodes.final.steps.tolist()):
        assert episodes.mask[:, b].tolist() == [True] * length + [False] * (horizon - length)
        answers = (episodes.tokens[:length, b] == Token.ANS).tolist()
        assert not any(answers[:-1])
        assert answers[-1] or length == machine.max_steps
    assert len(episodes.final.steps.unique()) > 1


def test_visible_actions_run_to_the_same_end():
    episodes = rollout(agent(), MACHINE, problems(300), HORIZON, seed=2)
    actions = visible_actions(episodes)
    assert torch.equal(actions != PADDING, episodes.mask.T)
    again = execute(MACHINE, episodes.problems, actions)[-1]
    for one, other in zip(MACHINE.outcome(again), MACHINE.outcome(episodes.final), strict=True):
        assert torch.equal(one, other)


def learned(network, past_end, choices=None):
    """Episodes, what is thought of them, and the gradient of something that depends on all of that."""
    episodes = rollout(network, MACHINE, problems(40), HORIZON, seed=8, past_end=past_end, choices=choices)
    (something(episodes.judgement) * (episodes.mask | past_end)).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return episodes, torch.stack(episodes.judgement).detach(), gradients


def something(judgement):
    return judgement.log_prob + judgement.value.square() + 3 * judgement.entropy


@pytest.mark.parametrize("past_end", [False, True])
def test_what_is_learned_from_is_what_a_plain_gru_computes(past_end):
    """Choices, what is thought of them, and the gradients of all weights, in float64."""
    fast, judgement, gradients = learned(agent().double(), past_end)
    plain, plain_judgement, plain_gradients = learned(agent(PlainActorCritic).double(), past_end)
    assert torch.equal(fast.tokens, plain.tokens)
    assert_close(judgement, plain_judgement)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, plain_gradients[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [ActorCritic, PlainActorCritic])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_after_the_end_are_left_out_and_change_nothing(kind, dtype):
    """Ended episodes are dropped from the batch; what is left of it goes on as it would have."""
    short, judgement, gradients = learned(agent(kind).to(dtype), past_end=False)
    assert not short.mask.all()
    assert (short.tokens[~short.mask] == PADDING).all()
    network = agent(kind).to(dtype)
    whole = rollout(network, MACHINE, problems(40), HORIZON, seed=8, past_end=True)
    assert torch.equal(visible_actions(short), visible_actions(whole))
    assert_close(judgement[:, short.mask], torch.stack(whole.judgement)[:, short.mask])
    (something(whole.judgement) * whole.mask).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ActorCritic, PlainActorCritic])
@pytest.mark.parametrize("past_end", [False, True])
def test_given_choices_are_made_whatever_the_agent_would_do(kind, past_end):
    """And judged as if they had been its own."""
    first, judgement, gradients = learned(agent(kind), past_end)
    again, same_judgement, same_gradients = learned(agent(kind), past_end, first.choices)
    assert torch.equal(again.tokens, first.tokens)
    assert_close(same_judgement, judgement)
    assert_close(same_gradients, gradients)
    other = learned(agent(kind), past_end, (first.choices + 1) % 6)[0]
    assert torch.equal(other.choices[0], (first.choices[0] + 1) % 6)
    assert torch.equal(other.tokens[0], agent(kind).actions[other.choices[0]])


@pytest.mark.parametrize(
    "choices", [torch.zeros(HORIZON, 9, dtype=torch.int64), torch.zeros(HORIZON - 1, 8, dtype=torch.int64),
                torch.zeros(HORIZON, 8)]
)  # fmt: skip
def test_choices_of_another_shape_or_type_are_refused(choices):
    with pytest.raises(ValueError, match=r"^choices: got .*, expected int64 of shape \[7, 8\]"):
        rollout(agent(), MACHINE, problems(8), HORIZON, choices=choices)


@pytest.mark.parametrize("kind", [ActorCritic, PlainActorCritic])
@pytest.mark.parametrize("choice", [-7, 6])
def test_choices_that_are_no_actions_are_refused(kind, choice):
    with pytest.raises(IndexError):
        rollout(agent(kind), MACHINE, problems(2), 1, choices=torch.tensor([[0, choice]]))


def test_replaying_gives_the_states_that_were_acted_from():
    network = agent()
    recurrence = network.begin(network.encode(problems(40)), 3)
    stepped = torch.cat([recurrence.step(torch.full((40,), token)).clone() for token in (Token.CTX, Token.MUL, 3)])
    assert_close(recurrence.replay(), stepped)


def test_nothing_is_learned_where_gradients_are_disabled():
    with torch.no_grad():
        blind = rollout(agent(), MACHINE, problems(300), HORIZON, seed=8)
    assert blind.judgement is None
    assert torch.equal(blind.tokens, rollout(agent(), MACHINE, problems(300), HORIZON, seed=8).tokens)


def test_the_tutorials_loss_gets_the_steps_after_the_end():
    """It is not masked: they count in it as any other."""
    torch.manual_seed(0)
    module = ToolAgent(
        machine=TutorialMachine(max_steps=6), reward=TutorialReward(), algorithm=TutorialA2C(), agent=ActorCritic
    )
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = problems(50)
    episodes = rollout(module.agent, module.machine, batch, 6, module.seed, past_end=True)
    assert not episodes.mask.all()
    reward = tutorial_reward(batch, module.machine.outcome(episodes.final))
    expected = tutorial_loss(episodes.judgement, reward, value_weight=0.5, entropy_weight=0.01)
    assert_close(module.training_step(batch, 0), expected.loss)
