"""Rollouts: an agent acts in an environment, a whole batch of episodes at once."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolagent_pl.rl.agent import Agent, Evaluation, Policy, allowed, evaluate
from toolagent_pl.rl.checks import check_tensor, float_type
from toolagent_pl.rl.env import PADDING, Env, Observation, over
from toolagent_pl.rl.random_numbers import Purpose, random_uniform
from toolagent_pl.rl.trees import leaves, tree_map

MAX_STEPS = 2048  # draws of action noise that are set aside for each episode
MAX_SAMPLES = 1024
SPARSE = 0.6  # share of running episodes below which the others are dropped from the batch
MIN_ROWS_TO_SYNC = 2**17  # from which a GPU is waited for, to leave out ended episodes


class Rollout(NamedTuple):
    """A record of ``N`` episodes of at most ``T`` steps, detached: there is no graph in it.

    What stands where ``mask`` is false has no meaning.

    Attributes:
        problems: The problem of each episode; those of one problem's samples are neighbours.
        samples: How many episodes there are of each problem.
        observations: What the environment showed before each action, ``[T, N, ...]``.
        action_mask: bool ``[T, N, A]``, which actions were allowed; None if all were.
        previous: int64 ``[T, N]``, the action before; -1 at the start.
        actions: int64 ``[T, N]``.
        mask: bool ``[T, N]``, whether the episode was still running.
        log_prob: float32 ``[T, N]``, of the actions when they were drawn.
        value: float32 ``[T, N]``, the expected return before each action; None for an agent without a critic.
        final: The state that each episode ended in.
        solved: bool ``[N]``, whether the problem is solved.
        reference_log_prob: float32 ``[T, N]``, of the actions by a frozen copy of the agent; None where the algorithm
            has no use for it.
    """

    problems: Any
    samples: int
    observations: Observation
    action_mask: Tensor | None
    previous: Tensor
    actions: Tensor
    mask: Tensor
    log_prob: Tensor
    value: Tensor | None
    final: Any
    solved: Tensor
    reference_log_prob: Tensor | None = None

    @property
    def steps(self) -> Tensor:
        """Actions that each episode took, int64 ``[N]``."""
        steps: Tensor = self.final.steps
        return steps

    @property
    def visible_actions(self) -> Tensor:
        """Actions of the episodes, int64 ``[N, T]``, -1 after their ends."""
        return self.actions.masked_fill(~self.mask, PADDING).T

    def select(self, index: Tensor) -> "Rollout":
        """The episodes at ``index``, int64."""
        rows, columns = (partial(torch.Tensor.index_select, dim=dim, index=index) for dim in (0, 1))
        by_row = ("problems", "final", "solved")
        parts = zip(self._fields, self, strict=True)
        return Rollout(*(tree_map(rows if name in by_row else columns, part) for name, part in parts))


def collect(
    agent: Agent,
    env: Env,
    problems: Any,
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
        actions: int64 ``[T, N]``, to be taken whatever the agent would do.

    Returns:
        A record without gradients.

    Raises:
        TypeError: If the agent or the environment returns tensors of other shapes or types than they should.
    """
    with torch.no_grad():
        return _collect(agent, env, problems, samples_per_problem, seed, continue_after_done, actions)


def _collect(
    agent: Agent,
    env: Env,
    problems: Any,
    samples: int,
    seed: int | None,
    continue_after_done: bool,
    given: Tensor | None,
) -> Rollout:
    if samples > 1:
        problems = tree_map(lambda x: x.repeat_interleave(samples, 0), problems)
    size, device = len(problems.number), problems.number.device
    horizon = env.horizon(problems)
    noise = None
    if seed is not None and given is None:
        sample = torch.arange(size, device=device) % samples
        episode = problems.number * MAX_SAMPLES + sample
        steps = torch.arange(horizon, device=device)[:, None]
        noise = random_uniform(seed, Purpose.ACTION, episode * MAX_STEPS + steps)  # [T, N]
    cache = agent.prefill(problems)
    state = env.reset(problems)
    final = state  # of all episodes; those that have ended are dropped from ``state``
    rows: Tensor | None = None  # which episodes are in ``state``, None for all
    previous = torch.full_like(problems.number, PADDING)
    drop = not continue_after_done and can_sync(device, size)
    record = _Record(size)
    ended = over(state)
    for t in range(horizon):
        observation, action_mask = env.observe(state), env.action_mask(state)
        policy, cache = agent.decode(cache, previous, observation)
        if given is not None:
            action = _at(given[t], rows)
        elif noise is None:
            action = allowed(policy.logits, action_mask).argmax(1)
        else:
            action = draw(allowed(policy.logits, action_mask), _at(noise[t], rows))
        record.add(rows, (observation, action_mask, previous, action, ~ended, policy.logits, policy.value))
        state = env.step(state, action)
        ended = over(state)
        if t == 0 and not torch.compiler.is_compiling():
            _check_step(agent, env, policy, state, cache, observation)
        previous = action
        if not drop:
            continue
        alive = (~ended).nonzero()[:, 0]
        if not len(alive):
            break
        if len(alive) < SPARSE * len(action):
            final = _put(final, state, rows)
            rows = _at(alive, None) if rows is None else rows.index_select(0, alive)
            state, cache, previous, ended = tree_map(partial(_at, rows=alive), (state, cache, previous, ended))
    final = _put(final, state, rows)

    observation, action_mask, previous, action, running, logits, value = record.steps()
    judged = evaluate(Policy(logits, value), action, action_mask)
    return Rollout(
        problems=problems,
        samples=samples,
        observations=tree_map(record.whole, observation),
        action_mask=None if action_mask is None else record.whole(action_mask),
        previous=record.whole(previous, PADDING),
        actions=record.whole(action),
        mask=record.whole(running),
        log_prob=record.whole(judged.log_prob),
        value=None if judged.value is None else record.whole(judged.value),
        final=final,
        solved=env.solved(final),
    )


class _Record:
    """What happened in each step, of the episodes that were in the batch then."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: list[Tensor | None] = []
        self._steps: list[Any] = []

    def add(self, rows: Tensor | None, values: Any) -> None:
        """Note a step; the tensors of ``values`` have a row for each of ``rows``, None for all episodes."""
        self._rows.append(rows)
        self._steps.append(values)

    def steps(self) -> Any:
        """The values, the steps one behind the other, ``[M, ...]``."""
        length, size = len(self._steps), self.size
        self._index: Tensor | None = None  # where each row belongs in [T * N]
        if self._rows[-1] is not None:
            everyone = torch.arange(size, device=self._rows[-1].device)
            parts = [t * size + (everyone if rows is None else rows) for t, rows in enumerate(self._rows)]
            self._index = torch.cat(parts)
        self._shape = length, size
        return tree_map(lambda *steps: torch.cat(steps), *self._steps)

    def whole(self, values: Tensor, blank: Any = 0) -> Tensor:
        """``values`` [M, ...] as ``[T, N, ...]``, ``blank`` where an episode was not in the batch any more."""
        if self._index is not None:
            everything = values.new_full((self._shape[0] * self._shape[1], *values.shape[1:]), blank)
            values = everything.index_copy_(0, self._index, values)
        return values.unflatten(0, self._shape)


def can_sync(device: torch.device, rows: int) -> bool:
    """Whether it pays to learn how many episodes go on, so as to leave out the others.

    A GPU has to be waited for to learn that, and cannot be while its kernels are captured.
    """
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or (rows >= MIN_ROWS_TO_SYNC and not is_capturing(device))


def is_capturing(device: torch.device) -> bool:
    """Whether kernels are only captured at the moment, for a CUDA graph, so that nothing can be waited for."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw an action for each row by inverting the distribution function.

    Args:
        logits: float ``[B, A]``.
        noise: float32 ``[B]``, uniform between 0 and 1.

    Returns:
        int64 ``[B]``.
    """
    scores = logits.float().T.contiguous()  # along short rows softmax takes five times as long
    below = scores.softmax(0).cumsum(0)[:-1]
    return (noise > below).sum(0)


def _at(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def _put(into: Any, state: Any, rows: Tensor | None) -> Any:
    """``state`` at its rows of the state of all episodes."""
    return state if rows is None else tree_map(lambda x, y: x.index_copy(0, rows, y), into, state)


def _check_step(agent: Agent, env: Env, policy: Policy, state: Any, cache: Any, observation: Any) -> None:
    """Refuse what a custom class returned, where it would be taken for something else without a word."""
    size = len(policy.logits)
    check_tensor(agent, "decode", "logits", policy.logits, float_type(policy.logits), [size, len(env.actions)])
    if policy.value is not None:
        check_tensor(agent, "decode", "value", policy.value, float_type(policy.value), [size])
    for name, dtype in (("terminated", torch.bool), ("truncated", torch.bool), ("steps", torch.int64)):
        check_tensor(env, "step", name, getattr(state, name), dtype, [size])
    for owner, method, tree in ((agent, "decode", cache), (env, "step", state), (env, "observe", observation)):
        for leaf in leaves(tree):
            if not isinstance(leaf, Tensor) or leaf.shape[:1] != (size,):
                got = list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                where = f"{type(owner).__name__}.{method}"
                raise TypeError(f"{where}: got {got}, expected tensors with a first dimension of {size}, the batch")


def check_evaluation(agent: Agent, evaluation: Evaluation, rollout: Rollout) -> None:
    """Refuse what an agent's ``forward`` returned, unless it has the shapes of ``Evaluation``.

    Raises:
        TypeError: Names the class, what it returned, and what is expected.
    """
    for name, value in zip(Evaluation._fields, evaluation, strict=True):
        if name != "value" or value is not None:
            check_tensor(agent, "forward", name, value, torch.float32, rollout.mask.shape)
