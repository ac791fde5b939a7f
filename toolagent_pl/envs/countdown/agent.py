"""Agents that see values: each pair of numbers, and what is left besides, by their Fourier features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.envs.countdown.env import OPERATIONS, CountdownEnv, Observation, pairs
from toolagent_pl.envs.countdown.problems import EMPTY, MULTIPLIER, Problems, ascending
from toolagent_pl.rl.agent import MASKED, Agent, Evaluation, Policy, evaluate
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.random_numbers import Purpose, random_uniform
from toolagent_pl.rl.rollout import Rollout, can_sync

MAX_SIZE = 4096
HIGHEST = torch.pi, 300.0  # frequencies, of a number and of its logarithm: enough to tell 99 from 100
NOISE = 0.1  # of the initial weights, over what aligns frequencies
SURE = 8.0  # log-odds of an outcome that is seen


class FourierFeatures(nn.Module):
    """Fixed features of numbers: sines and cosines of the number and of its logarithm, ``[U, size]``.

    With those of a number, a product of features of two numbers has features of their sum and difference; with those of
    the logarithm, of their product and quotient.
    """

    frequencies: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        k = torch.arange(frequencies)
        drawn = [random_uniform(seed, Purpose.PROBLEM, k).double() * most for seed, most in enumerate(HIGHEST)]
        self.register_buffer("frequencies", torch.stack(drawn), persistent=False)
        self.waves = 2 * frequencies
        self.size = 2 * self.waves + 4

    def forward(self, x: Tensor) -> Tensor:
        """Features of numbers ``[U]``; 0 has the logarithm of a half."""
        x = x.double()[:, None]  # float32 would not do for angles of large numbers
        log = x.clamp(min=0.5).log()
        angles = (torch.stack([x, log], 1) * self.frequencies).flatten(1).remainder(2 * torch.pi).float()
        coarse = torch.cat([x.eq(0), x.eq(1), (x / 100).clamp(max=4), log / 4], 1).float()
        return torch.cat([angles.cos(), angles.sin(), coarse], 1)


class PairScorer(nn.Module):
    """What each operation on each pair of ``n`` numbers is worth.

    The inputs of a pair are products of linear features: of its numbers, of the target and all other numbers, and of
    both. To begin with, unit k has one frequency in all factors, so that it knows sums of all of them up to the signs:
    a strong bias towards arithmetic that is built in, and not learned.
    """

    columns: Tensor

    def __init__(self, numbers: int, features: FourierFeatures, width: int, hidden: int) -> None:
        super().__init__()
        # Of the smaller one, the larger one, the target, and the others.
        factors = [nn.Linear(features.size, width) for _ in range(numbers + 1)]
        self.factors = nn.ModuleList(factors)
        self.look = nn.Linear(3 * width, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.policy = nn.Linear(hidden, OPERATIONS)
        self.value = nn.Linear(2 * hidden, 1)
        columns = [[*pair, numbers, *(k for k in range(numbers) if k not in pair)] for pair in pairs(numbers)]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)  # [P, n + 1]
        unit = torch.arange(width)
        with torch.no_grad():
            for layer in factors:
                phase = 2 * torch.pi * torch.rand(width)
                layer.weight.normal_(0, NOISE * (2 / features.size) ** 0.5)
                layer.weight[unit, unit % features.waves] += 2**0.5 * phase.cos()
                layer.weight[unit, features.waves + unit % features.waves] += 2**0.5 * phase.sin()
                layer.bias.zero_()
            self.policy.weight.mul_(0.1)
            self.value.weight.mul_(0.1)

    def forward(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[M, P, 4]`` and values ``[M]``; ``index`` ``[M, n + 1]`` says which of ``features`` ``[U, F]``."""
        factors = [layer(features)[index[:, self.columns[:, k]]] for k, layer in enumerate(self.factors)]  # [M, P, m]
        pair, rest = factors[0] * factors[1], factors[2]
        for factor in factors[3:]:
            rest = rest * factor
        x = self.look(torch.cat([pair, rest, pair * rest], 2)).relu()
        x = self.mix(x).relu()
        return self.policy(x), self.value(torch.cat([x.mean(1), x.amax(1)], 1))[:, 0]


class CountdownAgent(Agent):
    """Scores each pair and operation by the two numbers, the target, and the other numbers.

    Args:
        env: The environment.
        frequencies: Of Fourier features, of each kind.
        width: Of the products of features.
        hidden: Width of the layers.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(self, env: CountdownEnv, frequencies: int = 32, width: int = 256, hidden: int = 256) -> None:
        super().__init__(env)
        check_range(at_least=1, at_most=MAX_SIZE, frequencies=frequencies, width=width, hidden=hidden)
        self.width, self.features = env.width, FourierFeatures(frequencies)
        self.scorers = nn.ModuleList(PairScorer(n, self.features, width, hidden) for n in range(2, env.width + 1))

    def prefill(self, problems: Problems) -> Tensor:
        """Nothing is read: all that there is to know comes as observations; ``[B, 0]``."""
        return problems.numbers[:, :0]

    def decode(self, cache: Tensor, previous: Tensor, observation: Observation) -> tuple[Policy, Tensor]:
        """Judge what is seen."""
        return self.judge(observation), cache

    def forward(self, rollout: Rollout) -> Evaluation:
        """Evaluate the actions of all steps at once."""
        assert rollout.action_mask is not None
        observation = Observation(*(x.flatten(0, 1) for x in rollout.observations))
        judged = evaluate(self.judge(observation), rollout.actions.flatten(), rollout.action_mask.flatten(0, 1))
        return Evaluation(*(torch.where(rollout.mask, x.view_as(rollout.mask), 0) for x in judged))  # type: ignore[union-attr]

    def flop_per_token(self) -> float:
        """Not known: steps that are alike, as in a group of samples, are worked out once."""
        return 0.0

    def judge(self, seen: Observation) -> Policy:
        """The policy of each row, of which only distinct ones are worked out."""
        rows, inverse = _distinct(torch.cat([seen.numbers, seen.target[:, None], seen.results], 1))
        logits, value = self.scores(rows)
        return Policy(logits[inverse], value[inverse])

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[M, A]``, out of reach where there is no pair, and values ``[M]``, of rows of observations."""
        rows = rows[:, : self.width + 1]
        left, at = rows[:, :-1].ne(EMPTY).sum(1), torch.arange(len(rows), device=rows.device)
        numbers, index = _distinct(rows.reshape(-1, 1))
        features, index = self.features(numbers[:, 0]), index.view_as(rows)
        scores, value = features.new_full((len(rows), self.actions), MASKED), features.new_zeros(len(rows))
        for n, scorer in enumerate(self.scorers, 2):
            own = left.eq(n)
            some = own.nonzero()[:, 0] if can_sync(rows.device, len(rows)) else at
            made, worth = scorer(features, torch.cat([index[some, :n], index[some, -1:]], 1))
            made = made.flatten(1).to(scores.dtype)
            made = F.pad(made, (0, self.actions - made.shape[1]), value=MASKED)
            scores = torch.where(own[:, None], scores.index_copy(0, some, made), scores)
            value = torch.where(own, value.index_copy(0, some, worth.to(value.dtype)), value)
        return scores, value


class AfterstateAgent(CountdownAgent):
    """Judges what each call would leave, as the display shows it: how likely the target can be reached from there.

    Some move has to lead there, so the log-odds of success are the soft maximum of all scores. The policy is
    proportional to a power of the odds; whether the last number is the target is seen. It has the options of
    ``CountdownAgent``, and needs an environment with lookahead.

    Source of the idea: Tesauro, "Temporal Difference Learning and TD-Gammon", 1995.
    """

    kept: Tensor

    def __init__(self, env: CountdownEnv, frequencies: int = 32, width: int = 256, hidden: int = 256) -> None:
        super().__init__(env, frequencies, width, hidden)
        if not env.lookahead:
            raise ValueError("lookahead: got 0, expected 1 for AfterstateAgent")
        self.power = nn.Parameter(torch.tensor(1.5))
        self.offset = nn.Parameter(torch.full((env.width - 1,), -3.0))
        kept = [[k not in pair for k in range(env.width)] for pair in pairs(env.width) for _ in range(OPERATIONS)]
        self.register_buffer("kept", torch.tensor(kept), persistent=False)  # [A, K]

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[M, A]`` from the log-odds of what each action leaves, and values ``[M]`` from what there is."""
        rows, results = rows[:, : self.width + 1], rows[:, self.width + 1 :]
        after = torch.where(self.kept, rows[:, None, :-1], EMPTY)  # [M, A, K]
        after = torch.cat([results[..., None], after], 2)  # one column too many, which is always empty
        after = ascending(after.flatten(0, 1))[:, : self.width]
        after = torch.cat([after, rows[:, -1:].expand_as(results).reshape(-1, 1)], 1)
        states, inverse = _distinct(torch.cat([after, rows]))
        left = states[:, :-1].ne(EMPTY).sum(1)
        odds = super().scores(states)[0].logsumexp(1) + self.offset[(left - 2).clamp(min=0)]
        seen = torch.where(states[:, 0].eq(states[:, -1]), SURE, -SURE)
        odds = torch.where(left.lt(2), seen, odds)[inverse]
        return self.power * odds[: len(after)].view_as(results), odds[len(after) :].sigmoid()


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows, and where each row is among them; all of them where a GPU would have to be waited for."""
    if not can_sync(rows.device, len(rows)):
        return rows, torch.arange(len(rows), device=rows.device)
    key = torch.zeros_like(rows[:, 0])
    for column in rows.unbind(1):
        key = key * MULTIPLIER + column
    keys, inverse = key.unique(return_inverse=True)
    first = torch.empty_like(keys).scatter_(0, inverse, torch.arange(len(rows), device=rows.device))
    return rows[first], inverse
