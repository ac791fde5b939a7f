"""Rollouts: an agent acts on a machine, a whole batch of episodes at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from toolagent_pl.agents import Agent, Recurrence
from toolagent_pl.machines import Machine, MachineState
from toolagent_pl.problems import Problems
from toolagent_pl.randomness import Purpose, random_uniform
from toolagent_pl.tokens import PADDING, Token

MAX_HORIZON = 64  # draws of action noise that are set aside for each problem


class Rollout(NamedTuple):
    """``B`` episodes of at most ``T`` steps.

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

    def replay(self) -> Tensor:
        """The agent's states at each choice, ``[T, B, d]``, with gradients."""
        first = torch.full_like(self.tokens[:1], Token.CTX)
        return self.recurrence.replay(torch.cat([first, self.tokens[:-1]]))


def rollout(agent: Agent, machine: Machine, problems: Problems, horizon: int, seed: int | None = None) -> Rollout:
    """Let the agent act. No gradients are taken here, but for ``Rollout.replay`` where they are enabled.

    Args:
        horizon: Most actions in an episode, ``T``. Greedy episodes may end the rollout earlier, all of them.
        seed: Seed of the action noise, which is a function of (seed, number of the problem, step), so that it
            does not depend on how a batch is split. None chooses the likeliest action instead.
    """
    recurrence = agent.begin(agent.encode(problems), horizon)
    with torch.no_grad():
        heard = torch.full_like(problems.stage, Token.CTX)
        state = machine.start(problems)
        states, choices, tokens = [state], [], []
        if seed is not None:
            steps = torch.arange(horizon, device=problems.device)[:, None]
            noise = random_uniform(seed, Purpose.ACTION, problems.number * MAX_HORIZON + steps)  # [T, B]
        for t in range(horizon):
            log_policy = agent.log_policy(recurrence.step(heard))  # [B, A]
            if seed is None:
                choice = log_policy.contiguous().argmax(1)
            else:
                # Inverse transform sampling: how many cumulated probabilities lie below the noise.
                cumulated = log_policy.exp_().contiguous().cumsum(1)
                choice = (cumulated[:, :-1] < noise[t, :, None]).sum(1)
            heard = agent.actions.index_select(0, choice)
            choices.append(choice)
            tokens.append(heard)
            state = machine.step(state, heard)
            states.append(state)
            # To look at the states costs nothing on a CPU; a GPU would have to be waited for.
            if seed is None and problems.device.type == "cpu" and bool(state.done.all()):
                break
    mask = ~torch.stack([before.done for before in states[:-1]])
    return Rollout(problems, torch.stack(choices), torch.stack(tokens), mask, states, recurrence)


def visible_actions(rollout: Rollout) -> Tensor:
    """Tokens of the episodes, int64 ``[B, T]``, padded after their ends."""
    return rollout.tokens.masked_fill(~rollout.mask, PADDING).T
