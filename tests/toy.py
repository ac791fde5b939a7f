"""A world of a few lines, of its own: a room with a key and a door. Whoever sees the key but once must remember it."""

from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from toolagent_pl.rl.env import Env, VectorObservation, keep_ended
from toolagent_pl.rl.random_numbers import Purpose, random_bits
from toolagent_pl.training.data import ProblemDataModule

WALL = 2  # coordinates of a room of 5 x 5 run from -2 to 2; the door is in the middle, where episodes begin
MOVES = torch.tensor([[0, 1], [0, -1], [-1, 0], [1, 0]])


class Keys(NamedTuple):
    number: Tensor
    stage: Tensor
    key: Tensor  # [B, 2], where it lies


class RoomState(NamedTuple):
    key: Tensor
    position: Tensor
    has_key: Tensor
    terminated: Tensor
    truncated: Tensor
    steps: Tensor
    limit: Tensor


class Room(Env):
    """Fetch the key, which lies off in one of four directions, and come back to the door, without a detour.

    Args:
        stages: ``near`` and ``far``, or one of them.
        shown: Show where the key lies at every step, and not only at the first.
        masked: Forbid steps into walls; and the first step up or down, which is never needed.
    """

    actions = ("up", "down", "left", "right")

    def __init__(self, stages=("near", "far"), shown=False, masked=False):
        self.stages, self.shown, self.masked = tuple(stages), shown, masked

    def problems(self, number, stage, seed, *, held_out):
        width = torch.tensor([1 + (name == "far") for name in self.all_stages])[stage]
        corner = random_bits(seed, Purpose.PROBLEM, number, bits=2)
        right, above = corner % 2 * 2 - 1, corner // 2 * 2 - 1
        return Keys(number, stage, torch.stack([right * width, above], 1))

    def reset(self, problems):
        no = torch.zeros_like(problems.number, dtype=torch.bool)
        return RoomState(problems.key, problems.key * 0, no, no, no, no.long(), self.reference_length(problems))

    def step(self, state, action):
        position = (state.position + MOVES[action.clamp(min=0)]).clamp(-WALL, WALL)
        has_key = state.has_key | (position == state.key).all(1)
        terminated = has_key & (position == 0).all(1)
        steps = state.steps + 1
        truncated = (steps >= state.limit) & ~terminated
        after = state._replace(
            position=position, has_key=has_key, terminated=terminated, truncated=truncated, steps=steps
        )
        return keep_ended(state, after, action)

    def observe(self, state):
        seen = torch.ones_like(state.has_key) if self.shown else state.steps == 0
        told = torch.cat([state.position, state.has_key[:, None], state.key * seen[:, None]], 1)
        return VectorObservation(told.float())

    def action_mask(self, state):
        if not self.masked:
            return None
        there = state.position[:, None] + MOVES
        allowed = there.abs().amax(2) <= WALL
        allowed[:, :2] &= (state.steps > 0)[:, None]
        return allowed

    def solved(self, state):
        return state.terminated

    def horizon(self, problems):
        return 2 * (WALL + 1)

    def reference_length(self, problems):
        return 2 * problems.key.abs().sum(1)


def fit(module, batches, batch_size=64, callbacks=(), **options):
    """Train for so many batches, in one epoch of a trainer that writes nothing."""
    data = ProblemDataModule(module.env, batch_size=batch_size, batches_per_epoch=batches, val_problems=8)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, limit_val_batches=0, log_every_n_steps=1,
        callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def greedy(module, count=400, stage=0):
    """The share of fresh problems of a stage that are solved."""
    number = torch.arange(10**6, 10**6 + count)
    return float(
        module.act(module.env.problems(number, torch.full_like(number, stage), 1, held_out=True)).solved.float().mean()
    )


class Unmeasured(Room):
    """A room of which nobody says how far it is."""

    def reference_length(self, problems):
        return None
