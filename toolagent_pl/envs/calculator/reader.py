"""The reader: adds up what stands between the numbers of a prompt, and compares the sums at the reported positions."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.envs.calculator.problems import Problems, running_sum
from toolagent_pl.envs.calculator.registers import Observation, RegisterEnv
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl.agent import Agent, Evaluation, Policy, evaluate
from toolagent_pl.rl.checks import check_range
from toolagent_pl.rl.rollout import Rollout, can_sync

MAX_SIZE = 4096
SHARP = 2.0  # factor of the initial weights in front of a tanh: they should tell apart what they see at once
# Factor of what tokens add to the scores behind them, which begins near 0: with a large factor a small weight is enough
# for a difference of depths to be nearly a sign in front of a tanh.
STEEP = 12.0
FIRST_COUNTED = int(Token.D9) + 1  # digits say nothing about a plan


def exact_products(device: str) -> AbstractContextManager[Any]:
    """Matrix products as precise as the weights, whatever the precision of the run."""
    lower = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if lower else nullcontext()


def counted_tokens(problems: Problems) -> Tensor:
    """Which tokens of the prompts count, bool ``[B, L]``: all but digits and padding."""
    prompt = problems.prompt
    inside = torch.arange(prompt.shape[1], device=prompt.device) < problems.prompt_length[:, None]
    return inside & (prompt >= FIRST_COUNTED)


class ReaderCache(NamedTuple):
    """What was read, and the decoder's memory.

    Attributes:
        symbols: ``[B, 1 + N, d + 1]``, bounded, of each number of the prompt; zeros in the first row, for positions
            that there are not, and in the last column: a GPU takes ten times as long to look up rows that lie close
            together, if they are multiples of 16 bytes.
        scores: ``[B, 1 + N, S + 1]``, likewise.
        number: int64 ``[B, 1 + L]``, the row of the number that each token of the prompt belongs to; the first one is
            that of position -1.
        hidden: ``[B, h]``, state of the recurrent decoder, or ``[B, 0]``.
    """

    symbols: Tensor
    scores: Tensor
    number: Tensor
    hidden: Tensor


class Reader(Agent):
    """Encodes each number of a prompt by the operators and brackets around it, and decides on what it looks at.

    The encoder adds up a learned table of counters over the gaps between numbers. A number is encoded by bounded
    symbols of what there is in the gap behind it, however often, by scores that are linear in all that stands before it
    and in that gap (the depth of brackets is such a sum, exact at any depth), and by how the scores change to the next
    number. Digits say nothing about a plan, and count nothing. By the end of a problem a score should be back where it
    began, which an auxiliary loss sees to: brackets cancel out, while what operators add, or an opening bracket more
    than a closing one, would drown their depth in long problems.

    The decoder looks at the positions that the tools report: it gets their symbols, and compares their scores pair by
    pair (next operand and accumulator, accumulator and top of memory, top of memory and left operand). All that the
    policy sees is bounded, so that longer problems than those of training look like them; only the critic sees scores
    themselves. Without reported positions it gets the mean over all numbers.

    Args:
        env: The environment.
        counters: Counters of each token.
        symbols: Symbols of each number.
        scores: Scores of each number.
        hidden: Width of the decoder.
        critic: Width of the critic.
        balance: Weight of the auxiliary loss, the square of what all of a problem adds to a score.
        recurrent: Let a GRU remember what was seen in earlier steps. It is not needed where the tools report all
            positions, and then slower.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(
        self,
        env: RegisterEnv,
        counters: int = 8,
        symbols: int = 12,
        scores: int = 8,
        hidden: int = 64,
        critic: int = 32,
        balance: float = 1.0,
        recurrent: bool = False,
    ) -> None:
        super().__init__(env)
        check_range(
            at_least=1,
            at_most=MAX_SIZE,
            counters=counters,
            symbols=symbols,
            scores=scores,
            hidden=hidden,
            critic=critic,
        )
        check_range(at_least=0, balance=balance)
        self.scores, self.hidden, self.critic, self.balance = scores, hidden, critic, balance
        positions = max(1, env.positions)  # without any, the mean over all numbers takes their place
        pairs = positions - 1
        self.count = nn.Parameter(torch.randn(env.vocabulary.size, counters) * 0.5)
        self.depth = nn.Parameter(torch.randn(env.vocabulary.size, scores) * 0.01)
        self.symbol = nn.Linear(counters, symbols)
        self.score = nn.Linear(counters, scores, bias=False)
        self.change_bias = nn.Parameter(torch.zeros(scores))
        self.pair_bias = nn.Parameter(torch.zeros(pairs, scores))
        self.look = nn.Linear(positions * (symbols + scores + 1) + pairs * scores + env.flags, hidden + critic)
        self.level = nn.Linear(positions * scores, critic, bias=False)
        self.gru = nn.GRUCell(hidden, hidden) if recurrent else None
        self.mix = nn.Linear(hidden, hidden)
        self.policy = nn.Linear(hidden, self.actions)
        self.value = nn.Linear(critic, 1)
        with torch.no_grad():
            self.symbol.weight.mul_(SHARP)
            self.score.weight.mul_(SHARP)
            self.policy.weight.mul_(0.1)  # begin with nearly equal probabilities and values
            self.value.weight.mul_(0.1)

    def prefill(self, problems: Problems) -> ReaderCache:
        """Encode all numbers."""
        prompt = problems.prompt
        size = prompt.shape[0]  # len() would be a constant to torch.export
        digit = prompt <= int(Token.D9)  # torch.compile does not know it for a number
        last_digit = digit & ~F.pad(digit[:, 1:], (0, 1))
        number = F.pad(running_sum(last_digit[:, :-1]), (1, 0))  # how many numbers end before each token
        # How often each token but the digits stands in each gap between numbers: gap 0 comes before the first number,
        # gap k + 1 behind number k. All else are products with that. The last gap is one more than there are numbers:
        # so the change behind the last number does not depend on how wide the longest problem of the batch is.
        count, width = problems.operands.shape[1] + 2, len(self.count) - FIRST_COUNTED
        gap = number + torch.arange(size, device=prompt.device)[:, None] * count
        counted = counted_tokens(problems).to(self.count.dtype)
        tokens = counted.new_zeros(size * count * width)
        place = gap * width + (prompt - FIRST_COUNTED).clamp(min=0)
        tokens.scatter_add_(0, place.flatten(), counted.flatten())
        sums = tokens.view(size, count, width).cumsum(1).view(-1, width)
        with exact_products(prompt.device.type):  # scores are sums at any depth
            tokens, count_of = tokens.view(-1, width), self.count[FIRST_COUNTED:]
            counters, presence = tokens @ count_of, tokens.clamp(max=1) @ count_of
            before = sums @ (STEEP * self.depth[FIRST_COUNTED:])
        # Of all gaps first, since a layer takes longer on a part of a tensor.
        before, behind, symbols = (
            x.view(size, count, -1) for x in (before, self.score(counters), self.symbol(presence))
        )
        scores = before[:, :-1] + behind[:, 1:]  # [B, N + 1, S]
        score, change = scores[:, :-1], scores[:, 1:] - scores[:, :-1]
        symbols = torch.cat([symbols[:, 1:-1].tanh(), (change + self.change_bias).tanh()], 2)
        inside = (torch.arange(score.shape[1], device=prompt.device) < problems.length[:, None])[..., None]
        hidden = symbols.new_zeros(size, 0 if self.gru is None else self.hidden)
        symbols, score = (F.pad(x * inside, (0, 1, 1, 0)) for x in (symbols, score))
        return ReaderCache(symbols, score, F.pad(number + 1, (1, 0)), hidden)

    def decode(self, cache: ReaderCache, previous: Tensor, observation: Observation) -> tuple[Policy, ReaderCache]:
        """Look at the reported positions, and decide."""
        row = torch.arange(previous.shape[0], device=previous.device)
        policy, hidden = self._decide(cache, row, observation)
        return policy, cache._replace(hidden=hidden)

    def forward(self, rollout: Rollout) -> Evaluation:
        """Evaluate all steps at once: without recurrence, no step needs the one before."""
        if self.gru is not None:
            return super().forward(rollout)
        cache = self.prefill(rollout.problems)
        steps, episodes = rollout.mask.shape
        device = rollout.mask.device
        observation = Observation(*(x.flatten(0, 1) for x in rollout.observations))
        allowed = None if rollout.action_mask is None else rollout.action_mask.flatten(0, 1)
        actions, index = rollout.actions.flatten(), torch.arange(steps * episodes, device=device)
        few = can_sync(device, episodes)
        if few:
            index = rollout.mask.flatten().nonzero()[:, 0]
            observation = Observation(*(x.index_select(0, index) for x in observation))
            actions = actions.index_select(0, index)
            allowed = None if allowed is None else allowed.index_select(0, index)
        policy, _ = self._decide(cache, index % episodes, observation)
        found = [x for x in evaluate(policy, actions, allowed) if x is not None]
        if few:
            found = [x.new_zeros(steps * episodes).index_copy(0, index, x) for x in found]
        whole = (x.view(steps, episodes) for x in found)
        return Evaluation(*(torch.where(rollout.mask, x, 0) for x in whole))

    def auxiliary_loss(self, problems: Problems) -> Tensor:
        """``balance`` times the square of what all tokens of a problem add to a score, summed over both."""
        prompt, counted = problems.prompt, counted_tokens(problems).to(self.depth.dtype)
        tokens = counted.new_zeros(len(prompt), len(self.depth)).scatter_add_(1, prompt, counted)
        with exact_products(prompt.device.type):
            return self.balance * (tokens @ (STEEP * self.depth)).square().sum()

    def _decide(self, cache: ReaderCache, row: Tensor, observation: Observation) -> tuple[Policy, Tensor]:
        """The policy for observations ``[K, ...]`` of these rows of the cache, int64 ``[K]``; and the next state."""
        number, read = cache.number, (cache.symbols[..., :-1], cache.scores[..., :-1])
        if observation.positions.shape[1]:
            there = observation.positions >= 0
            place = observation.positions + (row * number.shape[1] + 1)[:, None]
            seen = number.flatten().index_select(0, place.flatten()).view_as(place)
            seen = (seen + (row * cache.symbols.shape[1])[:, None]).flatten()
            bounded, score = (x.flatten(0, 1).index_select(0, seen).view(row.shape[0], -1) for x in read)
        else:
            count = (number.amax(1, keepdim=True) - 1).clamp(min=1)
            bounded, score = ((x.sum(1) / count).index_select(0, row) for x in read)
            there = torch.ones_like(row, dtype=torch.bool)[:, None]
        present = there.to(score.dtype)
        # The positions one behind the other, and the mask in full: to broadcast over the scores takes twice as long.
        both = (present[:, 1:] * present[:, :-1])[..., None].expand(-1, -1, self.scores).reshape(row.shape[0], -1)
        compared = (score[:, self.scores :] - score[:, : -self.scores] + self.pair_bias.flatten()).tanh() * both
        flags = observation.flags.to(score.dtype)
        features = torch.cat([bounded, compared, present, flags], 1)
        actor, critic = self.look(features).split([self.hidden, self.critic], 1)
        actor, hidden = actor.relu(), cache.hidden
        if self.gru is not None:
            hidden = self.gru(actor, hidden)
            actor = actor + hidden
        actor = self.mix(actor).relu()
        critic = (critic + self.level(score)).relu()
        return Policy(self.policy(actor), self.value(critic)[:, 0]), hidden
