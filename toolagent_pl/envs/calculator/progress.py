"""A reward for parts of a plan."""

import torch
from torch import Tensor

from toolagent_pl.envs.calculator.env import CalculatorEnv
from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.env import PADDING, Env
from toolagent_pl.rl.rewards import Reward, at_last_step
from toolagent_pl.rl.rollout import Rollout


class ProgressReward(Reward):
    """The outcome, and ``weight`` for each operator of the problem carried out on the right operands.

    Judged by structure, never by numbers, which may be equal by luck: the calculator computes which span of the tape a
    value covers, and an operator counts when it joins the two spans that it joins in the problem.

    With ``potential`` the last step pays back what the steps before were paid for operators, so that an episode pays
    its outcome in the end, and the best plans are those of ``OutcomeReward``. That is potential-based shaping, ``F =
    P(s') - P(s)`` without discount, of the potential P(s) = weight x operators carried out, 0 once an episode is over.
    Algorithms that see only what an episode pays as a whole (GRPO, RLOO) do not notice it.

    Source: Ng, Harada and Russell, "Policy Invariance under Reward Transformations", ICML 1999, theorem 1.

    Args:
        weight: Reward for each operator, at the step that carries it out.
        potential: Pay it back at the last step.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    def __init__(self, weight: float = 0.2, potential: bool = False) -> None:
        check_range(at_least=0, weight=weight)
        self.weight, self.potential = weight, potential

    def check_env(self, env: Env) -> None:
        """Refuse any environment but the calculator."""
        if not isinstance(env, CalculatorEnv):
            raise ValueError(f"reward: got ProgressReward with {type(env).__name__}, expected CalculatorEnv")

    def __call__(self, env: Env, rollout: Rollout) -> Tensor:
        """Reward of each step, float32 ``[T, N]``."""
        assert isinstance(env, CalculatorEnv)  # check_env saw to it
        completed = completed_subgoals(env, rollout.problems, rollout.actions.masked_fill(~rollout.mask, PADDING))
        at_the_end = rollout.solved.float()
        if self.potential:
            at_the_end = at_the_end - self.weight * completed.sum(0)
        return at_last_step(at_the_end, rollout) + self.weight * completed


def completed_subgoals(env: CalculatorEnv, problems: Problems, actions: Tensor) -> Tensor:
    """Whether each call carried out an operator of the problem on its own operands, bool ``[T, N]``.

    Args:
        actions: int64 ``[T, N]``; negative ones are padding.
    """
    width = problems.operands.shape[1]
    token, start, split, end = problems.tree.unbind(2)  # [N, M]
    if not token.shape[1]:
        return torch.zeros_like(actions, dtype=torch.bool)

    def span(first: Tensor, last: Tensor) -> Tensor:
        return first * (width + 1) + last

    lefts, rights = span(start, split), span(split, end)

    def join(tool: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Span of the operator that joins these spans, or -1 where the problem has none."""
        match = (token == tool[:, None]) & (lefts == left[:, None]) & (rights == right[:, None])
        joined = torch.where(match, span(start, end), -1).amax(1)
        return torch.where(tool.eq(0), left, joined)

    position = torch.arange(width, device=problems.device)
    leaves = span(position, position + 1).expand_as(problems.operands)
    state = env.reset(problems._replace(operands=leaves))
    # Compared with numbers: to copy a tensor of them in each update, a GPU would be waited for.
    operates = [actions == i for i, one in enumerate(env.tokens) if one in env.vocabulary.operators]
    completed = []
    for call, operate in zip(actions, torch.stack(operates).any(0), strict=True):
        before, state = state, env.step(state, call, combine=join)
        worked = (state.steps > before.steps) & (state.noops == before.noops)
        completed.append(worked & operate & (state.value >= 0))
    return torch.stack(completed)
