"""This project: its stream of problems, agent, machine, reward, rollout and loss, without the Trainer."""

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
from toolagent_pl.machines import TutorialMachine, execute
from toolagent_pl.machines.rewards import TutorialReward
from toolagent_pl.memory import keep_freed_memory
from toolagent_pl.problems import Ladder, Problems
from toolagent_pl.problems.stream import ProblemStream
from toolagent_pl.tokens import Token


def make(batch: int, stage: int, seed: int, d: int = 96) -> "ThisProject":
    """Build the contestant."""
    keep_freed_memory()  # as the command line does
    return ThisProject(batch, stage, seed, d)


class ThisProject(Contestant):
    """The public parts that ``ToolAgent`` puts together."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        self.stage, self.seed = stage, seed
        names = [str(Token(token)) for token in range(VOCABULARY)]
        self.agent = ActorCritic(STAGES, d, actions=names, context="batch")
        self.ladder = Ladder(["T0", "T1", "T2"])
        self.machine = TutorialMachine(max_steps=ACTIONS)
        self.reward = TutorialReward()
        self.algorithm = TutorialA2C(VALUE_WEIGHT, ENTROPY_WEIGHT)
        self.stream = ProblemStream(self.ladder, seed, batch, batches=1)
        self.stream.mixture = [float(i == stage) for i in range(STAGES)]
        self.position = 0
        agent = self.agent
        self.parameters = torch_weights.named_parameters(
            agent.embedding, agent.stage_embedding, agent.gru, agent.policy, agent.value
        )
        self.load(initial_weights(d, seed))
        self.optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, fused=True)

    def load(self, weights: Weights) -> None:
        """Take over these weights."""
        torch_weights.load(self.parameters, weights)

    def _loss(self, episodes: Rollout) -> tuple[Tensor, Tensor]:
        """Mean reward and loss."""
        rewards = self.reward(self.machine, episodes.final, episodes.tokens)
        terms = self.algorithm(episodes, rewards, *episodes.judge(self.agent), lambda x: x)
        return rewards.sum(0).mean(), terms.loss

    def update(self) -> tuple[Tensor, Tensor]:
        """Do one whole update."""
        problems = self.stream.batch(self.position)
        self.position += 1
        reward, loss = self._loss(rollout(self.agent, self.machine, problems, ACTIONS, self.seed, True))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.agent.parameters(), LARGEST_NORM)
        self.optimizer.step()
        return reward, loss.detach()

    def loss_and_gradients(self, operands: np.ndarray, actions: np.ndarray) -> tuple[float, Weights]:
        """Loss of given episodes and its gradients."""
        problems = self._problems(operands)
        tokens = torch.from_numpy(actions).T.contiguous()
        states = execute(self.machine, problems, tokens.T)
        recurrence = self.agent.begin(self.agent.encode(problems), ACTIONS)
        recurrence.step(torch.full_like(tokens[0], Token.CTX))
        for heard in tokens[:-1]:
            recurrence.step(heard)
        episodes = Rollout(
            problems=problems,
            choices=tokens,  # all tokens are allowed, in order
            tokens=tokens,
            mask=~torch.stack([state.done for state in states[:-1]]),
            states=list(states),
            recurrence=recurrence,
        )
        _, loss = self._loss(episodes)
        return loss.item(), torch_weights.gradients(self.parameters, loss)

    def _problems(self, operands: np.ndarray) -> Problems:
        """The problems with these operands; their number within the stage is written by the operands shown."""
        shown = SHOWN[self.stage]
        index = torch.from_numpy(operands[:, :shown] @ 10 ** np.arange(shown)[::-1])
        return self.ladder.problems(torch.arange(len(index)), torch.full_like(index, self.stage), index)
