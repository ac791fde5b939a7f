"""Rollouts: who acts, how chance plays in, and what is recorded to learn from."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from tests.strategies import PLAIN
from toolagent_pl import CalculatorEnv, TutorialEnv
from toolagent_pl.agents import Agent, BlindAgent, Evaluation, Policy
from toolagent_pl.envs import Observation, execute
from toolagent_pl.learning import OutcomeReward, collect, rollout
from toolagent_pl.learning.rollout import collect_and_evaluate, draw, visible_actions
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Stages
from toolagent_pl.randomness import Purpose
from toolagent_pl.tools import Token

STAGES = Stages(["T0", "E3", "T2"])
HORIZON = 7
ENV = CalculatorEnv(HORIZON, feedback="spans")


class Watcher(Agent):
    """Looks at everything that it may look at, and has a cache of several parts."""

    def __init__(self, spec, actions=None):
        super().__init__(spec, actions)
        self.read = nn.Embedding(spec.vocabulary.size, 8)
        self.look = nn.Linear(spec.flags + spec.places, 8)
        self.policy = nn.Linear(8, len(self.actions))
        self.value = nn.Linear(8, 1)

    def prefill(self, problems):
        return {"prompt": self.read(problems.prompt).mean(1), "rest": (problems.length * 0, [problems.prompt])}

    def decode(self, cache, previous, observation):
        count, (prompt,) = cache["rest"]
        here = prompt.gather(1, observation.places.clamp(min=0)).sum(1, keepdim=True)
        seen = torch.cat([observation.flags, observation.places / 10], 1).to(self.look.weight.dtype)
        hidden = (cache["prompt"] + self.read(previous) + self.look(seen) + 0.1 * count[:, None] + 0.01 * here).tanh()
        cache = {"prompt": 0.9 * hidden, "rest": (count + 1, [prompt])}
        return Policy(self.policy(hidden), self.value(hidden)[:, 0]), cache


class Uncritical(Watcher):
    has_critic = False

    def decode(self, cache, previous, observation):
        policy, cache = super().decode(cache, previous, observation)
        return Policy(policy.logits, None), cache


class Stubborn(BlindAgent):
    """The blind agent, with a decode of its own."""

    def decode(self, cache, previous, observation):
        policy, cache = super().decode(cache, previous, observation)
        favourite = torch.arange(len(self.actions)) == 4
        return Policy(policy.logits + 50 * favourite, policy.value - 3), cache


KINDS = [partial(BlindAgent, d=16), Watcher, Uncritical]


def agent(kind=KINDS[0], env=ENV, sharpness=4, **options):
    torch.manual_seed(1)
    built = kind(env.spec(3), **options)
    with torch.no_grad():
        built.policy.weight *= sharpness  # far from even
    return built


def problems(size):
    number = torch.arange(size)
    return STAGES.draw(number, number % 3, 0, Purpose.PROBLEM, held_out=False)


def policies(network, record):
    """Logits at all steps, ``[T, N, A]``, by stepping the agent along."""
    cache, logits = network.prefill(record.problems), []
    for t in range(len(record.mask)):
        policy, cache = network.decode(cache, record.previous[t], Observation(*(x[t] for x in record.observations)))
        logits.append(policy.logits.detach())
    return torch.stack(logits)


def assert_equal_records(one, other, mask=None):
    """Equal wherever they have a meaning."""
    mask = one.mask if mask is None else mask
    assert torch.equal(one.mask, other.mask)
    for name in ("previous", "actions", "tokens", "log_prob", "value"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert_close(left[mask], right[mask])
    for left, right in zip(one.observations, other.observations, strict=True):
        assert torch.equal(left[mask], right[mask])
    for left, right in zip(
        [one.terminated, one.truncated, one.idle, *one.outcome, *one.problems],
        [other.terminated, other.truncated, other.idle, *other.outcome, *other.problems],
        strict=True,
    ):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_is_detached(kind):
    network, batch = agent(kind), problems(30)
    record, evaluation = collect_and_evaluate(network, ENV, batch, seed=3)
    for one in (record, collect(network, ENV, batch, seed=3), collect(network, ENV, batch)):
        tensors = [leaf for leaf in tree_leaves(tuple(one)) if isinstance(leaf, torch.Tensor)]
        assert len(tensors) >= 24
        assert not any(tensor.requires_grad for tensor in tensors)
    assert evaluation.log_prob.requires_grad
    assert evaluation.entropy.requires_grad
    assert (evaluation.value is None) == (kind is Uncritical)


def test_greedy_takes_the_likeliest_action():
    network = agent()
    record = collect(network, ENV, problems(60))
    assert torch.equal(record.actions[record.mask], policies(network, record).argmax(2)[record.mask])
    assert torch.equal(record.tokens[record.mask], network.actions[record.actions][record.mask])


def test_actions_are_drawn_by_inverting_the_distribution():
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log().expand(6, -1) + 7
    noise = torch.tensor([1e-7, 0.19, 0.21, 0.49, 0.51, 1 - 6e-8])
    assert draw(Policy(logits, None), noise).tolist() == [0, 0, 1, 1, 2, 2]
    never = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert draw(Policy(never, None), torch.tensor([1e-7, 1 - 6e-8])).tolist() == [1, 1]


def test_sampled_actions_follow_the_policy():
    """Whatever the step and whatever was said before, each action comes as often as its probability says."""
    network = agent(actions=["MUL", "ADD", "STO", "ANS"], sharpness=6)
    record = collect(network, ENV, problems(6000), seed=9, continue_after_done=True)
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
        record = collect(network, ENV, batch.select(part), seed=3, samples_per_problem=samples)
        rows = torch.arange(200 * samples).view(200, samples)[part].flatten()
        wanted = whole.select(rows)
        steps = len(record.mask)
        assert not wanted.mask[steps:].any()
        assert torch.equal(visible_actions(record), visible_actions(wanted)[:, :steps])
        assert torch.equal(record.outcome.answer, wanted.outcome.answer)


def test_samples_of_a_problem_are_neighbours_with_noise_of_their_own():
    network, batch = agent(sharpness=1), problems(50)
    record = collect(network, ENV, batch, seed=3, samples_per_problem=8)
    assert record.samples == 8
    assert record.problems.number.tolist() == [number for number in range(50) for _ in range(8)]
    assert torch.equal(record.problems.target, batch.target.repeat_interleave(8))
    actions = visible_actions(record).view(50, 8, -1)
    different = [len(group.unique(dim=0)) for group in actions]
    assert min(different) > 1
    assert sum(different) / 50 > 6
    alone = visible_actions(collect(network, ENV, batch, seed=3))
    assert torch.equal(actions[:, 0, : alone.shape[1]], alone)  # the first sample is that of a single one
    greedy = visible_actions(collect(network, ENV, batch, samples_per_problem=3)).view(50, 3, -1)
    assert (greedy == greedy[:, :1]).all()


def test_noise_is_that_of_the_seed_and_not_of_pytorchs_generator():
    def tokens(seed):
        return visible_actions(collect(agent(), ENV, problems(50), seed=seed))

    assert torch.equal(tokens(3), tokens(3))
    network, state = agent(), torch.get_rng_state()
    collect(network, ENV, problems(50), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert tokens(3).shape != tokens(4).shape or not torch.equal(tokens(3), tokens(4))


def test_no_two_draws_of_noise_are_the_same():
    network = agent()
    torch.nn.init.zeros_(network.policy.weight)
    torch.nn.init.zeros_(network.policy.bias)  # an even policy: actions show the noise
    actions = collect(network, ENV, problems(1500), seed=3, continue_after_done=True, samples_per_problem=2).actions
    for later in range(1, HORIZON):
        assert (actions[later:] == actions[:-later]).float().mean().item() == pytest.approx(1 / 6, abs=0.03)
    for apart in (1, 2, 3):
        for later in range(HORIZON):
            same = actions[later:, :-apart] == actions[: HORIZON - later, apart:]
            assert same.float().mean().item() == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("actions", [["MUL", "ADD", "ANS"], ["9"], [PLAIN.name(token) for token in PLAIN.actions]])
def test_only_allowed_tokens_are_emitted(actions, seed):
    record = collect(agent(actions=actions), ENV, problems(200), seed=seed, continue_after_done=True)
    assert {PLAIN.name(token) for token in record.tokens.unique().tolist()} <= set(actions)


TUTORIAL = TutorialEnv(max_steps=HORIZON)


@pytest.mark.parametrize("env", [ENV, CalculatorEnv(3), CalculatorEnv("auto"), TUTORIAL])
@pytest.mark.parametrize("continue_after_done", [False, True])
def test_the_mask_covers_the_episode_and_no_more(env, continue_after_done):
    batch = problems(300)
    if env is TUTORIAL:
        batch = Stages(["T0", "T1", "T2"]).draw(batch.number, batch.stage, 0, Purpose.PROBLEM, held_out=False)
    record = collect(agent(env=env, sharpness=1), env, batch, seed=2, continue_after_done=continue_after_done)
    limit = env._limit(batch).tolist() if env is not TUTORIAL else [HORIZON] * 300
    if continue_after_done:
        assert len(record.mask) == env.horizon(batch)
    assert len(record.mask) == max(limit)
    assert torch.equal(record.mask.sum(0), record.outcome.steps)
    for b, length in enumerate(record.outcome.steps.tolist()):
        assert record.mask[:, b].tolist() == [True] * length + [False] * (len(record.mask) - length)
        answers = (record.tokens[:length, b] == Token.ANS).tolist()
        assert not any(answers[:-1])
        assert record.terminated[b] == answers[-1]
        assert record.truncated[b] == (not answers[-1])
        assert answers[-1] or length == limit[b]
    assert len(record.outcome.steps.unique()) > 1


def test_a_rollout_is_no_longer_than_its_longest_episode():
    record = collect(agent(actions=["ANS"]), ENV, problems(9))
    assert record.mask.shape == (1, 9)
    assert record.terminated.all()
    longer = collect(agent(actions=["ANS"]), ENV, problems(9), continue_after_done=True)
    assert longer.mask.shape == (HORIZON, 9)
    assert longer.mask.sum() == 9


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recorded_is_what_the_environment_says(kind):
    record = collect(agent(kind, sharpness=1), ENV, problems(200), seed=2)
    states = execute(ENV, record.problems, visible_actions(record))
    for t, state in enumerate(states[:-1]):
        running = record.mask[t]
        assert torch.equal(running, ~(state.terminated | state.truncated))
        for recorded, observed in zip(record.observations, ENV.observe(state), strict=True):
            assert torch.equal(recorded[t][running], observed[running])
    for one, other in zip(ENV.outcome(states[-1]), record.outcome, strict=True):
        assert torch.equal(one, other)
    for name in ("terminated", "truncated", "idle"):
        assert torch.equal(getattr(record, name), getattr(states[-1], name))
    assert record.idle.max() > 0
    assert (record.previous[0] == Token.CTX).all()
    following = record.mask[1:]
    assert torch.equal(record.previous[1:][following], record.tokens[:-1][following])


def something(evaluation, where):
    total = evaluation.log_prob + 3 * evaluation.entropy
    if evaluation.value is not None:
        total = total + evaluation.value.square()
    return (total * where).sum()


def gradients(network, total):
    return dict(zip(dict(network.named_parameters()), torch.autograd.grad(
        total, list(network.parameters()), allow_unused=True), strict=True))  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, Stubborn])
@pytest.mark.parametrize("samples", [1, 2])
def test_what_is_evaluated_while_acting_is_what_forward_says(kind, samples):
    """Numbers and the gradients of all weights."""
    network, batch = agent(kind).double(), problems(40)
    options = {"seed": 8, "samples_per_problem": samples}
    record, while_acting = collect_and_evaluate(network, ENV, batch, **options)
    again = collect(network, ENV, batch, **options)
    assert_equal_records(record, again)
    assert not record.mask.all() or kind is Stubborn
    afterwards = Agent.forward(network, again)
    everywhere = torch.ones_like(record.mask)
    for one, other, recorded in zip(while_acting, afterwards, (record.log_prob, None, record.value), strict=True):
        if one is not None:
            assert one.dtype == other.dtype == torch.float32
            assert_close(one, other)
            assert not one[~record.mask].any()
        if recorded is not None:
            assert_close(one[record.mask], recorded[record.mask])
    wanted = gradients(network, something(afterwards, everywhere))
    assert sum(gradient is not None and bool(gradient.any()) for gradient in wanted.values()) > 3
    for name, gradient in gradients(network, something(while_acting, everywhere)).items():
        assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_the_end_are_evaluated_where_they_count(kind):
    network = agent(kind).double()
    record, evaluation = collect_and_evaluate(network, ENV, problems(40), seed=8, continue_after_done=True)
    assert not record.mask.all()
    assert torch.equal(record.previous[1:], record.tokens[:-1])
    wanted = Agent.forward(network, record._replace(mask=torch.ones_like(record.mask)))
    for one, other in zip(evaluation, wanted, strict=True):
        if one is not None:
            assert_close(one, other)
            assert one[~record.mask].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 8])
def test_to_drop_episodes_that_have_ended_changes_nothing(kind, seed, monkeypatch):
    network, batch = agent(kind, sharpness=2).double(), problems(60)
    results, sizes, original = [], {}, network.decode

    def counted(cache, previous, observation):
        sizes[sparse].append(len(previous))
        return original(cache, previous, observation)

    monkeypatch.setattr(network, "decode", counted)
    for sparse in (0, 0.6, 1.1):  # never, as usual, at once
        monkeypatch.setattr(rollout, "SPARSE", sparse)
        sizes[sparse] = []
        record, evaluation = collect_and_evaluate(network, ENV, batch, seed=seed)
        results.append((record, evaluation, gradients(network, something(evaluation, record.mask))))
    assert set(sizes[0]) == {60}
    assert sizes[1.1] == results[0][0].mask.sum(1).tolist()
    record, evaluation, wanted = results[0]
    for other, its_evaluation, its_gradients in results[1:]:
        assert_equal_records(record, other)
        for one, another in zip(evaluation, its_evaluation, strict=True):
            if one is not None:
                assert_close(one, another)
        for name, gradient in its_gradients.items():
            assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_given_actions_are_taken_whatever_the_agent_would_do(kind):
    """And judged as if they had been its own."""
    network, batch = agent(kind), problems(40)
    first = collect(network, ENV, batch, seed=8)
    again = collect(network, ENV, batch, actions=first.actions)
    assert_equal_records(first, again)
    other = collect(network, ENV, batch, actions=(first.actions + 1) % 6)
    assert torch.equal(other.actions[0], (first.actions[0] + 1) % 6)
    assert torch.equal(other.tokens[0], network.actions[other.actions[0]])
    assert torch.equal(other.actions[other.mask], ((first.actions + 1) % 6)[: len(other.mask)][other.mask])


@pytest.mark.parametrize("action", [-7, 6])
def test_given_actions_that_are_none_are_refused(action):
    with pytest.raises(IndexError):
        collect(agent(), ENV, problems(2), actions=torch.tensor([[0, action]]).expand(HORIZON, -1))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((HORIZON, 9), torch.int64), ((3, 8), torch.int64), ((HORIZON, 8), torch.float32)]
)
def test_given_actions_of_another_shape_or_type_are_refused(shape, dtype):
    actions = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=r"^actions: got .*expected int64 of shape \[7, 8\]"):
        collect(agent(actions=["MUL", "9"]), ENV, problems(8), actions=actions)


def test_a_decode_of_ones_own_takes_effect_everywhere():
    network, plain, batch = agent(Stubborn, d=16), agent(BlindAgent, d=16), problems(20)
    record, evaluation = collect_and_evaluate(network, ENV, batch, seed=3)
    assert (record.actions == 4).all()
    assert (collect(network, ENV, batch, seed=3).actions == 4).all()
    assert (collect(plain, ENV, batch, seed=3).actions != 4).any()
    values = plain(record).value - 3 * record.mask
    for told in (evaluation, network(record)):
        assert told.log_prob.abs().max() < 1e-3
        assert_close(told.value, values)
    assert_close(record.value, values)
    built = ToolAgent(["T0", "E3", "T2"], agent=partial(Stubborn, d=16), env=CalculatorEnv(8))
    assert int(built.learn(batch, built.ent_coef).actions) == 8 * 20  # it never answers


def test_selected_episodes_keep_what_is_theirs():
    network = agent(Watcher)
    record = collect(network, ENV, problems(30), seed=3, samples_per_problem=2)
    index = torch.tensor([41, 3, 3, 17])
    some = record.select(index)
    assert some.samples == 2
    for one, other in zip(network(some), network(record), strict=True):
        assert_close(one, other[:, index])
    assert torch.equal(some.outcome.answer, record.outcome.answer[index])
    assert torch.equal(some.problems.prompt, record.problems.prompt[index])
    assert torch.equal(some.log_prob, record.log_prob[:, index])
    assert torch.equal(some.idle, record.idle[index])
    assert collect(agent(Uncritical), ENV, problems(3)).select(torch.tensor([1])).value is None


def test_an_environment_without_a_limit_is_refused():
    with pytest.raises(ValueError, match=r"^model\.env\.max_steps: got null"):
        collect(agent(), CalculatorEnv(), problems(2))


# What classes of one's own return is checked.


def returning(change):
    """A blind agent whose decode returns something else."""

    class Own(BlindAgent):
        def decode(self, cache, previous, observation):
            policy, cache = super().decode(cache, previous, observation)
            return change(policy), cache

    return Own(ENV.spec(3), d=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda policy: tuple(policy), "Own.decode: got tuple, expected a Policy and a cache"),
        (
            lambda policy: policy._replace(logits=torch.arange(9.0).expand(8, -1)),
            "Own.decode: got float32 of shape [8, 9] for logits, expected float32 of shape [8, 6]",
        ),
        (
            lambda policy: policy._replace(logits=policy.logits[:, :5]),
            "Own.decode: got float32 of shape [8, 5] for logits, expected float32 of shape [8, 6]",
        ),
        (
            lambda policy: policy._replace(value=policy.value[:, None]),
            "Own.decode: got float32 of shape [8, 1] for value, expected float32 of shape [8]",
        ),
        (
            lambda policy: policy._replace(value=policy.value.double()),
            "Own.decode: got float64 of shape [8] for value, expected float32 of shape [8]",
        ),
        (
            lambda policy: policy._replace(value=0.5),
            "Own.decode: got float for value, expected a tensor, float32 of shape [8]",
        ),
    ],
)
@pytest.mark.parametrize("act", [collect, collect_and_evaluate])
def test_what_a_decode_of_ones_own_returns_is_checked(change, message, act):
    with pytest.raises(TypeError) as error:
        act(returning(change), ENV, problems(8), seed=3)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("steps", lambda x: x.int(), "got int32 of shape [8] for steps, expected int64 of shape [8]"),
        ("terminated", lambda x: x.long(), "got int64 of shape [8] for terminated, expected bool of shape [8]"),
        ("truncated", lambda x: x[:, None], "got bool of shape [8, 1] for truncated, expected bool of shape [8]"),
        ("truncated", lambda _: False, "got bool for truncated, expected a tensor, bool of shape [8]"),
    ],
)
def test_what_a_step_of_ones_own_returns_is_checked(field, change, message):
    class Own(CalculatorEnv):
        def step(self, state, action, combine=None):
            state = super().step(state, action, combine)
            return state._replace(**{field: change(getattr(state, field))})

    with pytest.raises(TypeError) as error:
        collect(agent(env=Own(7)), Own(7), problems(8), seed=3)
    assert str(error.value) == f"Own.step: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: tuple(e), "Own.forward: got tuple, expected an Evaluation"),
        (
            lambda e: e._replace(entropy=e.entropy.sum(0)),
            "got float32 of shape [8] for entropy, expected float32 of shape [{}, 8]",
        ),
        (
            lambda e: e._replace(log_prob=e.log_prob.double()),
            "got float64 of shape [{}, 8] for log_prob, expected float32 of shape [{}, 8]",
        ),
        (lambda e: e._replace(log_prob=None), "got NoneType for log_prob, expected a tensor, float32 of shape [{}, 8]"),
    ],
)
def test_what_a_forward_of_ones_own_returns_is_checked(change, message):
    class Own(BlindAgent):
        def forward(self, rollout):
            self.steps = len(rollout.mask)
            return change(super().forward(rollout))

    built = ToolAgent(["T0", "E3", "T2"], agent=partial(Own, d=4), env=CalculatorEnv(8))
    with pytest.raises(TypeError) as error:
        built.learn(problems(8), built.ent_coef)
    assert message.replace("{}", str(built.agent.steps)) in str(error.value)
    assert str(error.value).startswith("Own.forward: got")


def test_a_forward_of_ones_own_takes_effect():
    class Own(BlindAgent):
        def forward(self, rollout):
            log_prob, entropy, value = super().forward(rollout)
            return Evaluation(log_prob, entropy * 0, value)

    own, plain = (
        ToolAgent(["T0", "E3", "T2"], agent=partial(kind, d=4), env=CalculatorEnv(8)) for kind in (Own, BlindAgent)
    )
    assert own.learn(problems(8), own.ent_coef).entropy == 0
    assert plain.learn(problems(8), plain.ent_coef).entropy > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.sum(0), "got float32 of shape [8] for the rewards, expected float32 of shape [{}, 8]"),
        (lambda x: x.long(), "got int64 of shape [{}, 8] for the rewards, expected float32 of shape [{}, 8]"),
        (lambda x: x.tolist(), "got list for the rewards, expected a tensor, float32 of shape [{}, 8]"),
    ],
)
def test_what_a_reward_of_ones_own_returns_is_checked(change, message):
    class Own(OutcomeReward):
        def __call__(self, env, rollout):
            self.steps = len(rollout.mask)
            return change(super().__call__(env, rollout))

    built = ToolAgent(["T0", "E3", "T2"], env=CalculatorEnv(8), reward=Own())
    with pytest.raises(TypeError) as error:
        built.learn(problems(8), built.ent_coef)
    assert str(error.value) == "Own.__call__: " + message.replace("{}", str(built.reward.steps))
