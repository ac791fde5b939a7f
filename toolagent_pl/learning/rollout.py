"""Rollouts: an agent acts in an environment, a whole batch of episodes at once."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from toolagent_pl.agents import Agent, Evaluation, Policy, Rollout
from toolagent_pl.agents.agent import evaluate, masked, may_wait
from toolagent_pl.envs import Env, Observation, Outcome
from toolagent_pl.envs.env import check_kept, check_returned, check_rows, float_kind
from toolagent_pl.problems import Problems
from toolagent_pl.randomness import Purpose, random_uniform
from toolagent_pl.tools import PADDING, Token

MOST_STEPS = 2048  # draws of action noise that are set aside for each episode
MOST_SAMPLES = 1024
SPARSE = 0.6  # share of running episodes below which the others are dropped from the batch


def collect(
    agent: Agent,
    env: Env[Any],
    problems: Problems,
    *,
    samples_per_problem: int = 1,
    seed: int | None = None,
    continue_after_done: bool = False,
    actions: Tensor | None = None,
) -> Rollout:
    """Let the agent act.

    Episodes that have ended are left out, once they are many, where that pays: on a CPU, and in huge batches on a GPU,
    which has to be waited for to learn which they are.

    Args:
        samples_per_problem: Episodes of each problem.
        seed: Seed of the action noise, which is a function of (seed, number of the problem, sample, step), so that it
            does not depend on how a batch is split. None chooses the likeliest action instead.
        continue_after_done: Let the agent decode all steps in any case.
        actions: int64 ``[T, N]``, positions in the agent's list of actions, to be taken whatever the agent would do.

    Returns:
        A record without gradients.

    Raises:
        ValueError: If ``actions`` are of another shape or type.
        TypeError: If what the agent or the environment returns is.
    """
    with torch.no_grad():
        rollout, _ = _collect(agent, env, problems, samples_per_problem, seed, continue_after_done, actions)
    return rollout


def collect_and_evaluate(
    agent: Agent,
    env: Env[Any],
    problems: Problems,
    *,
    samples_per_problem: int = 1,
    seed: int | None = None,
    continue_after_done: bool = False,
) -> tuple[Rollout, Evaluation]:
    """Let the agent act, and hand out what ``Agent.forward`` would say of the rollout, recorded while acting."""
    rollout, evaluation = _collect(agent, env, problems, samples_per_problem, seed, continue_after_done, None)
    return rollout, masked(evaluation, rollout.mask) if not continue_after_done else evaluation


def _collect(
    agent: Agent,
    env: Env[Any],
    problems: Problems,
    samples: int,
    seed: int | None,
    continue_after_done: bool,
    given: Tensor | None,
) -> tuple[Rollout, Evaluation]:
    if samples > 1:
        problems = Problems(*(x.repeat_interleave(samples, 0) for x in problems))
    size, device = problems.size, problems.device
    horizon = env.horizon(problems)
    if given is not None and (given.shape != (horizon, size) or given.dtype != torch.int64):
        raise ValueError(
            f"actions: got {given.dtype} of shape {list(given.shape)}, expected int64 of shape [{horizon}, {size}]"
        )
    noise = None
    if seed is not None and given is None:
        sample = torch.arange(size, device=device) % samples
        episode = problems.number * MOST_SAMPLES + sample
        steps = torch.arange(horizon, device=device)[:, None]
        noise = random_uniform(seed, Purpose.ACTION, episode * MOST_STEPS + steps)  # [T, N]
    cache = agent.prefill(problems)
    state = env.reset(problems)
    checked = not torch.compiler.is_compiling()
    if checked:
        check_rows(agent, "prefill", "the cache", cache, size)
        check_rows(env, "reset", "the state", state, size)
    final = state  # of all episodes; those that have ended are dropped from ``state``
    rows: Tensor | None = None  # which episodes are in ``state``, None for all
    previous = torch.full_like(problems.stage, Token.CTX)
    drop = not continue_after_done and may_wait(device, size)
    record = _Record(size)
    for t in range(horizon):
        observation = env.observe(state)
        if t == 0 and checked:
            check_observation(env, observation, size)
        decided = agent.decode(cache, previous, observation)
        if t == 0 and checked:
            check_decided(agent, decided, size)
        policy, cache = decided
        if given is not None:
            action = _at(given[t], rows)
        elif noise is None:
            action = policy.logits.detach().argmax(1)
        else:
            action = draw(policy, _at(noise[t], rows))
        token = agent.actions.index_select(0, action)
        running = ~(state.terminated | state.truncated)
        record.add(rows, *observation, previous, action, token, running, policy.logits, policy.value)
        before, state = state, env.step(state, token)
        previous = token
        if t == 0 and checked:
            if isinstance(state, type(before)):  # these by their names
                check_returned(env, "step", "terminated", state.terminated, torch.bool, [size])
                check_returned(env, "step", "truncated", state.truncated, torch.bool, [size])
                check_returned(env, "step", "steps", state.steps, torch.int64, [size])
            check_kept(env, "step", "the state", state, before)
        if not drop:
            continue
        alive = (~(state.terminated | state.truncated)).nonzero()[:, 0]
        if not len(alive):
            break
        if len(alive) < SPARSE * len(token):
            final = _put(final, state, rows)
            rows = _at(alive, None) if rows is None else rows.index_select(0, alive)
            state, cache, previous = tree_map(partial(_at, rows=alive), (state, cache, previous))
    final = _put(final, state, rows)

    flags, places, previous, action, token, running, logits, value = record.steps()
    outcome = env.outcome(final)
    if checked:
        check_outcome(env, outcome, size)
    judged = evaluate(Policy(logits, value), action)
    evaluation = Evaluation(*(None if x is None else record.whole(x) for x in judged))  # type: ignore[arg-type]
    rollout = Rollout(
        problems=problems,
        samples=samples,
        observations=Observation(record.whole(flags), record.whole(places, -1)),
        previous=record.whole(previous, int(Token.CTX)),
        actions=record.whole(action),
        tokens=record.whole(token, PADDING),
        mask=record.whole(running, False),
        log_prob=evaluation.log_prob.detach(),
        value=None if evaluation.value is None else evaluation.value.detach(),
        terminated=final.terminated,
        truncated=final.truncated,
        idle=final.idle,
        outcome=outcome,
    )
    return rollout, evaluation


class _Record:
    """What happened in each step, of the episodes that were in the batch then."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: list[Tensor | None] = []
        self._steps: list[tuple[Tensor | None, ...]] = []

    def add(self, rows: Tensor | None, *values: Tensor | None) -> None:
        """Note a step; ``values`` have a row for each of ``rows``, None for all episodes."""
        self._rows.append(rows)
        self._steps.append(values)

    def steps(self) -> list[Any]:
        """Each of the values, the steps one behind the other, ``[M, ...]``."""
        columns = list(zip(*self._steps, strict=True))
        length, size = len(self._steps), self.size
        some: Tensor = columns[2][0]
        self._index: Tensor | None = None  # where each row belongs in [T * N]
        if self._rows[-1] is not None:
            everyone = torch.arange(size, device=some.device)
            parts = [t * size + (everyone if rows is None else rows) for t, rows in enumerate(self._rows)]
            self._index = torch.cat(parts)
        self._shape = length, size
        return [None if column[0] is None else torch.cat(column) for column in columns]  # type: ignore[arg-type]

    def whole(self, values: Tensor, blank: Any = 0) -> Tensor:
        """``values`` [M, ...] as ``[T, N, ...]``, ``blank`` where an episode was not in the batch any more."""
        if self._index is not None:
            everything = values.new_full((self._shape[0] * self._shape[1], *values.shape[1:]), blank)
            values = everything.index_copy(0, self._index, values)
        return values.unflatten(0, self._shape)


def draw(policy: Policy, noise: Tensor) -> Tensor:
    """Draw an action for each row by inverting the distribution function.

    Args:
        noise: float32 ``[B]``, uniform between 0 and 1.

    Returns:
        int64 ``[B]``, positions in the list of actions.
    """
    logits = policy.logits.detach().float().T.contiguous()  # along short rows softmax takes five times as long
    below = logits.softmax(0).cumsum(0)[:-1]
    return (noise > below).sum(0)


def _at(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def _put(into: Any, state: Any, rows: Tensor | None) -> Any:
    """``state`` at its rows of the state of all episodes."""
    return state if rows is None else tree_map(lambda x, y: x.index_copy(0, rows, y), into, state)


def visible_actions(rollout: Rollout) -> Tensor:
    """Tokens of the episodes, int64 ``[N, T]``, padded after their ends."""
    return rollout.tokens.masked_fill(~rollout.mask, PADDING).T


def check_observation(env: Env[Any], observation: Any, size: int) -> None:
    """Refuse what an environment's ``observe`` returned, unless it has the shapes of ``Observation``.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    if not isinstance(observation, Observation):
        raise TypeError(f"{type(env).__name__}.observe: got {type(observation).__name__}, expected an Observation")
    check_returned(env, "observe", "flags", observation.flags, float_kind(observation.flags), [size, env.flags])
    check_returned(env, "observe", "places", observation.places, torch.int64, [size, env.places])


def check_outcome(env: Env[Any], outcome: Any, size: int) -> None:
    """Refuse what an environment's ``outcome`` returned, unless it has the shapes of ``Outcome``.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{type(env).__name__}.outcome: got {type(outcome).__name__}, expected an Outcome")
    for name, value in zip(outcome._fields, outcome, strict=True):
        kind = torch.int64 if name in ("answer", "steps") else torch.bool
        check_returned(env, "outcome", name, value, kind, [size])


def check_decided(agent: Agent, decided: Any, size: int) -> None:
    """Refuse what an agent's ``decode`` returned, unless it is a ``Policy`` of the right shapes, and a cache.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    if not isinstance(decided, tuple) or isinstance(decided, Policy) or len(decided) != 2:
        got = type(decided).__name__
        raise TypeError(f"{type(agent).__name__}.decode: got {got}, expected a Policy and a cache")
    policy, cache = decided
    check_rows(agent, "decode", "the cache", cache, size)
    if not isinstance(policy, Policy):
        raise TypeError(f"{type(agent).__name__}.decode: got {type(policy).__name__}, expected a Policy and a cache")
    kind = float_kind(policy.logits)
    check_returned(agent, "decode", "logits", policy.logits, kind, [size, len(agent.actions)])
    if policy.value is not None:
        check_returned(agent, "decode", "value", policy.value, kind, [size])


def check_evaluation(agent: Agent, evaluation: Evaluation, rollout: Rollout) -> None:
    """Refuse what an agent's ``forward`` returned, unless it has the shapes of ``Evaluation``.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    if not isinstance(evaluation, Evaluation):
        raise TypeError(f"{type(agent).__name__}.forward: got {type(evaluation).__name__}, expected an Evaluation")
    for name, value in zip(evaluation._fields, evaluation, strict=True):
        if name != "value" or value is not None:
            check_returned(agent, "forward", name, value, torch.float32, rollout.mask.shape)
