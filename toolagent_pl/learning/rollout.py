"""Rollouts: an agent acts on a machine, a whole batch of episodes at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.agents import Agent, Judgement, Recurrence
from toolagent_pl.learning import compiled
from toolagent_pl.machines import Machine, MachineState
from toolagent_pl.problems import Problems
from toolagent_pl.randomness import Purpose, random_uniform
from toolagent_pl.tokens import PADDING, Token

MAX_HORIZON = 64  # draws of action noise that are set aside for each problem


class Rollout(NamedTuple):
    """``B`` episodes of at most ``T`` steps. What stands after the end of an episode has no meaning.

    Attributes:
        problems: The problems worked on.
        choices: int64 ``[T, B]``, actions taken as positions in the agent's list of actions.
        tokens: int64 ``[T, B]``, the same as tokens.
        mask: bool ``[T, B]``, whether the episode was still running when the action was chosen.
        final: State of the machine after the last action.
        judgement: What the agent thinks of all steps, ``[T, B]`` each, with gradients; to be learned from once. None
            where gradients are disabled.
    """

    problems: Problems
    choices: Tensor
    tokens: Tensor
    mask: Tensor
    final: MachineState
    judgement: Judgement | None


def rollout(
    agent: Agent,
    machine: Machine,
    problems: Problems,
    horizon: int,
    seed: int | None = None,
    past_end: bool = False,
    choices: Tensor | None = None,
) -> Rollout:
    """Let the agent act. The choices have no gradients; what the agent thinks of them has, where they are enabled.

    On a CPU an agent takes no steps after the end of an episode. A GPU would have to be waited for to learn which
    episodes have ended.

    Args:
        horizon: Most actions in an episode, ``T``; fewer are taken where all episodes are seen to have ended.
        seed: Seed of the action noise, which is a function of (seed, number of the problem, step), so that it
            does not depend on how a batch is split. None chooses the likeliest action instead.
        past_end: Take all steps in any case.
        choices: int64 ``[T, B]``, positions in the agent's list of actions, to be taken whatever the agent would do.

    Raises:
        ValueError: If ``choices`` are of another shape or type.
        IndexError: If one of them is none of the agent's actions.
    """
    if choices is not None and (
        choices.shape != (horizon, problems.size) or choices.dtype != torch.int64 or choices.device != problems.device
    ):
        raise ValueError(
            f"choices: got {choices.dtype} of shape {list(choices.shape)} on {choices.device}, "
            f"expected int64 of shape [{horizon}, {problems.size}] on {problems.device}, a row for each step"
        )
    hidden = agent.encode(problems)
    noise = None
    if seed is not None and choices is None:
        steps = torch.arange(horizon, device=problems.device)[:, None]
        noise = random_uniform(seed, Purpose.ACTION, problems.number * MAX_HORIZON + steps)  # [T, B]
    with torch.no_grad():
        state = machine.start(problems)
    if found := compiled.kernels_for(agent, hidden, problems.size):
        played = compiled.play(*found, agent.actions, machine, state, hidden, horizon, noise, choices, past_end)
        return Rollout(problems, *played)
    recurrence = agent.begin(hidden, horizon)
    with torch.no_grad():
        taken, tokens, mask, state = _step_by_step(agent, machine, state, recurrence, horizon, noise, choices, past_end)
    judgement = _judged(agent, recurrence, taken, mask) if torch.is_grad_enabled() else None
    return Rollout(problems, taken, tokens, mask, state, judgement)


def _step_by_step(
    agent: Agent,
    machine: Machine,
    state: MachineState,
    recurrence: Recurrence,
    horizon: int,
    noise: Tensor | None,
    given: Tensor | None,
    past_end: bool,
) -> tuple[Tensor, Tensor, Tensor, MachineState]:
    """Choices, tokens, mask and the state after all; see ``Rollout``."""
    size = state.problems.size
    heard = torch.full_like(state.problems.stage, Token.CTX)
    kept: Tensor | None = None  # of the episodes running before the last step
    running: Tensor | None = None  # episodes, None for all of them
    watch = not past_end and heard.device.type == "cpu" and not torch.compiler.is_compiling()
    choices, tokens, mask = [], [], []
    for t in range(horizon):
        hidden = recurrence.step(heard, kept)
        if given is None:
            choice = agent.choose(hidden, noise if noise is None else _of(noise[t], running))
        else:
            choice = _of(given[t], running)
        heard = agent.actions.index_select(0, choice)
        choices.append(_spread(choice, running, size, 0))
        tokens.append(_spread(heard, running, size, PADDING))
        mask.append(~state.done)
        state = machine.step(state, tokens[-1])
        if not watch:
            continue
        done = _of(state.done, running)
        kept = (~done).nonzero()[:, 0]
        if not len(kept):
            break
        if len(kept) == len(done):
            kept = None
            continue
        heard, running = _of(heard, kept), kept if running is None else _of(running, kept)
    return torch.stack(choices), torch.stack(tokens), torch.stack(mask), state


def _of(values: Tensor, positions: Tensor | None) -> Tensor:
    """``values`` at their positions; all of them where no positions are given."""
    return values if positions is None else values.index_select(0, positions)


def _spread(values: Tensor, positions: Tensor | None, size: int, blank: int) -> Tensor:
    """``values`` at their positions among ``size``, ``blank`` elsewhere; as they are where no positions are given."""
    return values if positions is None else values.new_full((size,), blank).index_copy_(0, positions, values)


def _judged(agent: Agent, recurrence: Recurrence, choices: Tensor, mask: Tensor) -> Judgement:
    """What the agent thinks of its choices."""
    states, flat = recurrence.replay(), choices.flatten()
    if len(states) == len(flat):
        judgement = agent.judge(states, flat)
    else:  # the agent took no steps after the end of an episode
        taken = mask.flatten().nonzero()[:, 0]
        known = agent.judge(states, flat.index_select(0, taken))
        judgement = Judgement(*(x.new_zeros(len(flat)).index_copy(0, taken, x) for x in known))
    return Judgement(*(x.unflatten(0, choices.shape) for x in judgement))


def visible_actions(rollout: Rollout) -> Tensor:
    """Tokens of the episodes, int64 ``[B, T]``, padded after their ends."""
    return rollout.tokens.masked_fill(~rollout.mask, PADDING).T
