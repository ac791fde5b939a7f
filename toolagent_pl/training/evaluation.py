"""The part of the module that acts greedily and is measured, in validation, test and prediction."""

import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.rewards import OutcomeReward, Reward, check_rewards
from toolagent_pl.rl.rollout import Rollout, collect
from toolagent_pl.training.acceleration import Acceleration
from toolagent_pl.training.metrics import StageResult, StageSums, log_metrics, result_metrics


class ActingModule(LightningModule):
    """An agent in its environment, which does not learn; ``ToolAgent`` has the arguments.

    Attributes:
        batches_seen: Training batches so far, the run's cursor: the problems that come next follow from it.
        last_results: What the last validation or test found.
    """

    def __init__(
        self,
        env: Env,
        agent: Callable[[Env], Agent] | None,
        reward: Reward | None,
        cuda_graphs: bool | None,
        compile_step: bool,
    ) -> None:
        super().__init__()
        env.check()
        self.env = env
        self.agent: Agent = (agent or pkgutil.resolve_name(env.default_agent))(env)
        self.reward = reward or OutcomeReward()
        self.reward.check_env(env)
        if self.agent.stage_conditioned and env.unseen:
            raise ValueError(f"unseen: got {list(env.unseen)}, expected none for an agent that is told the stage")
        self.acceleration = Acceleration(self, cuda_graphs, compile_step)
        self.batches_seen = 0
        self.last_results: list[StageResult] = []
        self.sums = StageSums(len(env.all_stages), ("tried", "correct", "steps", "reference"), ("reward",))

    @property
    def ranks(self) -> int:
        """How many ranks learn together."""
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    @property
    def has_reference(self) -> bool:
        """Whether the environment has plans that the agent's are compared with."""
        zero = torch.zeros(1, dtype=torch.int64)
        return self.env.reference_length(self.env.problems(zero, zero, 0, held_out=False)) is not None

    def mean_over_ranks(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all ranks."""
        if self.ranks == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)  # torch.compile can follow this, but not what Lightning wraps around it
        return total / self.ranks

    def paid(self, rollout: Rollout) -> Tensor:
        """What the episodes pay, float32 ``[T, N]``."""
        rewards = self.reward(self.env, rollout)
        if not torch.compiler.is_compiling():
            check_rewards(self.reward, rewards, rollout)
        return rewards

    def act(self, problems: Any) -> Rollout:
        """Greedy episodes."""
        return self.acceleration(self.greedy, problems)

    def greedy(self, problems: Any) -> Rollout:
        """Greedy episodes, without acceleration."""
        return collect(self.agent, self.env, problems)

    def evaluate(self, problems: Any) -> Rollout:
        """Solve a batch greedily, and count it in the metrics."""
        rollout = self.act(problems)
        reference = self.env.reference_length(problems)
        self.sums.update(
            problems.stage,
            tried=torch.ones_like(rollout.solved),
            correct=rollout.solved,
            steps=rollout.steps * rollout.solved,
            reference=rollout.solved if reference is None else reference * rollout.solved,
            reward=self.paid(rollout).sum(0),
        )
        return rollout

    def results(self) -> list[StageResult]:
        """What was evaluated since the last call, over all ranks; stages without problems are left out."""
        sums = {name: values.view(-1).tolist() for name, values in self.sums.compute().items()}
        self.sums.reset()
        found = []
        for i, name in enumerate(self.env.all_stages):
            tried, reference = sums["tried"][i], sums["reference"][i]
            if tried:
                length = sums["steps"][i] / reference if reference else float("nan")
                found.append(StageResult(name, tried, sums["correct"][i], length, sums["reward"][i] / tried))
        return found

    def _log_results(self, prefix: str) -> None:
        results = self.last_results = self.results()
        metrics = result_metrics(prefix, results)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.log_dict(metrics, rank_zero_only=True)  # which the command prints as a table
        elif not self.trainer.sanity_checking:
            log_metrics(self.trainer, metrics, self.batches_seen - 1)

    def validation_step(self, problems: Any, batch_idx: int) -> None:
        """Solve a batch greedily."""
        self.evaluate(problems)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, plan length and mean reward of each stage."""
        self._log_results("val")

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log accuracy, plan length and mean reward of each stage."""
        self._log_results("test")

    def predict_step(self, problems: Any, batch_idx: int) -> Rollout:
        """Greedy episodes."""
        return self.act(problems)
