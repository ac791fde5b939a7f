"""What an agent is, what it did in a batch of episodes, and what it thinks of that."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.envs import EnvSpec, Observation, Outcome
from toolagent_pl.graphs import is_recording
from toolagent_pl.problems import Problems

WORTH_WAITING = 2**17  # rows from which a GPU is waited for, to leave out ended episodes

Cache = Any  # a pytree of tensors whose first dimension is B


class Policy(NamedTuple):
    """What an agent decodes before an action.

    Attributes:
        logits: float ``[B, A]``, of the agent's actions.
        value: float ``[B]``, the expected return from here on; None for an agent without a critic.
    """

    logits: Tensor
    value: Tensor | None


class Evaluation(NamedTuple):
    """What an agent thinks of actions that were taken, float32 ``[T, N]`` each; 0 after the end of an episode.

    Attributes:
        log_prob: Log-probability of the action.
        entropy: Of the policy that it was drawn from, in nats.
        value: The expected return from here on; None for an agent without a critic.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor | None


class Rollout(NamedTuple):
    """A record of ``N`` episodes of at most ``T`` steps, detached: there is no graph in it.

    What stands where ``mask`` is false has no meaning.

    Attributes:
        problems: The problem of each episode; those of one problem's samples are neighbours.
        samples: How many episodes there are of each problem.
        observations: What the tools reported before each action, ``[T, N, ...]``.
        previous: int64 ``[T, N]``, tokens decoded before: CTX first, then the agent's own.
        actions: int64 ``[T, N]``, positions in the agent's list of actions.
        tokens: int64 ``[T, N]``, the same as tokens.
        mask: bool ``[T, N]``, whether the episode was still running.
        log_prob: float32 ``[T, N]``, of the actions when they were drawn.
        value: float32 ``[T, N]``, the expected return before each action; None for an agent without a critic.
        terminated, truncated: bool ``[N]``, how the episodes ended.
        idle: int64 ``[N]``, how many calls did not apply.
        outcome: How the episodes ended.
    """

    problems: Problems
    samples: int
    observations: Observation
    previous: Tensor
    actions: Tensor
    tokens: Tensor
    mask: Tensor
    log_prob: Tensor
    value: Tensor | None
    terminated: Tensor
    truncated: Tensor
    idle: Tensor
    outcome: Outcome

    def select(self, index: Tensor) -> "Rollout":
        """The episodes at ``index``."""

        def columns(x: Tensor | None) -> Any:
            return x if x is None else x.index_select(1, index)

        return Rollout(
            problems=Problems(*(x.index_select(0, index) for x in self.problems)),
            samples=self.samples,
            observations=Observation(*map(columns, self.observations)),
            previous=columns(self.previous),
            actions=columns(self.actions),
            tokens=columns(self.tokens),
            mask=columns(self.mask),
            log_prob=columns(self.log_prob),
            value=columns(self.value),
            terminated=self.terminated[index],
            truncated=self.truncated[index],
            idle=self.idle[index],
            outcome=Outcome(*(x.index_select(0, index) for x in self.outcome)),
        )


class Agent(nn.Module, ABC):
    """A network that reads a problem once and then decodes one action after another.

    Derive from it and name your class in the configuration. ``prefill`` and ``decode`` are all that it needs.

    Args:
        spec: The task; the command line fills it in.
        actions: Names of the tokens that may be chosen; the tools, ANS, STO and RCL without it.

    Attributes:
        actions: int64 ``[A]``, the tokens that may be chosen.
        told_stage: Whether the agent knows stages by their positions, and so can act only on those it is built for.
        most_digits: Digits of the largest operand that it can be told; None for an agent that reads any.
        has_critic: Whether it has values, which some algorithms need.
    """

    actions: Tensor
    told_stage = False
    most_digits: int | None = None
    has_critic = True

    def __init__(self, spec: EnvSpec, actions: Sequence[str] | None = None) -> None:
        super().__init__()
        self.spec = spec
        vocabulary = spec.vocabulary
        tokens = list(vocabulary.actions) if actions is None else vocabulary.tokens(actions)
        self.register_buffer("actions", torch.tensor(tokens), persistent=False)

    @abstractmethod
    def prefill(self, problems: Problems) -> Cache:
        """Read the problems.

        Returns:
            What decoding needs, a pytree of tensors whose first dimension is ``B``.
        """

    @abstractmethod
    def decode(self, cache: Cache, previous: Tensor, observation: Observation) -> tuple[Policy, Cache]:
        """Decide on one action for each problem.

        Args:
            cache: From ``prefill``, or from the ``decode`` before.
            previous: int64 ``[B]``, the token before: CTX first, then the agent's own.
            observation: What the tools report.
        """

    def forward(self, rollout: Rollout) -> Evaluation:
        """Evaluate actions that were taken, with gradients.

        This is right for every agent. It may be overridden by something faster that gives the same numbers.
        """
        cache, steps = self.prefill(rollout.problems), []
        for t, actions in enumerate(rollout.actions):
            observation = Observation(*(x[t] for x in rollout.observations))
            policy, cache = self.decode(cache, rollout.previous[t], observation)
            steps.append(evaluate(policy, actions))
        return masked(stacked(steps), rollout.mask)

    def after_update(self, learning_rate: float) -> None:
        """Keep weights where they belong, without gradients; called after each update.

        Args:
            learning_rate: Of the update.
        """

    def flop_per_token(self) -> float:
        """FLOP that training on one action takes at least: 6 for each weight, 2 forward and 4 backward.

        Source: Chowdhery et al., "PaLM", 2022, appendix B.
        """
        return 6.0 * sum(p.numel() for p in self.parameters() if p.ndim > 1)


def may_wait(device: torch.device, rows: int) -> bool:
    """Whether it pays to learn how many episodes go on, so as to leave out the others.

    A GPU has to be waited for to learn that, and cannot be while its kernels are recorded.
    """
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or (rows >= WORTH_WAITING and not is_recording(device))


def evaluate(policy: Policy, actions: Tensor) -> Evaluation:
    """Log-probability of actions and entropy, in float32.

    Args:
        policy: ``[B, A]``.
        actions: int64 ``[B]``, positions in the list of actions.
    """
    # The actions come first: along rows of six numbers log_softmax takes three times as long, with its gradient.
    log_probs = F.log_softmax(policy.logits.float().movedim(-1, 0).contiguous(), 0)
    entropy = -(log_probs.exp() * log_probs).sum(0)
    log_prob = log_probs.gather(0, actions[None])[0]
    return Evaluation(log_prob, entropy, None if policy.value is None else policy.value.float())


def stacked(steps: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of ``T`` steps, ``[N]`` each, as one of ``[T, N]``."""
    log_prob, entropy, value = zip(*steps, strict=True)
    return Evaluation(torch.stack(log_prob), torch.stack(entropy), None if value[0] is None else torch.stack(value))


def masked(evaluation: Evaluation, mask: Tensor) -> Evaluation:
    """The evaluation with 0 where ``mask`` is false, whatever stands there."""
    return Evaluation(*(None if x is None else torch.where(mask, x, 0) for x in evaluation))  # type: ignore[arg-type]
