"""The LightningModule: an agent, the environment it acts in, the reward, and the algorithm that it learns by."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from toolagent_pl.rl.agent import Agent, Evaluation
from toolagent_pl.rl.algorithm import Advantages, Algorithm, LossTerms, check_advantages, check_terms, gae
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.rl.replay import SuccessReplay
from toolagent_pl.rl.rewards import Reward
from toolagent_pl.rl.rollout import Rollout, check_evaluation, collect
from toolagent_pl.rl.trees import tree_map
from toolagent_pl.rl.updates import (
    adapted_ent_coef,
    added,
    count_steps,
    minibatches,
    normalized,
    total_loss,
    training_metrics,
)
from toolagent_pl.training.checkpoints import agent_weights, check_weights, header_of, restored_header
from toolagent_pl.training.evaluation import ActingModule
from toolagent_pl.training.metrics import log_metrics
from toolagent_pl.training.ranks import gathered, unused_weights
from toolagent_pl.training.stream import MAX_BATCH


class ToolAgent(ActingModule):
    """An agent that learns by reinforcement.

    Args:
        env: Where it acts.
        agent: Makes it for the environment; null for the environment's default agent.
        reward: What episodes pay; null for 1 where the problem is solved.
        algorithm: What is learned from them; null for PPO.
        replay: What is imitated again after a batch; null for nothing.
        learning_rate: Of AdamW. The command line's ``--optimizer`` and ``--lr_scheduler`` replace it.
        betas: Of AdamW.
        weight_decay: Of AdamW, of the weights of linear layers; all others do not decay.
        max_grad_norm: Norm that gradients are clipped to; null for no clipping.
        accumulate: Parts that a minibatch is evaluated in, one after the other, to save memory. The gradient is that of
            the whole.
        weights: Checkpoint whose weights to start from; null for random ones.
        seed: Seed of the action noise.
        cuda_graphs: Capture what a GPU does in an update once, and replay it, instead of starting some thousand kernels
            one by one. null for where it is sure to change nothing and pays: on one GPU, with parts of this package
            alone, and batches that are not huge.
        compile_step: Compile rollout and loss with ``torch.compile``, on a GPU into CUDA graphs, too. It takes some
            minutes to begin with.

    Attributes:
        ent_coef: Weight of the entropy bonus now.
        ent_target: Entropy that it adapts to now; None for a fixed weight.
        step_cost: What each step costs now.
        downsample: Share of the episodes that are learned from now.
        settings: Options of the command line that decide what is learned, kept in checkpoints.
    """

    def __init__(
        self,
        env: Env,
        agent: Callable[[Env], Agent] | None = None,
        reward: Reward | None = None,
        algorithm: Algorithm | None = None,
        replay: SuccessReplay | None = None,
        learning_rate: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        accumulate: int = 1,
        weights: str | None = None,
        seed: int = 0,
        cuda_graphs: bool | None = None,
        compile_step: bool = False,
    ) -> None:
        super().__init__(env, agent, reward, cuda_graphs, compile_step)
        self.automatic_optimization = False
        check_range(above=0, learning_rate=learning_rate, max_grad_norm=max_grad_norm)
        check_range(at_least=0, weight_decay=weight_decay)
        check_range(at_least=1, at_most=MAX_BATCH, accumulate=accumulate)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: got {list(betas)}, expected two numbers of at least 0 and less than 1")
        self.algorithm, self.replay, self.accumulate, self.seed = algorithm or PPO(), replay, accumulate, seed
        if self.algorithm.needs_value and not self.agent.has_critic:
            parts = f"{type(self.algorithm).__name__} with {type(self.agent).__name__}"
            raise ValueError(f"algorithm: got {parts}, expected an agent with a critic")
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.max_grad_norm = max_grad_norm
        if weights is not None:
            self.agent.load_state_dict(agent_weights(weights, self.agent))
        self.reference = copy.deepcopy(self.agent).requires_grad_(False) if self.algorithm.needs_reference else None
        self.settings: Mapping[str, str] = {}
        self.ent_coef = torch.tensor(self.algorithm.ent_coef, dtype=torch.float64)
        self.ent_target, self.step_cost, self.downsample = self.algorithm.ent_target, 0.0, 1.0
        self._cost = torch.zeros(())  # step_cost on the device, where a captured graph reads it
        self.actions_taken = torch.zeros((), dtype=torch.int64)  # by all episodes of the last batch
        self._gradient_norm: Tensor | None = None  # of the update under way, before clipping
        self._unused: list[Tensor] | None = None  # weights that no loss uses; not known yet
        self._fused = True  # all weights in one kernel

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        learning = [weight for weight in self.parameters() if weight.requires_grad]
        linear = {layer.weight for layer in self.modules() if isinstance(layer, nn.Linear)}
        groups = [
            {"params": [weight for weight in learning if weight in linear], "weight_decay": self.weight_decay},
            {"params": [weight for weight in learning if weight not in linear], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=self._fused)

    def training_step(self, problems: Any, batch_idx: int) -> None:
        """Let the agent act, and learn from what it did: epochs times minibatches updates."""
        algorithm, logging = self.algorithm, self.is_logging_batch()
        self.ent_coef, self._cost = self.ent_coef.to(self.device), self._cost.to(self.device).fill_(self.step_cost)
        rollout, rewards, advantages = self.acceleration(self.collect, problems, copied=False)
        sums: list[LossTerms] = []
        counts: list[Tensor] = []
        chosen = partial(minibatches, rollout, advantages, algorithm.minibatches, self.downsample, self.seed)
        shares = (chosen(epoch) for epoch in range(algorithm.epochs))
        for rows in chain.from_iterable(shares):
            mask = rollout.mask.index_select(1, rows)
            count = self.mean_over_ranks(count_steps(algorithm, mask))
            part = Advantages(*(x.index_select(1, rows) for x in advantages))
            if algorithm.normalize_advantage == "minibatch":
                part = normalized(part, mask, self.mean_over_ranks)
            self._optimize(self._losses(rollout, rows, part, count, sums), parts=len(rows.chunk(self.accumulate)))
            counts.append(count)
            if self.ent_target is not None:
                entropy = self.mean_over_ranks(sums[-1].entropy.float()) / count
                self.ent_coef = adapted_ent_coef(self.ent_coef, entropy, self.ent_target)
            if algorithm.target_kl is not None:
                moved = self.mean_over_ranks(sums[-1].metrics["approx_kl"]) / count
                if float(moved) > algorithm.target_kl:
                    break
        self.actions_taken = rollout.steps.sum()
        metrics: dict[str, Tensor] = {}
        if logging:
            totals = added(sums), torch.stack(counts).sum(), self.mean_over_ranks
            metrics = training_metrics(self.env, algorithm, rollout, rewards, advantages, *totals)
        if self.replay is not None:
            metrics |= self._imitate(self.replay, rollout)
        if logging:
            self._log_update(metrics)
        self.batches_seen += 1

    def is_logging_batch(self) -> bool:
        """Whether metrics are logged in this batch."""
        return (self.batches_seen + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def collect(self, problems: Any) -> tuple[Rollout, Tensor, Advantages]:
        """A rollout, what it pays, and what is learned from it."""
        algorithm = self.algorithm
        rollout = collect(
            self.agent,
            self.env,
            problems,
            samples_per_problem=algorithm.samples_per_problem,
            seed=self.seed,
            continue_after_done=algorithm.continue_after_done,
        )
        if self.reference is not None:
            with torch.no_grad():
                rollout = rollout._replace(reference_log_prob=self.reference(rollout).log_prob)
        rewards = self.rewards(rollout)
        advantages = algorithm.advantages(rollout, rewards)
        if not torch.compiler.is_compiling():
            check_advantages(algorithm, advantages, rollout)
        if algorithm.normalize_advantage is True:
            advantages = normalized(advantages, rollout.mask, self.mean_over_ranks)
        return rollout, rewards, advantages

    def rewards(self, rollout: Rollout) -> Tensor:
        """What the episodes pay, less what steps cost, float32 ``[T, N]``."""
        return self.paid(rollout) - self._cost.to(rollout.mask.device) * rollout.mask

    def _losses(
        self, rollout: Rollout, rows: Tensor, advantages: Advantages, count: Tensor, sums: list[LossTerms]
    ) -> Iterator[Tensor]:
        """Losses of the parts of a minibatch; their terms are appended to ``sums``, as those of the whole."""
        parts = []
        learned = zip(*(x.chunk(self.accumulate, 1) for x in advantages), strict=True)
        for some, values in zip(rows.chunk(self.accumulate), learned, strict=True):
            arguments = rollout, some, Advantages(*values), count, self.ent_coef
            loss, terms = self.acceleration(self.minibatch_loss, *arguments)
            yield loss
            parts.append(terms)
        sums.append(added(parts))

    def minibatch_loss(
        self, rollout: Rollout, rows: Tensor, advantages: Advantages, count: Tensor, ent_coef: Tensor
    ) -> tuple[Tensor, LossTerms]:
        """The loss of a minibatch or a part of one, these episodes of a rollout, and its terms, detached."""
        chosen = rollout.select(rows)
        terms = self.algorithm.loss(self.evaluate_actions(chosen), chosen, advantages)
        if not torch.compiler.is_compiling():
            check_terms(self.algorithm, terms)
        loss, own = total_loss(self.algorithm, terms, ent_coef), self.agent.auxiliary_loss(chosen.problems)
        return (loss if own is None else loss + own) / count, tree_map(torch.detach, terms)

    def evaluate_actions(self, rollout: Rollout) -> Evaluation:
        """What the agent thinks of the actions of a rollout now."""
        if self.algorithm.continue_after_done:
            rollout = rollout._replace(mask=torch.ones_like(rollout.mask))
        evaluation: Evaluation = self.agent(rollout)
        check_evaluation(self.agent, evaluation, rollout)
        return evaluation

    def _imitate(self, replay: SuccessReplay, rollout: Rollout) -> dict[str, Tensor]:
        """Keep what is worth it, over all ranks, and one update from what is kept; returns its metrics."""
        with_critic = self.algorithm.needs_value
        replay.add(*gathered(replay.select(rollout, with_critic), self.ranks, self.device))
        drawn = replay.draw(self.env, self.seed, self.batches_seen, self.global_rank, self.ranks)
        if drawn is None:
            return {}
        norm = self._gradient_norm  # that of what was learned, and not of what is imitated, is logged
        again = collect(self.agent, self.env, drawn[0], actions=drawn[1])
        rewards = self.rewards(again)
        returns = gae(rewards, torch.zeros_like(rewards), again.mask, self.algorithm.gamma, 1.0).returns
        terms = replay.loss(self.evaluate_actions(again), returns, again.mask, with_critic)
        count = self.mean_over_ranks(again.mask.sum().float())
        self._optimize([(terms.policy + terms.value) / count])
        self._gradient_norm = norm
        assert replay.buffer is not None
        size = torch.tensor(float(len(replay.buffer.actions)))
        return {"train/replay_size": size, "train/replay_weight": terms.metrics["replay_weight"] / count}

    def _optimize(self, losses: Any, parts: int = 1) -> None:
        """One update from so many losses, whose gradients are added up; ranks meet at the last one."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self._gradient_norm = None
        for i, loss in enumerate(losses):
            together: Any = nullcontext()
            if self.ranks > 1:
                if self._unused is None:
                    self._unused = unused_weights(loss, self.parameters())
                # Ranks wait for the gradients of all weights: those that no loss uses get zeros.
                loss = loss + sum(0 * weight.sum() for weight in self._unused)
                if i < parts - 1:
                    together = self.trainer.strategy.block_backward_sync()  # type: ignore[attr-defined]
            with together:
                self.manual_backward(loss)
        optimizer.step()

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Norm of the gradients of all weights before clipping, a scalar; computed once in an update."""
        if self._gradient_norm is None:
            gradients = [weight.grad for weight in self.agent.parameters() if weight.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        return self._gradient_norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, which is unscaled by now."""
        norm = self.gradient_norm(optimizer)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.agent.parameters(), self.max_grad_norm, norm)

    @property
    def epoch_is_whole(self) -> bool:
        """Whether an epoch has come to its end: Lightning ends it, too, when a run is stopped in the middle of one."""
        count = self.trainer.num_training_batches
        return count == float("inf") or self.batches_seen % count == 0

    def on_train_epoch_end(self) -> None:
        """Move the learning rate, where there is a schedule."""
        if not self.epoch_is_whole:
            return
        for config in self.trainer.lr_scheduler_configs:
            monitor = getattr(config.scheduler, "monitor", "")  # of Lightning's ReduceLROnPlateau
            self.lr_scheduler_step(config.scheduler, self.trainer.callback_metrics.get(monitor))

    def setup(self, stage: str) -> None:
        """Begin to compile and capture."""
        self.acceleration.reset(running=True)
        self._fused = self.trainer.precision != "16-mixed"  # a fused Adam unscales gradients after they are clipped

    def on_fit_start(self) -> None:
        """Take what is imitated to the device; a ValueError if ranks cannot take equal parts of it."""
        if self.replay is not None:
            self.replay.to(self.device)
            if (size := self.replay.batch_size) % self.ranks:
                raise ValueError(f"replay.batch_size: got {size}, expected a multiple of {self.ranks}, the devices")

    def teardown(self, stage: str) -> None:
        """Forget what was compiled and captured: it can be neither copied nor sent to another process."""
        self.acceleration.reset()

    def _log_update(self, metrics: dict[str, Tensor]) -> None:
        optimizer: Any = self.optimizers()
        values = {**metrics, "train/gradient_norm": self.gradient_norm(optimizer), "train/ent_coef": self.ent_coef}
        stacked = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        means = self.mean_over_ranks(stacked).tolist()
        named = dict(zip(values, means, strict=True)) | {"train/learning_rate": optimizer.param_groups[0]["lr"]}
        log_metrics(self.trainer, named, self.batches_seen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the weights are weights of, and where the run is."""
        facts = {"stages": list(self.env.stages), "batches_seen": self.batches_seen, "ent_coef": float(self.ent_coef)}
        replay = {} if self.replay is None else {"replay": self.replay.state_dict()}
        checkpoint.update(header_of({**facts, "settings": dict(self.settings), **replay}))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a ValueError for weights of another program, of another format, or of an agent of other sizes."""
        header = restored_header(checkpoint)
        if self.agent.stage_conditioned and header["stages"] != list(self.env.stages):
            raise ValueError(f"stages: got {list(self.env.stages)}, expected {header['stages']} as in the checkpoint")
        check_weights(checkpoint.get("state_dict", {}), self.state_dict(), "ckpt_path")
        self.batches_seen = header["batches_seen"]
        self.ent_coef = torch.tensor(header["ent_coef"], dtype=torch.float64)
        if self.replay is not None:
            self.replay.load_state_dict(header.get("replay", {}))
