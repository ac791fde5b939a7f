"""The LightningModule: an agent, the environment it acts in, the reward, and the algorithm that it learns by."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from toolagent_pl.agents import Agent, BlindAgent, Evaluation, Rollout
from toolagent_pl.agents.agent import WORTH_WAITING
from toolagent_pl.checkpoint_io import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KEY,
    AtomicCheckpointIO,
    batches_seen,
    check_origin,
)
from toolagent_pl.envs import CalculatorEnv, Env, EnvSpec, Outcome
from toolagent_pl.graphs import Recordings, can_record, is_recording
from toolagent_pl.learning import A2C, Advantages, Algorithm, LossTerms, OutcomeReward, Reward, SuccessReplay
from toolagent_pl.learning.algorithm import check_advantages, check_terms, gae
from toolagent_pl.learning.replay import Remembered
from toolagent_pl.learning.rewards import check_rewards
from toolagent_pl.learning.rollout import check_evaluation, collect, collect_and_evaluate
from toolagent_pl.metrics import StageResult, StageSums, log_metrics, result_metrics
from toolagent_pl.problems import Problems, Stage, Stages
from toolagent_pl.problems.stream import LARGEST_BATCH
from toolagent_pl.randomness import Purpose, random_bits
from toolagent_pl.tools import TOOLS, Token, find_tools

LEAST_FOR_COMPILING = "2.11"  # versions before it cannot follow properties of named tuples
ENT_COEF_RATE = 1.02  # factor by which the entropy's weight moves in an update, where it is steered
ENT_COEF_RANGE = (1e-4, 0.22)
ROUNDING = 1e-6  # of a variance, over the mean square that it is the difference of

T = TypeVar("T")


class Update(NamedTuple):
    """The forward half of an update. Scalars on the device.

    Attributes:
        loss: With gradient.
        actions: int64, how many actions the episodes took.
        entropy: Mean over steps and ranks.
        metrics: Of the curves; none where they were not asked for.
    """

    loss: Tensor
    actions: Tensor
    entropy: Tensor
    metrics: dict[str, Tensor]


def _added(terms: Sequence[LossTerms]) -> LossTerms:
    """The sums over several parts, without gradients."""
    policy, value, entropy = (torch.stack([t[i].detach() for t in terms]).sum() for i in range(3))  # type: ignore[union-attr]
    metrics = {name: torch.stack([t.metrics[name].detach() for t in terms]).sum() for name in terms[0].metrics}
    return LossTerms(policy, value, entropy, metrics)


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All weights; to look for them in the module takes longer, with its metrics."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def without_gradient(loss: Tensor, weights: Iterable[Tensor]) -> list[Tensor]:
    """Those of the weights that a loss gives no gradient."""
    found, pending = set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending += [function for function, _ in node.next_functions]
    reached = {id(node.variable) for node in found if hasattr(node, "variable")}
    return [weight for weight in weights if weight.requires_grad and id(weight) not in reached]


class ToolAgent(LightningModule):
    """Learns to call tools by reinforcement.

    Args:
        stages: The stages, easiest first; with the command line, those of the data.
        unseen: Stages to be tested on, and never trained on; those of the data, too.
        tools: What expressions are made of: MUL, ADD, SUB, or paths of tools of your own; those of the data, too.
        agent: Makes the agent for a task.
        env: Executes the tools.
        reward: What episodes pay.
        algorithm: What is learned from them.
        replay: What is imitated again after a batch; null for nothing.
        learning_rate: Of Adam. The command line's ``--optimizer`` and ``--lr_scheduler`` replace Adam.
        betas: Of Adam.
        max_grad_norm: Norm that gradients are clipped to; null for no clipping.
        accumulate: Parts that a minibatch is evaluated in, one after the other, to save memory. The gradient is that of
            the whole.
        weights: Checkpoint whose weights to start from; null for random ones.
        seed: Seed of the action noise.
        cuda_graphs: Record what a GPU does in an update once, and replay it, instead of starting some thousand kernels
            one by one. null for where it is sure to change nothing and pays: on one GPU, with parts and tools of this
            package alone, and batches that are not huge.
        compile_step: Compile rollout and loss with ``torch.compile``, on a GPU into CUDA graphs, too. It takes some
            minutes to begin with.

    Attributes:
        batches_seen: Training batches so far, the run's cursor: the problems that come next follow from it.
        ent_coef: Weight of the entropy bonus now.
        ent_target: Entropy that it is steered to now; None for a fixed weight.
        step_cost: What each step costs now.
        settings: Options of the command line that decide what is learned, kept in checkpoints.

    Raises:
        ValueError: If the parts do not fit together, for example a step limit that no plan of a stage
            fits into, or PyTorch is too old for ``compile_step``.
    """

    def __init__(
        self,
        stages: Sequence[str | Stage] = ("T0", "T1", "T2"),
        unseen: Sequence[str | Stage] = (),
        tools: Sequence[str] = ("MUL", "ADD", "SUB"),
        agent: Callable[[EnvSpec], Agent] = BlindAgent,
        env: Env | None = None,
        reward: Reward | None = None,
        algorithm: Algorithm | None = None,
        replay: SuccessReplay | None = None,
        learning_rate: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        max_grad_norm: float | None = 1.0,
        accumulate: int = 1,
        weights: str | None = None,
        seed: int = 0,
        cuda_graphs: bool | None = None,
        compile_step: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stages = Stages([*stages, *unseen], find_tools(tools))
        self.trained_stages = len(stages)
        self.env: Env = (env or CalculatorEnv(max_steps=12, feedback="none")).with_tools(self.stages.vocabulary.tools)
        self.agent = agent(self.env.spec(self.trained_stages))
        self.reward = reward or OutcomeReward()
        self.algorithm = algorithm or A2C()
        self.replay = replay
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"model.learning_rate: got {learning_rate}, expected a number of more than 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"model.betas: got {list(betas)}, expected two numbers of at least 0 and less than 1")
        if max_grad_norm is not None and not 0 < max_grad_norm < float("inf"):
            raise ValueError(f"model.max_grad_norm: got {max_grad_norm}, expected a number of more than 0, or null")
        if not 1 <= accumulate <= LARGEST_BATCH:
            raise ValueError(f"model.accumulate: got {accumulate}, expected at least 1 and at most {LARGEST_BATCH}")
        self.betas = betas
        self.learning_rate, self.max_grad_norm, self.accumulate = learning_rate, max_grad_norm, accumulate
        self.seed, self.cuda_graphs, self.compile_step = seed, cuda_graphs, compile_step
        self._check()
        if weights is not None:
            self._start_from(weights)
        self.settings: Mapping[str, str] = {}
        self.batches_seen = 0
        self.ent_coef = torch.tensor(self.algorithm.ent_coef, dtype=torch.float64)
        self.ent_target, self.step_cost = self.algorithm.ent_target, 0.0
        self.actions_taken = torch.zeros((), dtype=torch.int64)  # by all episodes of the last batch
        self._gradient_norm: Tensor | None = None  # of the update under way, before clipping
        self._unused: list[Tensor] | None = None  # weights that no loss uses; not known yet
        self._tools = [f"tools/{self.env.vocabulary.name(token)}" for token in self.agent.actions.tolist()]
        self._compiled: dict[str, Callable[..., Any]] = {}  # functions by their names
        self._recordings = Recordings(self)
        self._one_by_one: set[str] = set()  # functions that could not be recorded
        self._longest_prompt = 0  # of the stages that are trained on, where that matters
        self._cost: Tensor | None = None  # step_cost as a tensor: a graph would hold on to a number
        self.last_results: list[StageResult] = []
        self.sums = StageSums(len(self.stages), ("tried", "correct", "steps", "textbook"), ("reward",))

    def _check(self) -> None:
        """Refuse parts that cannot lead to a right run."""
        self.env.check(self.stages, self.agent.actions.tolist())
        self.reward.check_env(self.env)
        most = self.agent.most_digits
        for stage in self.stages.stages:
            if most is not None and stage.digits > most:
                raise ValueError(
                    f"data.stages: got {stage.name} with {stage.digits} digits, expected {most} for "
                    f"{type(self.agent).__name__}, which is told operands and does not read them"
                )
        if self.agent.told_stage and self.trained_stages < len(self.stages):
            unseen = list(self.stages.names[self.trained_stages :])
            raise ValueError(f"data.unseen: got {unseen}, expected none for an agent that is told the stage")
        if self.algorithm.needs_value and not self.agent.has_critic:
            algorithm, agent = type(self.algorithm).__name__, type(self.agent).__name__
            raise ValueError(f"model.algorithm: got {algorithm} with {agent}, expected an agent with a critic")
        here, least = torch.__version__, LEAST_FOR_COMPILING
        if self.compile_step and here < least:
            raise ValueError(f"model.compile_step: got true with PyTorch {here}, expected {least} or newer")

    @property
    def _single_pass(self) -> bool:
        """Whether a batch is learned from once, as a whole."""
        return self.algorithm.epochs == self.algorithm.minibatches == self.accumulate == 1 and self.replay is None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, all weights in one kernel."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, betas=self.betas, fused=True)

    def training_step(self, problems: Problems, batch_idx: int) -> None:
        """Let the agent act, and learn from what it did: one update or several."""
        logging = self.is_logging_batch()
        if self.compile_step or (can_record(self.device) and self.may_replay):
            self.ent_coef = self.ent_coef.to(self.device)
            self._cost = torch.zeros((), device=self.device) if self._cost is None else self._cost
            self._cost.fill_(self.step_cost)
        if self.compile_step:
            problems = self._prepare_to_compile(problems)
        if self._single_pass:
            # With a compiled step, metrics cost next to nothing, and a second variant would take as long to compile.
            update = self._run(self.learn, problems, self.ent_coef, logging or self.compile_step)
            self._optimize([update.loss])
            self._steer(update.entropy)
        else:
            update = self._learn_in_parts(problems, logging)
        self.actions_taken = update.actions
        if logging:
            self._log_update(update.metrics)
        self.batches_seen += 1

    def is_logging_batch(self) -> bool:
        """Whether metrics are logged in this batch."""
        return (self.batches_seen + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def learn(self, problems: Problems, ent_coef: Tensor, with_metrics: bool = False) -> Update:
        """Let the agent act, and compute the loss of what it did as a whole."""
        if type(self.agent).forward is Agent.forward:
            # It would decode each step again, to the same numbers: what was recorded while acting will do.
            rollout, evaluation = collect_and_evaluate(self.agent, self.env, problems, **self._collect_options)
        else:
            rollout = collect(self.agent, self.env, problems, **self._collect_options)
            evaluation = self.evaluate_actions(rollout)
        rewards = self.rewards(rollout)
        advantages = self._advantages(rollout, rewards, normalize=bool(self.algorithm.normalize_advantage))
        terms = self._loss(evaluation, rollout, advantages)
        count = self._mean_over_ranks(self._count(rollout.mask))
        entropy = self._mean_over_ranks(terms.entropy.detach().float()) / count
        metrics = self._training_metrics(rollout, rewards, advantages, terms, count) if with_metrics else {}
        return Update(self._total(terms, ent_coef) / count, rollout.outcome.steps.sum(), entropy, metrics)

    def _learn_in_parts(self, problems: Problems, logging: bool) -> Update:
        """Several updates from one rollout, or one whose gradient is accumulated."""
        algorithm = self.algorithm
        rollout, rewards, advantages = self._run(self._collect, problems, copied=False)
        sums: list[LossTerms] = []
        counts = []
        for epoch in range(algorithm.epochs):
            for rows in self._minibatches(rollout, epoch):
                mask = rollout.mask.index_select(1, rows)
                count = self._mean_over_ranks(self._count(mask))
                counts.append(count)
                learned = Advantages(*(x.index_select(1, rows) for x in advantages))
                if algorithm.normalize_advantage == "minibatch":
                    learned = self._normalized(learned, mask)
                losses = self._losses(rollout, rows, learned, count, sums)
                self._optimize(losses, parts=len(rows.chunk(self.accumulate)))
                self._steer(self._mean_over_ranks(sums[-1].entropy.float()) / count)
                if algorithm.target_kl is not None:
                    moved = self._mean_over_ranks(sums[-1].metrics["approx_kl"]) / count
                    if float(moved) > algorithm.target_kl:
                        break
            else:
                continue
            break
        count = torch.stack(counts).sum()
        terms = _added(sums)
        entropy = self._mean_over_ranks(terms.entropy.float()) / count
        metrics = self._training_metrics(rollout, rewards, advantages, terms, count) if logging else {}
        if self.replay is not None:
            metrics |= self._imitate(self.replay, rollout)
        return Update(terms.policy, rollout.outcome.steps.sum(), entropy, metrics)

    def _collect(self, problems: Problems) -> tuple[Rollout, Tensor, Advantages]:
        """A rollout, what it pays, and what is learned from it."""
        rollout = collect(self.agent, self.env, problems, **self._collect_options)
        rewards = self.rewards(rollout)
        normalize = self.algorithm.normalize_advantage is True
        return rollout, rewards, self._advantages(rollout, rewards, normalize)

    @property
    def _collect_options(self) -> dict[str, Any]:
        return {
            "samples_per_problem": self.algorithm.samples_per_problem,
            "seed": self.seed,
            "continue_after_done": self.algorithm.continue_after_done,
        }

    def _losses(
        self, rollout: Rollout, rows: Tensor, advantages: Advantages, count: Tensor, sums: list[LossTerms]
    ) -> Iterator[Tensor]:
        """Losses of the parts of a minibatch; their terms are appended to ``sums``, as those of the whole."""
        parts = []
        learned = zip(*(x.chunk(self.accumulate, 1) for x in advantages), strict=True)
        for some, values in zip(rows.chunk(self.accumulate), learned, strict=True):
            loss, terms = self._run(self._minibatch_loss, rollout, some, Advantages(*values), count, self.ent_coef)
            yield loss
            parts.append(terms)
        sums.append(_added(parts))

    def _minibatch_loss(
        self, rollout: Rollout, rows: Tensor, advantages: Advantages, count: Tensor, ent_coef: Tensor
    ) -> tuple[Tensor, LossTerms]:
        """The loss of a minibatch or a part of one, these episodes of a rollout, and its terms."""
        chosen = rollout.select(rows)
        terms = self._loss(self.evaluate_actions(chosen), chosen, advantages)
        return self._total(terms, ent_coef) / count, tree_map_only(Tensor, torch.detach, terms)

    def _imitate(self, replay: SuccessReplay, rollout: Rollout) -> dict[str, Tensor]:
        """Keep what is worth it, over all ranks, and one update from what is kept; returns its metrics."""
        with_critic = self.algorithm.needs_value
        replay.add(*self._from_all_ranks(replay.worth_keeping(rollout, with_critic)))
        drawn = replay.draw(self.env, self.seed, self.batches_seen, self.global_rank, self._ranks)
        if drawn is None:
            return {}
        again = collect(self.agent, self.env, drawn.problems, actions=drawn.actions.T)
        rewards = self.rewards(again)
        returns = gae(rewards, torch.zeros_like(rewards), again.mask, self.algorithm.gamma, 1.0).returns
        terms = replay.loss(self.evaluate_actions(again), returns, again.mask, with_critic)
        count = self._mean_over_ranks(again.mask.sum().float())
        self._optimize([(terms.policy + terms.value) / count])
        assert replay.kept is not None
        size = torch.tensor(float(len(replay.kept.actions)))
        return {"train/replay_size": size, "train/replay_weight": terms.metrics["replay_weight"] / count}

    def _from_all_ranks(self, found: Remembered) -> list[Remembered]:
        if self._ranks == 1:
            return [found]
        parts: list[Any] = [None] * self._ranks
        torch.distributed.all_gather_object(parts, (found.problems.to("cpu"), found.actions.cpu()))
        return [Remembered(problems.to(self.device), actions.to(self.device)) for problems, actions in parts]

    def evaluate_actions(self, rollout: Rollout) -> Evaluation:
        """What the agent thinks of the actions of a rollout now, checked."""
        if self.algorithm.continue_after_done:
            rollout = rollout._replace(mask=torch.ones_like(rollout.mask))
        evaluation = self.agent(rollout)
        check_evaluation(self.agent, evaluation, rollout)
        return evaluation

    def rewards(self, rollout: Rollout) -> Tensor:
        """What the episodes pay, float32 ``[T, N]``."""
        rewards = self._paid(rollout)
        if self._cost is not None and (torch.compiler.is_compiling() or is_recording(self.device)):
            return rewards - self._cost * rollout.mask
        return rewards - self.step_cost * rollout.mask if self.step_cost else rewards

    def _paid(self, rollout: Rollout) -> Tensor:
        """What the reward says, checked."""
        rewards = self.reward(self.env, rollout)
        if not torch.compiler.is_compiling():
            check_rewards(self.reward, rewards, rollout)
        return rewards

    def _loss(self, evaluation: Evaluation, rollout: Rollout, advantages: Advantages) -> LossTerms:
        """What the algorithm says, checked."""
        terms = self.algorithm.loss(evaluation, rollout, advantages)
        if not torch.compiler.is_compiling():
            check_terms(self.algorithm, terms)
        return terms

    def _advantages(self, rollout: Rollout, rewards: Tensor, normalize: bool) -> Advantages:
        """What the algorithm says, checked."""
        advantages = self.algorithm.advantages(rollout, rewards)
        if not torch.compiler.is_compiling():
            check_advantages(self.algorithm, advantages, rollout)
        return self._normalized(advantages, rollout.mask) if normalize else advantages

    def _normalized(self, advantages: Advantages, mask: Tensor) -> Advantages:
        values = advantages.advantages
        sums = torch.stack([mask.sum(), values.sum(), values.square().sum()])
        count, total, squares = self._mean_over_ranks(sums.double() if sums.device.type == "cpu" else sums)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        normalized = ((values - mean) / (deviation + 1e-8)).float() * mask
        return Advantages(normalized, advantages.returns)

    def _count(self, mask: Tensor) -> Tensor:
        """How many steps count, float32."""
        return (torch.ones_like(mask) if self.algorithm.continue_after_done else mask).sum().float()

    def _total(self, terms: LossTerms, ent_coef: Tensor) -> Tensor:
        return terms.policy + self.algorithm.vf_coef * terms.value - ent_coef.float() * terms.entropy

    def _minibatches(self, rollout: Rollout, epoch: int) -> list[Tensor]:
        """Which episodes each minibatch takes: of neighbouring problems one each, in random order.

        So ranks take equal parts of each minibatch, and a minibatch is the same however many ranks there are.
        """
        count, samples = self.algorithm.minibatches, rollout.samples
        number = rollout.problems.number[::samples]
        if count == 1:
            return [torch.arange(len(rollout.idle), device=number.device)]
        if len(number) % count:
            raise ValueError(
                f"data.batch_size: got {len(number)} problems on a rank, expected a multiple of "
                f"model.algorithm.minibatches, {count}"
            )
        keys = random_bits(self.seed, Purpose.MINIBATCH, number * 1024 + epoch, bits=62)
        order = keys.view(-1, count).argsort(1)
        problem = order + torch.arange(len(order), device=number.device)[:, None] * count
        episodes = problem[..., None] * samples + torch.arange(samples, device=number.device)
        return [episodes[:, k].flatten() for k in range(count)]

    def _optimize(self, losses: Any, parts: int = 1) -> None:
        """One update from so many losses, whose gradients are added up; ranks meet at the last one."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self._gradient_norm = None
        last = parts - 1
        for i, loss in enumerate(losses):
            together: Any = nullcontext()
            if i < last and self._ranks > 1:
                together = self.trainer.strategy.block_backward_sync()  # type: ignore[attr-defined]
            with together:
                self.manual_backward(self._with_all_weights(loss) if self._ranks > 1 else loss)
        optimizer.step()
        self.agent.after_update(optimizer.param_groups[0]["lr"])

    def _with_all_weights(self, loss: Tensor) -> Tensor:
        """The same loss. Several ranks wait for the gradients of all weights: those that it does not use get zeros.

        So do the weights of a critic that the algorithm has no use for.
        """
        if self._unused is None:
            self._unused = without_gradient(loss, self.parameters())
        return loss + 0 * torch.stack([weight.sum() for weight in self._unused]).sum() if self._unused else loss

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Norm of the gradients of all weights before clipping, a scalar; computed once in an update."""
        if self._gradient_norm is None:
            gradients = [weight.grad for weight in _weights(optimizer) if weight.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        return self._gradient_norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, which is unscaled by now."""
        norm = self.gradient_norm(optimizer)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(_weights(optimizer), self.max_grad_norm, norm)

    def _steer(self, entropy: Tensor) -> None:
        """Move the weight of the entropy bonus towards the target, by a factor, on the device.

        In the manner of soft actor-critic's temperature (Haarnoja et al., 2018, section 5).
        """
        if self.ent_target is not None:
            factor = torch.where(entropy < self.ent_target, ENT_COEF_RATE, 1 / ENT_COEF_RATE)
            self.ent_coef = (self.ent_coef.to(factor.device) * factor).clamp(*ENT_COEF_RANGE)

    @property
    def epoch_is_whole(self) -> bool:
        """Whether an epoch has come to its end: Lightning ends it, too, when a run is stopped in the middle of one.

        Nothing may come of that, since the run goes on with the rest of the epoch when it is resumed.
        """
        count = self.trainer.num_training_batches
        return count == float("inf") or self.batches_seen % count == 0

    def on_train_epoch_end(self) -> None:
        """Move the learning rate, where there is a schedule."""
        if not self.epoch_is_whole:
            return
        schedulers = self.lr_schedulers() or []
        for config in schedulers if isinstance(schedulers, list) else [schedulers]:
            if isinstance(config, torch.optim.lr_scheduler.ReduceLROnPlateau):
                config.step(self.trainer.callback_metrics[config.monitor])  # type: ignore[attr-defined]
            else:
                config.step()

    def _prepare_to_compile(self, problems: Problems) -> Problems:
        """The batch as wide as every other, so that one graph serves them all; before the first, what graphs need."""
        first = not self._compiled
        if first:
            rank_zero_info("Compiling the training step, which takes some minutes.")
            torch._dynamo.config.optimize_ddp = False  # which would cut it into a graph for each MB of weights
            trained = self.stages.stages[: self.trained_stages]
            self._longest_prompt = Stages(trained, self.stages.vocabulary.tools).longest_prompt
        beyond = self._longest_prompt - problems.prompt.shape[1]
        problems = problems._replace(prompt=F.pad(problems.prompt, (0, beyond), value=int(Token.EOS)))
        if first:
            with torch.no_grad():
                self.learn(problems, self.ent_coef)  # environments make their tables: they are taken as they are
        return problems

    def _run(self, function: Callable[..., T], *arguments: Any, copied: bool = True) -> T:
        """What the function returns; compiled or replayed, where that was asked for, anew in each fit.

        A graph holds on to the tables, weights and ranks of one fit. Replayed on a GPU, it writes its results over
        those of its last call, so they are copied, unless they are not needed any more by then.
        """
        if not self.compile_step:
            return self._replay(function, *arguments, copied=copied)
        name = function.__name__
        if name not in self._compiled:
            self._compiled[name] = torch.compile(function, dynamic=False, mode="reduce-overhead")
        return tree_map_only(Tensor, torch.clone, self._compiled[name](*arguments))

    @property
    def may_replay(self) -> bool:
        """Whether a GPU may replay its kernels: where it is alone, and parts read nothing but constants and tensors.

        Without being told, that is known of the parts of this package.
        """
        if self.cuda_graphs is not None:
            return self.cuda_graphs
        parts = (self.agent, self.env, self.reward, self.algorithm)
        own = all(type(part).__module__.startswith("toolagent_pl.") for part in parts)
        return own and set(self.stages.vocabulary.tools) <= set(TOOLS) and self._ranks == 1

    def _replay(self, function: Callable[..., T], *arguments: Any, copied: bool = True) -> T:
        """What the function returns, by the kernels of its second call, where that may be done and pays."""
        name = function.__name__
        if not can_record(self.device) or not self.may_replay or name in self._one_by_one:
            return function(*arguments)
        huge = self.cuda_graphs is None and len(tree_leaves(arguments)[0]) >= WORTH_WAITING
        # Outside of a run the weights might be moved.
        if huge or self._trainer is None or self._trainer.state.status != TrainerStatus.RUNNING:
            return function(*arguments)
        try:
            return self._recordings(function, *arguments, copied=copied)
        except RuntimeError as error:
            no_memory = isinstance(error, torch.OutOfMemoryError)
            if not no_memory and "captur" not in str(error):
                raise
            reason = "there is no memory for a recording" if no_memory else f"what {name} calls waits for the GPU"
            reason = f"{reason} ({str(error).splitlines()[0]})"
            if self.cuda_graphs:
                raise ValueError(f"model.cuda_graphs: got true, but {reason}") from error
            rank_zero_warn(f"Kernels are started one by one, since {reason}.")
            self._one_by_one.add(name)
            return function(*arguments)

    def on_fit_start(self) -> None:
        """Forget what an earlier fit compiled and recorded.

        Raises:
            ValueError: If kernels are to be replayed where there is no GPU, or several.
        """
        self._compiled, self._recordings, self._cost = {}, Recordings(self), None
        if self.cuda_graphs and (not can_record(self.device) or self._ranks > 1):
            raise ValueError(
                f"model.cuda_graphs: got true on {self._ranks} devices of type {self.device.type}, expected one GPU"
            )

    def on_train_start(self) -> None:
        """Have gradients unscaled before they are clipped; fused optimizers say that they do it themselves, later.

        Raises:
            ValueError: If ranks cannot take equal parts of what is imitated.
        """
        if self.replay is not None:
            self.replay.to(self.device)
            if self.replay.batch_size % self._ranks:
                raise ValueError(
                    f"model.replay.batch_size: got {self.replay.batch_size} with {self._ranks} devices, "
                    "expected a multiple of their number"
                )
        for optimizer in self.trainer.optimizers:
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """Forget what was compiled and recorded: it can be neither copied nor sent to another process."""
        self._compiled, self._recordings = {}, Recordings(self)

    @property
    def _ranks(self) -> int:
        """How many ranks learn together; one without a trainer."""
        return self._trainer.world_size if self._trainer else 1

    def _mean_over_ranks(self, tensor: Tensor) -> Tensor:
        if self._ranks == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)  # torch.compile can follow this, but not what Lightning wraps around it
        return total / self._ranks

    def _training_metrics(
        self, rollout: Rollout, rewards: Tensor, advantages: Advantages, terms: LossTerms, count: Tensor
    ) -> dict[str, Tensor]:
        """The terms of the loss and what the agent did, to be averaged over ranks."""
        steps = rollout.outcome.steps.sum()
        calls = (rollout.tokens[..., None] == self.agent.actions) & rollout.mask[..., None]  # [T, N, A]
        named = {"policy_loss": terms.policy, "value_loss": terms.value, "entropy": terms.entropy, **terms.metrics}
        critic = {}
        if self.algorithm.needs_value and not self.algorithm.continue_after_done:
            critic["train/explained_variance"] = self._explained_variance(rollout, advantages.returns)
        return {
            **critic,
            "train/reward": rewards.sum(0).mean(),
            "train/accuracy": rollout.outcome.correct.float().mean(),
            "train/truncated": rollout.truncated.float().mean(),
            **{f"train/{name}": (value.detach() / count) for name, value in named.items()},
            "train/episode_length": steps / len(rollout.idle),
            "train/idle_share": rollout.idle.sum() / steps,
            **dict(zip(self._tools, calls.sum((0, 1)) / steps, strict=True)),
        }

    def _explained_variance(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """``1 - Var(R - V) / Var(R)`` over all steps and ranks; 0 where all returns are the same."""
        assert rollout.value is not None
        mask = rollout.mask
        returns, error = returns * mask, (returns - rollout.value) * mask
        sums = [mask.sum(), returns.sum(), returns.square().sum(), error.sum(), error.square().sum()]
        stacked = torch.stack(sums)
        count, total, squares, off, off_squares = self._mean_over_ranks(
            stacked.double() if stacked.device.type == "cpu" else stacked
        )
        variance = squares / count - (total / count).square()
        left = off_squares / count - (off / count).square()
        return torch.where(variance > ROUNDING * squares / count, 1 - left / variance, 0.0)

    def _log_update(self, metrics: dict[str, Tensor]) -> None:
        optimizer: Any = self.optimizers()
        values = {**metrics, "train/gradient_norm": self.gradient_norm(optimizer), "train/ent_coef": self.ent_coef}
        stacked = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        means = self._mean_over_ranks(stacked).tolist()
        rate = optimizer.param_groups[0]["lr"]
        named = {**dict(zip(values, means, strict=True)), "train/learning_rate": rate}
        log_metrics(self.trainer, named, self.batches_seen)

    def act(self, problems: Problems) -> Rollout:
        """Greedy episodes."""
        return self._replay(self._act, problems)

    def _act(self, problems: Problems) -> Rollout:
        return collect(self.agent, self.env, problems)

    def evaluate(self, problems: Problems) -> Outcome:
        """Answer a batch greedily, and count it in the metrics."""
        rollout = self.act(problems)
        outcome = rollout.outcome
        self.sums.update(
            problems.stage,
            tried=torch.ones_like(outcome.correct),
            correct=outcome.correct,
            steps=outcome.steps * outcome.correct,
            textbook=problems.textbook_length * outcome.correct,
            reward=self._paid(rollout).sum(0),
        )
        return outcome

    def results(self) -> list[StageResult]:
        """What was evaluated since the last call, over all ranks; stages without problems are left out."""
        sums = {name: values.view(-1).tolist() for name, values in self.sums.compute().items()}
        self.sums.reset()
        found = []
        for i, name in enumerate(self.stages.names):
            tried, textbook = sums["tried"][i], sums["textbook"][i]
            if tried:
                length = sums["steps"][i] / textbook if textbook else float("nan")
                found.append(StageResult(name, tried, sums["correct"][i], length, sums["reward"][i] / tried))
        return found

    def _log_results(self, prefix: str) -> None:
        results = self.last_results = self.results()
        metrics = result_metrics(prefix, results)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.log_dict(metrics, rank_zero_only=True)  # which the command prints as a table
        elif not self.trainer.sanity_checking:
            log_metrics(self.trainer, metrics, self.batches_seen - 1)

    def validation_step(self, problems: Problems, batch_idx: int) -> None:
        """Answer a batch greedily."""
        self.evaluate(problems)

    def on_validation_epoch_end(self) -> None:
        """Log the share of right answers, the length of plans and the mean reward of each stage."""
        self._log_results("val")

    def test_step(self, problems: Problems, batch_idx: int) -> None:
        """Answer a batch greedily."""
        self.evaluate(problems)

    def on_test_epoch_end(self) -> None:
        """Log the share of right answers, the length of plans and the mean reward of each stage."""
        self._log_results("test")

    def predict_step(self, problems: Problems, batch_idx: int) -> Rollout:
        """Greedy episodes."""
        return self.act(problems)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the weights are weights of, and where the run is."""
        checkpoint[CHECKPOINT_KEY] = {
            "format": CHECKPOINT_FORMAT,
            "stages": list(self.stages.names[: self.trained_stages]),
            "batches_seen": self.batches_seen,
            "ent_coef": float(self.ent_coef),
            "settings": dict(self.settings),
        }
        if self.replay is not None:
            checkpoint[CHECKPOINT_KEY]["replay"] = self.replay.state_dict()

    def _start_from(self, path: str) -> None:
        """Take over the weights of a checkpoint.

        Raises:
            ValueError: If there is none, or not of an agent of these sizes.
        """
        try:
            checkpoint = AtomicCheckpointIO().load_checkpoint(Path(path).expanduser())
            check_origin(checkpoint)
        except (OSError, ValueError) as error:
            raise ValueError(f"model.weights: got {path}, expected a whole checkpoint of toolagent_pl") from error
        self._check_weights(checkpoint["state_dict"], "model.weights")
        self.load_state_dict(checkpoint["state_dict"])

    def _check_weights(self, weights: Mapping[str, Tensor], option: str) -> None:
        for name, parameter in self.state_dict().items():
            saved = list(weights[name].shape) if name in weights else "nothing"
            if saved != list(parameter.shape):
                raise ValueError(
                    f"{option}: got a checkpoint with {saved} for {name}, expected {list(parameter.shape)}; "
                    "is it of another agent or size? Its settings are in the config.yaml of its run"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of something else.

        Raises:
            ValueError: If they are not of this program, of its format, or of an agent of these sizes.
        """
        header = check_origin(checkpoint)
        names = list(self.stages.names[: self.trained_stages])
        if self.agent.told_stage and header.get("stages") != names:
            raise ValueError(f"data.stages: got {names}, expected {header.get('stages')} as in the checkpoint")
        self._check_weights(checkpoint.get("state_dict", {}), "ckpt_path")
        ent_coef = header.get("ent_coef")
        if type(ent_coef) is not float or not 0 <= ent_coef < float("inf"):
            raise ValueError(f"ckpt_path: got ent_coef {ent_coef!r} in the checkpoint, expected a number")
        self.batches_seen = batches_seen(checkpoint)
        self.ent_coef = torch.tensor(ent_coef, dtype=torch.float64)
        if self.replay is not None:
            self.replay.load_state_dict(header.get("replay", {}))
