"""Rollouts: who acts, how chance plays in, and what is recorded to learn from."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from toolagent_pl import CalculatorEnv, TutorialEnv
from toolagent_pl.envs.tutorial.blind import BlindAgent
from toolagent_pl.rl import rollout
from toolagent_pl.rl.agent import Agent, Evaluation, Policy
from toolagent_pl.rl.env import execute, over, select
from toolagent_pl.rl.rewards import OutcomeReward
from toolagent_pl.rl.rollout import collect, draw
from toolagent_pl.training.module import ToolAgent

HORIZON = 7
STAGES = ["T0", "E3", "T2"]
ENV = CalculatorEnv(STAGES, max_steps=HORIZON)


class Masked(CalculatorEnv):
    """Only what would change something may be done."""

    def action_mask(self, state):
        return self.applies(state)


class Watcher(Agent):
    """Looks at everything that it may look at, and has a cache of several parts."""

    def __init__(self, env):
        super().__init__(env)
        self.read, self.heard = nn.Embedding(env.vocabulary.size, 8), nn.Embedding(1 + self.actions, 8)
        self.look = nn.Linear(env.flags + env.positions, 8)
        self.policy = nn.Linear(8, self.actions)
        self.value = nn.Linear(8, 1)

    def prefill(self, problems):
        return {"prompt": self.read(problems.prompt).mean(1), "rest": (problems.length * 0, [problems.prompt])}

    def decode(self, cache, previous, observation):
        count, (prompt,) = cache["rest"]
        here = prompt.gather(1, observation.positions.clamp(min=0)).sum(1, keepdim=True)
        seen = torch.cat([observation.flags, observation.positions / 10], 1).to(self.look.weight.dtype)
        heard = self.heard(previous + 1)
        hidden = (cache["prompt"] + heard + self.look(seen) + 0.1 * count[:, None] + 0.01 * here).tanh()
        cache = {"prompt": 0.9 * hidden, "rest": (count + 1, [prompt])}
        return Policy(self.policy(hidden), self.value(hidden)[:, 0]), cache


class Uncritical(Watcher):
    has_critic = False

    def decode(self, cache, previous, observation):
        policy, cache = super().decode(cache, previous, observation)
        return Policy(policy.logits, None), cache


KINDS = [partial(BlindAgent, d=16), Watcher, Uncritical]


def agent(kind=KINDS[0], env=ENV, sharpness=4):
    torch.manual_seed(1)
    built = kind(env)
    with torch.no_grad():
        built.policy.weight *= sharpness  # far from even
    return built


def problems(size, env=ENV):
    number = torch.arange(size)
    return env.problems(number, number % 3, 0, held_out=False)


def policies(network, record):
    """Logits at all steps, ``[T, N, A]``, by stepping the agent along."""
    cache, logits = network.prefill(record.problems), []
    for t, previous in enumerate(record.previous):
        policy, cache = network.decode(cache, previous, select(record.observations, t))
        logits.append(policy.logits.detach())
    return torch.stack(logits)


def assert_equal_records(one, other):
    """Equal wherever they have a meaning."""
    mask = one.mask
    assert torch.equal(mask, other.mask)
    by_step = [
        (record.previous, record.actions, record.log_prob, record.value, *record.observations)
        for record in (one, other)
    ]
    for left, right in zip(*by_step, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            assert_close(left[mask], right[mask])
    for left, right in zip(tree_leaves(one.final), tree_leaves(other.final), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(one.solved, other.solved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_is_detached(kind):
    network, batch = agent(kind), problems(30)
    for record in (collect(network, ENV, batch, seed=3), collect(network, ENV, batch)):
        tensors = [leaf for leaf in tree_leaves(tuple(record)) if isinstance(leaf, torch.Tensor)]
        assert len(tensors) >= 24
        assert not any(tensor.requires_grad for tensor in tensors)
    evaluation = network(record)
    assert evaluation.log_prob.requires_grad
    assert (evaluation.value is None) == (record.value is None) == (kind is Uncritical)


def test_greedy_takes_the_likeliest_action():
    network = agent()
    record = collect(network, ENV, problems(60))
    assert torch.equal(record.actions[record.mask], policies(network, record).argmax(2)[record.mask])


def test_actions_are_drawn_by_inverting_the_distribution():
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log().expand(6, -1) + 7
    assert draw(logits, torch.tensor([1e-7, 0.19, 0.21, 0.49, 0.51, 1 - 6e-8])).tolist() == [0, 0, 1, 1, 2, 2]
    never = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert draw(never, torch.tensor([1e-7, 1 - 6e-8])).tolist() == [1, 1]


def test_sampled_actions_follow_the_policy():
    """Whatever the step and whatever was said before, each action comes as often as its probability says."""
    env = CalculatorEnv(STAGES, actions=["MUL", "ADD", "STO", "ANS"], max_steps=HORIZON)
    network = agent(env=env, sharpness=6)
    record = collect(network, env, problems(6000), seed=9, continue_after_done=True)
    chance = policies(network, record).softmax(2)  # [T, N, A]
    surprise = torch.nn.functional.one_hot(record.actions, 4) - chance
    compared = 0
    for t in range(HORIZON):
        for previous in record.previous[t].unique():
            rows = record.previous[t] == previous
            variance = (chance[t, rows] * (1 - chance[t, rows])).sum(0)
            score = surprise[t, rows].sum(0) / variance.clamp(min=1).sqrt()
            compared += int((variance > 20).sum())
            assert score.abs().max() < 4.5
    assert compared > 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 3])
def test_actions_do_not_depend_on_how_a_batch_is_split(kind, samples):
    network, batch = agent(kind), problems(200)._replace(prompt=torch.arange(200 * 25).view(200, 25) % 20)
    whole = collect(network, ENV, batch, seed=3, samples_per_problem=samples)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for part in (slice(77), slice(77, None), shuffled):
        record = collect(network, ENV, select(batch, part), seed=3, samples_per_problem=samples)
        rows = torch.arange(200 * samples).view(200, samples)[part].flatten()
        wanted = whole.select(rows)
        steps = len(record.mask)
        assert not wanted.mask[steps:].any()
        assert torch.equal(record.visible_actions, wanted.visible_actions[:, :steps])
        assert torch.equal(record.solved, wanted.solved)


def test_samples_of_a_problem_are_neighbours_with_noise_of_their_own():
    network, batch = agent(sharpness=1), problems(50)
    record = collect(network, ENV, batch, seed=3, samples_per_problem=8)
    assert record.samples == 8
    assert record.problems.number.tolist() == [number for number in range(50) for _ in range(8)]
    assert torch.equal(record.problems.target, batch.target.repeat_interleave(8))
    actions = record.visible_actions.view(50, 8, -1)
    different = [len(group.unique(dim=0)) for group in actions]
    assert min(different) > 1
    assert sum(different) / 50 > 6
    alone = collect(network, ENV, batch, seed=3).visible_actions
    assert torch.equal(actions[:, 0, : alone.shape[1]], alone)  # the first sample is that of a single one


def test_noise_is_that_of_the_seed_and_not_of_pytorchs_generator():
    network, state = agent(), torch.get_rng_state()
    one, same, other = (collect(network, ENV, problems(50), seed=seed).visible_actions for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_no_two_draws_of_noise_are_the_same():
    network = agent()
    torch.nn.init.zeros_(network.policy.weight)
    torch.nn.init.zeros_(network.policy.bias)  # an even policy: actions show the noise
    actions = collect(network, ENV, problems(1500), seed=3, continue_after_done=True, samples_per_problem=2).actions
    for later in range(HORIZON):
        for apart in (0, 1, 2, 3):
            if later or apart:
                same = actions[later:, : -apart or None] == actions[: HORIZON - later, apart:]
                assert same.float().mean().item() == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize(
    "env",
    [ENV, CalculatorEnv(STAGES, max_steps=3), CalculatorEnv(STAGES), TutorialEnv(max_steps=HORIZON), Masked(STAGES)],
    ids=["7", "3", "auto", "tutorial", "masked"],
)
@pytest.mark.parametrize("continue_after_done", [False, True])
def test_what_is_recorded_is_what_the_environment_says(env, continue_after_done):
    batch = problems(300, env)
    record = collect(agent(env=env, sharpness=1), env, batch, seed=2, continue_after_done=continue_after_done)
    assert len(record.mask) == (env.horizon(batch) if continue_after_done else record.steps.max())
    states = execute(env, record.problems, record.visible_actions)
    for t, state in enumerate(states[:-1]):
        running = record.mask[t]
        assert torch.equal(running, ~over(state))
        for recorded, observed in zip(record.observations, env.observe(state), strict=True):
            assert torch.equal(recorded[t][running], observed[running])
        if isinstance(env, Masked):
            assert torch.equal(record.action_mask[t][running], env.applies(state)[running])
            assert env.applies(state).gather(1, record.actions[t][:, None])[running].all()
    for one, other in zip(record.final, states[-1], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(record.solved, env.solved(states[-1]))
    assert torch.equal(record.mask.sum(0), record.steps)
    assert (record.previous[0] == -1).all()
    following = record.mask[1:]
    assert torch.equal(record.previous[1:][following], record.actions[:-1][following])
    assert len(record.steps.unique()) > 1
    assert (record.final.noops.sum() > 0) == (not isinstance(env, Masked))


def something(evaluation):
    total = evaluation.log_prob + 3 * evaluation.entropy
    return (total if evaluation.value is None else total + evaluation.value.square()).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("continue_after_done", [False, True])
def test_a_forward_of_its_own_gives_what_decoding_gives(kind, continue_after_done):
    """And what was noted while acting; numbers and the gradients of all weights."""
    network = agent(kind).double()
    record = collect(network, ENV, problems(40), seed=8, continue_after_done=continue_after_done)
    assert not record.mask.all()
    if continue_after_done:
        record = record._replace(mask=torch.ones_like(record.mask))
    gradients = []
    for evaluation in (Agent.forward(network, record), network(record)):
        for told, noted in ((evaluation.log_prob, record.log_prob), (evaluation.value, record.value)):
            assert (told is None) == (noted is None)
            if told is not None:
                assert told.dtype == torch.float32
                assert_close(told[record.mask], noted[record.mask])
                assert not told[~record.mask].any()
        gradients.append(torch.autograd.grad(something(evaluation), list(network.parameters()), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients[0]) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 8])
def test_to_drop_episodes_that_have_ended_changes_nothing(kind, seed, monkeypatch):
    network, batch = agent(kind, sharpness=2).double(), problems(60)
    records, sizes, original = [], {}, network.decode

    def counted(cache, previous, observation):
        sizes[sparse].append(len(previous))
        return original(cache, previous, observation)

    monkeypatch.setattr(network, "decode", counted)
    for sparse in (0, 0.6, 1.1):  # never, as usual, at once
        monkeypatch.setattr(rollout, "SPARSE", sparse)
        sizes[sparse] = []
        records.append(collect(network, ENV, batch, seed=seed))
    assert set(sizes[0]) == {60}
    assert sizes[1.1] == records[0].mask.sum(1).tolist()
    for other in records[1:]:
        assert_equal_records(records[0], other)


@pytest.mark.parametrize("kind", KINDS)
def test_given_actions_are_taken_whatever_the_agent_would_do(kind):
    """And judged as if they had been its own."""
    network, batch = agent(kind), problems(40)
    first = collect(network, ENV, batch, seed=8)
    assert_equal_records(first, collect(network, ENV, batch, actions=first.actions))
    other = collect(network, ENV, batch, actions=(first.actions + 1) % 6)
    assert torch.equal(other.actions[other.mask], ((first.actions + 1) % 6)[: len(other.mask)][other.mask])


def test_selected_episodes_keep_what_is_theirs():
    network = agent(Watcher)
    record = collect(network, ENV, problems(30), seed=3, samples_per_problem=2)
    index = torch.tensor([41, 3, 3, 17])
    some = record.select(index)
    assert some.samples == 2
    for one, other in zip(network(some), network(record), strict=True):
        assert_close(one, other[:, index])
    assert torch.equal(some.solved, record.solved[index])
    assert torch.equal(some.problems.prompt, record.problems.prompt[index])
    assert torch.equal(some.log_prob, record.log_prob[:, index])
    assert torch.equal(some.final.noops, record.final.noops[index])
    assert collect(agent(Uncritical), ENV, problems(3)).select(torch.tensor([1])).value is None


# What classes of one's own return is checked where it would be taken for something else without a word.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p, c: (p._replace(logits=p.logits[:, :5]), c),
            r"decode: got torch.float32 of shape \[8, 5\]",
        ),
        (
            lambda p, c: (p._replace(value=p.value[:, None]), c),
            r"decode: got torch.float32 of shape \[8, 1\]",
        ),
        (lambda p, c: (p._replace(value=0.5), c), "decode: got float for value"),
        (lambda p, c: (p, c.T), r"decode: got \[16, 8\], expected tensors with a first dimension of 8"),
    ],
)
def test_what_a_decode_of_ones_own_returns_is_checked(change, message):
    class Own(BlindAgent):
        def decode(self, *arguments):
            return change(*super().decode(*arguments))

    with pytest.raises(TypeError, match=rf"^Own\.{message}"):
        collect(Own(ENV, d=16), ENV, problems(8), seed=3)


@pytest.mark.parametrize(
    ("method", "field", "change"),
    [
        ("step", "steps", lambda x: x.int()),
        ("step", "truncated", lambda x: x[:, None]),
        ("step", "target", lambda x: x[:3]),
        ("observe", "flags", lambda x: x.T),
    ],
)
def test_what_an_environment_of_ones_own_returns_is_checked(method, field, change):
    class Own(CalculatorEnv):
        def step(self, state, action, combine=None):
            return self._changed("step", super().step(state, action, combine))

        def observe(self, state):
            return self._changed("observe", super().observe(state))

        def _changed(self, where, tree):
            return tree._replace(**{field: change(getattr(tree, field))}) if where == method else tree

    env = Own(STAGES, max_steps=7)
    with pytest.raises(TypeError, match=rf"^Own\.{method}: got .*expected"):
        collect(agent(env=env), env, problems(8), seed=3)


def learn(**options):
    module = ToolAgent(CalculatorEnv(STAGES, max_steps=8), **options)
    learned, _, advantages = module.collect(problems(8))
    return module.minibatch_loss(learned, torch.arange(8), advantages, torch.tensor(1.0), torch.tensor(0.1))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e._replace(entropy=e.entropy.sum(0)),
        lambda e: e._replace(log_prob=e.log_prob.double()),
        lambda e: e._replace(log_prob=None),
    ],
)
def test_what_a_forward_of_ones_own_returns_is_checked(change):
    class Own(BlindAgent):
        def forward(self, rollout):
            return change(super().forward(rollout))

    with pytest.raises(TypeError, match=r"^Own\.forward: got .*expected torch.float32 of shape"):
        learn(agent=Own)


@pytest.mark.parametrize("change", [lambda x: x.sum(0), lambda x: x.long(), lambda x: x.tolist()])
def test_what_a_reward_of_ones_own_returns_is_checked(change):
    class Own(OutcomeReward):
        def __call__(self, env, rollout):
            return change(super().__call__(env, rollout))

    with pytest.raises(TypeError, match=r"^Own\.__call__: got .*expected torch.float32 of shape"):
        learn(reward=Own())


def test_a_forward_of_ones_own_takes_effect():
    class Own(BlindAgent):
        def forward(self, rollout):
            log_prob, entropy, value = super().forward(rollout)
            return Evaluation(log_prob, entropy * 0, value)

    assert learn(agent=Own)[1].entropy == 0
    assert learn(agent=BlindAgent)[1].entropy > 0
