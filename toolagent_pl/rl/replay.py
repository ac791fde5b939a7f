"""Success replay: what was solved against expectation is imitated again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toolagent_pl.rl.agent import Evaluation
from toolagent_pl.rl.algorithm import LossTerms
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import Env
from toolagent_pl.rl.random_numbers import Purpose, random_bits
from toolagent_pl.rl.rollout import Rollout

MAX_SIZE = 1 << 16


class Successes(NamedTuple):
    """``K`` episodes by their problems, which an environment makes again, and actions. int64.

    Attributes:
        number, stage: ``[K]``, of the problems.
        actions: ``[K, T]``, -1 after the end.
    """

    number: Tensor
    stage: Tensor
    actions: Tensor


class SuccessReplay:
    """Keeps episodes that were solved against expectation, and imitates some of them after each batch.

    An episode is kept if the critic expected less than ``below`` at its start; with an algorithm that needs no critic,
    if less than that share of its problem's samples was solved.

    Source: Oh et al., "Self-Imitation Learning", ICML 2018, equations 1 to 3: policy loss
    ``-log pi(a|s) (R - V(s))_+``, value loss ``(R - V(s))_+^2 / 2``. Without a critic V is 0.

    Args:
        size: Most episodes that are kept; the oldest are forgotten first.
        batch_size: Episodes that are imitated after a batch, over all devices.
        below: Expectation below which a success is worth keeping.
        coef: Weight of the policy loss.
        vf_coef: Weight of the critic's loss.

    Attributes:
        buffer: The episodes, oldest first; None before the first.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, size: int = 1024, batch_size: int = 256, below: float = 0.5, coef: float = 1.0, vf_coef: float = 0.01
    ) -> None:
        check_range(at_least=1, at_most=MAX_SIZE, size=size, batch_size=batch_size)
        check_range(at_least=0, coef=coef, vf_coef=vf_coef)
        check_range(above=0, at_most=1, below=below)
        self.size, self.batch_size, self.below, self.coef, self.vf_coef = size, batch_size, below, coef, vf_coef
        self.buffer: Successes | None = None

    def select(self, rollout: Rollout, with_critic: bool) -> Successes:
        """The episodes of a rollout that were solved against expectation."""
        if with_critic:
            assert rollout.value is not None
            expected = rollout.value[0]
        else:
            share = rollout.solved.float().view(-1, rollout.samples).mean(1)
            expected = share.repeat_interleave(rollout.samples)
        index = (rollout.solved & (expected < self.below)).nonzero()[:, 0]
        problems = rollout.problems
        return Successes(problems.number[index], problems.stage[index], rollout.visible_actions[index])

    def add(self, *found: Successes) -> None:
        """Keep episodes, in the order of their problems' numbers, and forget the oldest."""
        new = _joined(found)
        order = new.number.argsort(stable=True)
        new = Successes(*(x[order] for x in new))
        both = new if self.buffer is None else _joined([self.buffer, new])
        self.buffer = Successes(*(x[-self.size :] for x in both))

    def draw(self, env: Env, seed: int, batch: int, rank: int = 0, ranks: int = 1) -> tuple[Any, Tensor] | None:
        """A rank's part of what is imitated after a batch, drawn with replacement; None where nothing is kept.

        Returns:
            Problems, and actions int64 ``[T, K]``, 0 after the end of an episode.
        """
        if self.buffer is None or not len(self.buffer.actions):
            return None
        part = self.batch_size // ranks
        counter = batch * MAX_SIZE + rank * part + torch.arange(part, device=self.buffer.actions.device)
        index = random_bits(seed, Purpose.REPLAY, counter, bits=62) % len(self.buffer.actions)
        number, stage, actions = (x[index] for x in self.buffer)
        problems = env.problems(number, stage, seed, held_out=False)
        horizon = env.horizon(problems)
        return problems, F.pad(actions.clamp(min=0), (0, max(0, horizon - actions.shape[1])))[:, :horizon].T

    def loss(self, evaluation: Evaluation, returns: Tensor, mask: Tensor, with_critic: bool) -> LossTerms:
        """Both losses, weighted and summed over steps; ``replay_weight`` is the sum of ``(R - V)_+``.

        Args:
            returns: float32 ``[T, N]``.
            mask: bool ``[T, N]``, whether the episode was still running.
        """
        value = evaluation.value if with_critic and evaluation.value is not None else torch.zeros_like(returns)
        gap = (returns - value).clamp(min=0) * mask
        weight = gap.detach()
        return LossTerms(
            policy=self.coef * -(evaluation.log_prob * weight).sum(),
            value=self.vf_coef * 0.5 * gap.square().sum(),
            entropy=torch.zeros_like(weight.sum()),
            metrics={"replay_weight": weight.sum()},
        )

    def state_dict(self) -> dict[str, Any]:
        """What is kept, for a checkpoint."""
        return {} if self.buffer is None else self.buffer._asdict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over.

        Raises:
            ValueError: If it is not what ``state_dict`` returns.
        """
        if state and not (
            set(state) == set(Successes._fields)
            and all(isinstance(x, Tensor) and x.dtype == torch.int64 for x in state.values())
            and len({len(x) for x in state.values()}) == 1
        ):
            raise ValueError(f"replay: got {sorted(state)} in the checkpoint, expected {', '.join(Successes._fields)}")
        self.buffer = Successes(**state) if state else None

    def to(self, device: torch.device) -> None:
        """Move what is kept."""
        if self.buffer is not None:
            self.buffer = Successes(*(x.to(device) for x in self.buffer))


def _joined(parts: Sequence[Successes]) -> Successes:
    """One behind the other, padded to the longest."""
    longest = max(part.actions.shape[1] for part in parts)
    actions = [F.pad(part.actions, (0, longest - part.actions.shape[1]), value=-1) for part in parts]
    numbers, stages = ([getattr(part, name) for part in parts] for name in ("number", "stage"))
    return Successes(torch.cat(numbers), torch.cat(stages), torch.cat(actions))
