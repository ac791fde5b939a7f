"""Rollouts: an agent acts on a machine, a whole batch of episodes at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.agents import Agent, Judgement, Recurrence
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
        states: ``T + 1`` states of the machine, the first of them before any action.
        recurrence: The agent's own states, to be replayed.
    """

    problems: Problems
    choices: Tensor
    tokens: Tensor
    mask: Tensor
    states: list[MachineState]
    recurrence: Recurrence

    @property
    def final(self) -> MachineState:
        """State of the machine after the last action."""
        return self.states[-1]

    def judge(self, agent: Agent) -> Judgement:
        """What the agent thinks of all steps, ``[T, B]`` each, with gradients; to be learned from once."""
        states, choices = self.recurrence.replay(), self.choices.flatten()
        if len(states) == len(choices):
            judgement = agent.judge(states, choices)
        else:  # the agent took no steps after the end of an episode
            taken = self.mask.flatten().nonzero()[:, 0]
            known = agent.judge(states, choices.index_select(0, taken))
            judgement = Judgement(*(x.new_zeros(len(choices)).index_copy(0, taken, x) for x in known))
        return Judgement(*(x.unflatten(0, self.choices.shape) for x in judgement))


def rollout(
    agent: Agent,
    machine: Machine,
    problems: Problems,
    horizon: int,
    seed: int | None = None,
    past_end: bool = False,
) -> Rollout:
    """Let the agent act. No gradients are taken here, but for ``Rollout.judge`` where they are enabled.

    On a CPU an agent takes no steps after the end of an episode. A GPU would have to be waited for to learn which
    episodes have ended.

    Args:
        horizon: Most actions in an episode, ``T``; fewer are taken where all episodes are seen to have ended.
        seed: Seed of the action noise, which is a function of (seed, number of the problem, step), so that it
            does not depend on how a batch is split. None chooses the likeliest action instead.
        past_end: Take all steps in any case.
    """
    recurrence = agent.begin(agent.encode(problems), horizon)
    with torch.no_grad():
        state = machine.start(problems)
        states, choices, tokens = [state], [], []
        heard = torch.full_like(problems.stage, Token.CTX)
        kept: Tensor | None = None  # of the episodes running before the last step
        running: Tensor | None = None  # episodes, None for all of them
        watch = not past_end and problems.device.type == "cpu" and not torch.compiler.is_compiling()
        if seed is not None:
            steps = torch.arange(horizon, device=problems.device)[:, None]
            noise = random_uniform(seed, Purpose.ACTION, problems.number * MAX_HORIZON + steps)  # [T, B]
        for t in range(horizon):
            hidden = recurrence.step(heard, kept)
            drawn = None
            if seed is not None:
                drawn = noise[t] if running is None else noise[t].index_select(0, running)
            choice = agent.choose(hidden, drawn)
            heard = agent.actions.index_select(0, choice)
            choices.append(_spread(choice, running, problems.size, 0))
            tokens.append(_spread(heard, running, problems.size, PADDING))
            state = machine.step(state, tokens[-1])
            states.append(state)
            if not watch:
                continue
            done = state.done if running is None else state.done.index_select(0, running)
            kept = (~done).nonzero()[:, 0]
            if not len(kept):
                break
            if len(kept) == len(done):
                kept = None
                continue
            heard = heard.index_select(0, kept)
            running = kept if running is None else running.index_select(0, kept)
    mask = ~torch.stack([before.done for before in states[:-1]])
    return Rollout(problems, torch.stack(choices), torch.stack(tokens), mask, states, recurrence)


def _spread(values: Tensor, positions: Tensor | None, size: int, blank: int) -> Tensor:
    """``values`` at their positions among ``size``, ``blank`` elsewhere; as they are where no positions are given."""
    return values if positions is None else values.new_full((size,), blank).index_copy_(0, positions, values)


def visible_actions(rollout: Rollout) -> Tensor:
    """Tokens of the episodes, int64 ``[B, T]``, padded after their ends."""
    return rollout.tokens.masked_fill(~rollout.mask, PADDING).T
