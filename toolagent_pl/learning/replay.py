"""Success replay: what was solved against expectation is imitated again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toolagent_pl.agents import Evaluation, Rollout
from toolagent_pl.envs import Env
from toolagent_pl.learning.algorithm import LossTerms, check_coefficients, check_shares
from toolagent_pl.problems import Problems
from toolagent_pl.randomness import Purpose, random_bits
from toolagent_pl.tools import Token

LARGEST_SIZE = 1 << 16
PADDING = {"prompt": int(Token.EOS), "places": -1}  # of the fields of Problems; 0 in the others


class Remembered(NamedTuple):
    """``K`` episodes: their problems, and actions int64 ``[K, T]``, positions in the agent's list of actions."""

    problems: Problems
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
        kept: The episodes, oldest first; None before the first.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self, size: int = 1024, batch_size: int = 256, below: float = 0.5, coef: float = 1.0, vf_coef: float = 0.01
    ) -> None:
        for option, value in {"size": size, "batch_size": batch_size}.items():
            if not 1 <= value <= LARGEST_SIZE:
                raise ValueError(f"model.replay.{option}: got {value}, expected at least 1 and at most {LARGEST_SIZE}")
        check_coefficients("replay", coef=coef, vf_coef=vf_coef)
        check_shares("replay", below=below)
        self.size, self.batch_size, self.below, self.coef, self.vf_coef = size, batch_size, below, coef, vf_coef
        self.kept: Remembered | None = None

    def worth_keeping(self, rollout: Rollout, with_critic: bool) -> Remembered:
        """The episodes of a rollout that were solved against expectation."""
        solved = rollout.outcome.correct
        if with_critic:
            assert rollout.value is not None
            expected = rollout.value[0]
        else:
            expected = solved.float().view(-1, rollout.samples).mean(1).repeat_interleave(rollout.samples)
        index = (solved & (expected < self.below)).nonzero()[:, 0]
        actions = rollout.actions.masked_fill(~rollout.mask, 0)
        return Remembered(rollout.problems.select(index), actions[:, index].T)

    def add(self, *found: Remembered) -> None:
        """Keep episodes, in the order of their problems' numbers, and forget the oldest."""
        new = _joined(found)
        order = new.problems.number.argsort(stable=True)
        new = Remembered(new.problems.select(order), new.actions[order])
        both = new if self.kept is None else _joined([self.kept, new])
        self.kept = Remembered(both.problems.select(slice(-self.size, None)), both.actions[-self.size :])

    def draw(self, env: Env[Any], seed: int, batch: int, rank: int = 0, ranks: int = 1) -> Remembered | None:
        """A rank's part of what is imitated after a batch, drawn with replacement; None where nothing is kept."""
        if self.kept is None or not len(self.kept.actions):
            return None
        part = self.batch_size // ranks
        counter = batch * LARGEST_SIZE + rank * part + torch.arange(part, device=self.kept.actions.device)
        index = random_bits(seed, Purpose.REPLAY, counter, bits=62) % len(self.kept.actions)
        problems, actions = self.kept.problems.select(index), self.kept.actions[index]
        return Remembered(problems, F.pad(actions, (0, env.horizon(problems) - actions.shape[1])))

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
        return {} if self.kept is None else {**self.kept.problems._asdict(), "actions": self.kept.actions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over.

        Raises:
            ValueError: If it is not what ``state_dict`` returns.
        """
        if not state:
            self.kept = None
            return
        names = (*Problems._fields, "actions")
        if set(state) != set(names) or not all(
            isinstance(x, Tensor) and x.dtype == torch.int64 for x in state.values()
        ):
            raise ValueError(f"ckpt_path: got a replay of {sorted(state)}, expected int64 tensors {sorted(names)}")
        if len({len(x) for x in state.values()}) > 1:
            raise ValueError("ckpt_path: got a replay of different numbers of problems and actions")
        self.kept = Remembered(Problems(*(state[name] for name in Problems._fields)), state["actions"])

    def to(self, device: torch.device) -> None:
        """Move what is kept."""
        if self.kept is not None:
            self.kept = Remembered(self.kept.problems.to(device), self.kept.actions.to(device))


def _joined(parts: Sequence[Remembered]) -> Remembered:
    """One behind the other, padded to the widest."""
    columns = zip(*(part.problems for part in parts), strict=True)
    fields = [_rows(column, PADDING.get(name, 0)) for name, column in zip(Problems._fields, columns, strict=True)]
    return Remembered(Problems(*fields), _rows([part.actions for part in parts], 0))


def _rows(parts: Sequence[Tensor], value: int) -> Tensor:
    """Tensors ``[K, W, ...]`` of different ``W`` as one."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    widest = max(part.shape[1] for part in parts)
    behind = [0] * (2 * (parts[0].dim() - 2))
    return torch.cat([F.pad(part, (*behind, 0, widest - part.shape[1]), value=value) for part in parts])
