"""A small environment: count to a number, then stop. And a trainer for it that prints nothing."""

from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from toolagent_pl.rl.env import Env, VectorObservation, keep_ended
from toolagent_pl.rl.random_numbers import Purpose, random_below
from toolagent_pl.training import ProblemDataModule, ToolAgent
from toolagent_pl.training.checkpoint_callback import Checkpoint

UP, STOP = range(2)
MOST = 10


class Numbers(NamedTuple):
    number: Tensor
    stage: Tensor
    target: Tensor


class Count(NamedTuple):
    target: Tensor
    count: Tensor
    terminated: Tensor
    truncated: Tensor
    steps: Tensor


class Counting(Env):
    """Stage ``low`` has the numbers below 3, ``middle`` those below 6, ``high`` those below 9."""

    actions = ("up", "stop")

    def __init__(self, stages=("low", "middle", "high"), unseen=()):
        self.stages, self.unseen = tuple(stages), tuple(unseen)

    def size(self, stage):
        return 3 * (stage + 1)

    def problems(self, number, stage, seed, *, held_out):
        return Numbers(number, stage, random_below(seed, Purpose.PROBLEM, number, 3 * (stage + 1)))

    def enumerated(self, number, stage):
        return Numbers(number, stage, number)

    def horizon(self, problems):
        return MOST

    def reset(self, problems):
        nothing = torch.zeros_like(problems.target)
        return Count(problems.target, nothing, nothing > 0, nothing > 0, nothing)

    def observe(self, state):
        return VectorObservation(torch.stack([state.target, state.count], 1).float())

    def step(self, state, action):
        steps = state.steps + 1
        after = Count(state.target, state.count + (action == UP), action == STOP, steps >= MOST, steps)
        return keep_ended(state, after, action)

    def solved(self, state):
        return state.terminated & (state.count == state.target)


class Measured(Counting):
    """With the length of the shortest plan."""

    def reference_length(self, problems):
        return problems.target + 1


def trainer(*callbacks, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    quiet["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in callbacks)
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **options})


def module(env=None, kind=ToolAgent, **options) -> ToolAgent:
    torch.manual_seed(0)
    return kind(env or Counting(), **options)


def data(env=None, **options) -> ProblemDataModule:
    return ProblemDataModule(
        env or Counting(), **{"batch_size": 8, "batches_per_epoch": 1, "val_problems": 8, **options}
    )
