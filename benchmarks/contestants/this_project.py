"""This project: its stream of problems, agent, machine, reward, rollout and loss, without the Trainer."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contestants import torch_weights
from benchmarks.contestants.contestant import (
    ACTIONS,
    ENTROPY_WEIGHT,
    LARGEST_NORM,
    LEARNING_RATE,
    SHOWN,
    STAGES,
    VALUE_WEIGHT,
    VOCABULARY,
    Contestant,
    Weights,
    initial_weights,
)
from toolagent_pl.agents import ActorCritic
from toolagent_pl.learning.algorithms import TutorialA2C
from toolagent_pl.learning.rollout import Rollout, rollout
from toolagent_pl.machines import TutorialMachine
from toolagent_pl.machines.rewards import TutorialReward
from toolagent_pl.problems import Ladder, Problems
from toolagent_pl.problems.stream import ProblemStream
from toolagent_pl.process import keep_freed_memory
from toolagent_pl.tokens import Token


def make(batch: int, stage: int, seed: int, d: int = 96) -> "ThisProject":
    """Build the contestant."""
    keep_freed_memory()  # as the command line does
    return ThisProject(batch, stage, seed, d)


class ThisProject(Contestant):
    """The public parts that ``ToolAgent`` puts together.

    Args:
        device: Where to compute.
        low: Precision of matrix products, as in Lightning's mixed precision; None for that of the weights.
        compiled: Compile all but the optimizer, on a GPU into CUDA graphs.
    """

    def __init__(
        self,
        batch: int,
        stage: int,
        seed: int,
        d: int,
        device: torch.device | str = "cpu",
        low: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.stage, self.seed, self.device, self.low = stage, seed, torch.device(device), low
        names = [str(Token(token)) for token in range(VOCABULARY)]
        self.agent = ActorCritic(STAGES, d, actions=names, context="batch").to(device)
        self.ladder = Ladder(["T0", "T1", "T2"]).to(device)
        self.machine = TutorialMachine(max_steps=ACTIONS)
        self.reward = TutorialReward()
        self.algorithm = TutorialA2C(VALUE_WEIGHT, ENTROPY_WEIGHT)
        self.stream = ProblemStream(self.ladder, seed, batch, batches=1, device=device)
        self.stream.mixture = [float(i == stage) for i in range(STAGES)]
        self.position = 0
        agent = self.agent
        self.parameters = torch_weights.named_parameters(
            agent.embedding, agent.stage_embedding, agent.gru, agent.policy, agent.value
        )
        self.load(initial_weights(d, seed))
        self.optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, fused=True)
        self.learn: Callable[[Problems], tuple[Tensor, Tensor]] = self._learn
        if compiled:
            self._learn(self.stream.batch(0))  # machine and reward make their tables
            self.learn = torch.compile(self._learn, dynamic=False, mode="reduce-overhead")

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        torch_weights.load(self.parameters, weights)

    def _learn(self, problems: Problems) -> tuple[Tensor, Tensor]:
        """Act; mean reward and loss of that."""
        return self._loss(rollout(self.agent, self.machine, problems, ACTIONS, self.seed, past_end=True))

    def _loss(self, episodes: Rollout) -> tuple[Tensor, Tensor]:
        """Mean reward and loss."""
        rewards = self.reward(self.machine, episodes.final, episodes.tokens)
        assert episodes.judgement is not None
        terms = self.algorithm(episodes, rewards, episodes.judgement, lambda x: x)
        return rewards.sum(0).mean(), terms.loss

    def update(self) -> tuple[Tensor, Tensor]:
        """Do one whole update."""
        problems = self.stream.batch(self.position)
        self.position += 1
        with torch.autocast(self.device.type, self.low, enabled=self.low is not None, cache_enabled=False):
            reward, loss = self.learn(problems)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.agent.parameters(), LARGEST_NORM)
        self.optimizer.step()
        return reward, loss.detach()

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients."""
        choices = torch.from_numpy(actions).T.to(self.device)  # all tokens are allowed, in order
        problems = self._problems(operands)
        _, loss = self._loss(rollout(self.agent, self.machine, problems, ACTIONS, past_end=True, choices=choices))
        return loss.item(), torch_weights.gradients(self.parameters, loss)

    def _problems(self, operands: np.ndarray) -> Problems:
        """The problems with these operands; their number within the stage is written by the operands shown."""
        shown = SHOWN[self.stage]
        index = torch.from_numpy(operands[:, :shown] @ 10 ** np.arange(shown)[::-1]).to(self.device)
        return self.ladder.problems(torch.arange(len(index), device=self.device), index * 0 + self.stage, index)
