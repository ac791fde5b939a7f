"""The LightningModule: an agent, the machine it acts on, the reward, and the algorithm that it learns by."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from toolagent_pl.agents import ActorCritic, Agent
from toolagent_pl.curves import add_points
from toolagent_pl.learning.algorithms import A2C, Algorithm
from toolagent_pl.learning.losses import LossTerms
from toolagent_pl.learning.rollout import MAX_HORIZON, Rollout, rollout
from toolagent_pl.machines import CalculatorMachine, Machine, Outcome
from toolagent_pl.machines.rewards import OutcomeReward, Reward
from toolagent_pl.metrics import StageMean
from toolagent_pl.problems import Ladder, Problems
from toolagent_pl.tokens import Token

CHECKPOINT_KEY = "toolagent_pl"
LEAST_FOR_COMPILING = "2.11"  # versions before it cannot follow properties of named tuples
CHECKPOINT_FORMAT = 2


def check_origin(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that says where it comes from.

    Raises:
        ValueError: If that is not this program, or not this format.
    """
    header = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(header, dict):
        raise ValueError("ckpt_path: got a checkpoint of another program, expected one of toolagent_pl")
    if type(header.get("format")) is not int or header["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"ckpt_path: got a checkpoint of format {header.get('format')}, expected format {CHECKPOINT_FORMAT}"
        )
    return header


class Step(NamedTuple):
    """What comes out of the forward half of an update. Scalars on the device.

    Attributes:
        loss: With gradient.
        actions: int64, how many actions the episodes took.
        points: Of the curves; none where they were not asked for.
    """

    loss: Tensor
    actions: Tensor
    points: dict[str, Tensor]


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All weights; to look for them in the module takes longer, with its metrics."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


class ToolAgent(LightningModule):
    """Learns to call tools by reinforcement.

    Args:
        stages: Names of the stages, easiest first; with the command line, those of the data.
        agent: Makes the agent from the number of stages.
        machine: Executes the tools. Its step limit is the length of a rollout.
        reward: What episodes pay.
        algorithm: What is learned from them.
        learning_rate: Of Adam. The command line's ``--optimizer`` and ``--lr_scheduler`` replace Adam.
        seed: Seed of the action noise.
        compile_step: Compile rollout, loss and gradient with ``torch.compile``, on a GPU into CUDA graphs. It takes a
            minute or two to begin with, and pays where a GPU waits for its kernels to be started.

    Raises:
        ValueError: If the parts do not fit together, for example a step limit that no program of a stage
            fits into, or PyTorch is too old for ``compile_step``.
    """

    def __init__(
        self,
        stages: Sequence[str] = ("T0", "T1", "T2"),
        agent: Callable[[int], Agent] = ActorCritic,
        machine: Machine | None = None,
        reward: Reward | None = None,
        algorithm: Algorithm | None = None,
        learning_rate: float = 3e-3,
        seed: int = 0,
        compile_step: bool = False,
    ) -> None:
        super().__init__()
        self.ladder = Ladder(stages)
        self.agent = agent(len(self.ladder))
        self.machine: Machine = machine or CalculatorMachine(max_steps=12)
        self.reward = reward or OutcomeReward()
        self.algorithm = algorithm or A2C()
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"model.learning_rate: got {learning_rate}, expected a number of more than 0")
        self.learning_rate, self.seed, self.compile_step = learning_rate, seed, compile_step
        if compile_step and torch.__version__ < LEAST_FOR_COMPILING:
            here, least = torch.__version__, LEAST_FOR_COMPILING
            raise ValueError(f"model.compile_step: got true with PyTorch {here}, expected {least} or newer")
        self._check()
        self.actions_taken = torch.zeros((), dtype=torch.int64)  # by all episodes of the last update
        self._tools = [f"tools/{Token(token)}" for token in self.agent.actions.tolist()]
        self._compiled: dict[str, Callable[..., Step]] = {}  # by mode
        self._gradient_norm: Tensor | None = None  # of the update under way
        self._points: dict[str, Tensor] = {}  # of the curves, from the last update that is to be logged
        self.accuracy = StageMean(len(self.ladder))
        self.mean_reward = StageMean(len(self.ladder))

    def _check(self) -> None:
        """Refuse parts that cannot lead to a right run."""
        self.machine.check_ladder(self.ladder.stages)
        self.reward.check_machine(self.machine)
        limit = self.machine.max_steps
        self.horizon = limit or MAX_HORIZON
        if limit is None or limit > MAX_HORIZON:
            raise ValueError(f"model.machine.max_steps: got {limit}, expected a number up to {MAX_HORIZON}")
        allowed = {Token(token) for token in self.agent.actions.tolist()}
        for stage in self.ladder.stages:
            program = self.machine.shortest_program(stage)
            written = " ".join(map(str, program))
            if len(program) > limit:
                raise ValueError(
                    f"model.machine.max_steps: got {limit}, expected at least {len(program)}, "
                    f"the length of the shortest program of {stage.name} ({written})"
                )
            if missing := sorted(set(program) - allowed):
                raise ValueError(
                    f"model.agent.actions: got no {', '.join(map(str, missing))}, "
                    f"expected all of {written}, the shortest program of {stage.name}"
                )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, all weights in one kernel."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
        # Gradients that are clipped are unscaled before; Lightning refuses to clip with an optimizer that says
        # that it unscales them itself, in every mixed precision.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def training_step(self, problems: Problems, batch_idx: int) -> Tensor:
        """Roll out, score, and return the loss."""
        self._gradient_norm = None
        if self.compile_step:
            # Points cost next to nothing here, and a second variant of the step without them would take as long again.
            step = self._compiled_for(problems)(problems, with_points=True)
        else:
            step = self.learn(problems, with_points=self._is_logging_step())
        self.actions_taken, self._points = step.actions, step.points
        return step.loss

    def _compiled_for(self, problems: Problems) -> Callable[..., Step]:
        """``learn``, compiled anew in each fit: its graph holds on to the tables, weights and ranks of one."""
        # A CUDA graph overwrites its gradients when it runs again: they cannot be added up.
        mode = "reduce-overhead" if self.trainer.accumulate_grad_batches == 1 else "default"
        if mode not in self._compiled:
            rank_zero_info("Compiling the training step, which takes a minute or two.")
            self.learn(problems)  # machines and rewards make their tables: the compiler takes those as they are
            torch._dynamo.config.optimize_ddp = False  # which would cut it into a graph for each MB of weights
            self._compiled[mode] = torch.compile(self.learn, dynamic=False, mode=mode)
        return self._compiled[mode]

    def on_fit_start(self) -> None:
        """Forget what an earlier fit compiled."""
        self._compiled = {}

    def teardown(self, stage: str) -> None:
        """Forget what was compiled: it can be neither copied nor sent to another process."""
        self._compiled = {}

    def learn(self, problems: Problems, with_points: bool = False) -> Step:
        """Let the agent act, and compute the loss of what it did."""
        past_end = self.algorithm.past_end
        episodes = rollout(self.agent, self.machine, problems, self.horizon, self.seed, past_end)
        rewards = self.reward(self.machine, episodes.final, episodes.tokens)
        assert episodes.judgement is not None  # gradients are enabled where something is to be learned
        terms = self.algorithm(episodes, rewards, episodes.judgement, self._mean_over_ranks)
        points = self._training_points(episodes, rewards, terms) if with_points else {}
        return Step(terms.loss, episodes.final.steps.sum(), points)

    def _mean_over_ranks(self, tensor: Tensor) -> Tensor:
        ranks = self._trainer.world_size if self._trainer else 1
        if ranks == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)  # torch.compile can follow this, but not what Lightning wraps around it
        return total / ranks

    def _is_logging_step(self) -> bool:
        """Whether Lightning writes out what is logged in this step."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def _training_points(self, episodes: Rollout, rewards: Tensor, terms: LossTerms) -> dict[str, Tensor]:
        """The terms of the loss and what the agent did."""
        steps = episodes.final.steps.sum()
        calls = (episodes.tokens[..., None] == self.agent.actions) & episodes.mask[..., None]  # [T, B, A]
        return {
            "train/reward": rewards.sum(0).mean(),
            "train/accuracy": self.machine.outcome(episodes.final).correct.float().mean(),
            "train/loss": terms.loss.detach(),
            "train/policy_loss": terms.policy_loss.detach(),
            "train/value_loss": terms.value_loss.detach(),
            "train/entropy": terms.entropy.detach(),
            "train/episode_length": steps / episodes.problems.size,
            "train/idle_share": episodes.final.idle.sum() / steps,
            **dict(zip(self._tools, calls.sum((0, 1)) / steps, strict=True)),
        }

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Norm of the gradients of all weights, a scalar; computed once, when it is asked for before an update."""
        if self._gradient_norm is None:
            gradients = [weight.grad for weight in _weights(optimizer) if weight.grad is not None]
            self._gradient_norm = torch.nn.utils.get_total_norm(gradients)
        return self._gradient_norm

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does; with 32-true by the norm at hand."""
        largest = gradient_clip_val or 0.0
        by_norm = largest > 0 and gradient_clip_algorithm in (None, "norm")
        if by_norm and type(self.trainer.precision_plugin) is Precision:
            torch.nn.utils.clip_grads_with_norm_(_weights(optimizer), largest, self.gradient_norm(optimizer))
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add points to the curves; among them the norm of the gradient, before it is clipped."""
        if not self._is_logging_step():
            return
        points = {**self._points, "train/gradient_norm": self.gradient_norm(optimizer)}
        means = self._mean_over_ranks(torch.stack([value.float() for value in points.values()]))
        rate = optimizer.param_groups[0]["lr"]
        add_points(self.trainer, {**dict(zip(points, means.tolist(), strict=True)), "train/learning_rate": rate})

    def act(self, problems: Problems) -> Rollout:
        """Greedy episodes."""
        return rollout(self.agent, self.machine, problems, self.horizon)

    def evaluate(self, problems: Problems) -> Outcome:
        """Answer a batch greedily, and count it in the metrics."""
        episodes = self.act(problems)
        outcome = self.machine.outcome(episodes.final)
        self.accuracy.update(outcome.correct, problems.stage)
        self.mean_reward.update(self.reward(self.machine, episodes.final, episodes.tokens).sum(0), problems.stage)
        return outcome

    def results(self, prefix: str) -> dict[str, Tensor]:
        """Share of right answers and mean reward of each stage, over what was evaluated since the last call.

        Args:
            prefix: Of the names, ``val`` or ``test``.
        """
        # torchmetrics makes a scalar of a single stage.
        accuracies, rewards = self.accuracy.compute().view(-1), self.mean_reward.compute().view(-1)
        self.accuracy.reset()
        self.mean_reward.reset()
        found = {}
        for name, accuracy, reward in zip(self.ladder.names, accuracies, rewards, strict=True):
            found[f"{prefix}/{name}_accuracy"], found[f"{prefix}/{name}_reward"] = accuracy.float(), reward.float()
        return found

    def validation_step(self, problems: Problems, batch_idx: int) -> None:
        """Answer a batch greedily."""
        self.evaluate(problems)

    def on_validation_epoch_end(self) -> None:
        """Log the share of right answers and the mean reward of each stage."""
        self.log_dict(self.results("val"), rank_zero_only=True)

    def test_step(self, problems: Problems, batch_idx: int) -> None:
        """Answer a batch greedily."""
        self.evaluate(problems)

    def on_test_epoch_end(self) -> None:
        """Log the share of right answers and the mean reward of each stage."""
        self.log_dict(self.results("test"), rank_zero_only=True)

    def predict_step(self, problems: Problems, batch_idx: int) -> Rollout:
        """Greedy episodes, with all states of the machine along the way."""
        return self.act(problems)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the weights are weights of."""
        checkpoint[CHECKPOINT_KEY] = {"format": CHECKPOINT_FORMAT, "stages": list(self.ladder.names)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of something else.

        Raises:
            ValueError: If they are not of this program, of its format, or of an agent of these sizes.
        """
        header = check_origin(checkpoint)
        if header.get("stages") != list(self.ladder.names):
            raise ValueError(
                f"data.stages: got {list(self.ladder.names)}, expected {header.get('stages')} as in the checkpoint"
            )
        weights = checkpoint.get("state_dict", {})
        for name, parameter in self.state_dict().items():
            saved = list(weights[name].shape) if name in weights else "nothing"
            if saved != list(parameter.shape):
                raise ValueError(
                    f"ckpt_path: got a checkpoint with {saved} for {name}, expected {list(parameter.shape)}; "
                    "is it of another vocabulary or size? Its settings are in the config.yaml of its run"
                )
