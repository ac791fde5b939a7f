"""A Transformer that reads: self-attention over the prompt, then one query for each action, with a KV cache."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolagent_pl.envs.calculator.problems import Problems
from toolagent_pl.envs.calculator.registers import Observation, RegisterEnv
from toolagent_pl.rl.agent import Agent, Policy
from toolagent_pl.rl.checks import check_range

MAX_SIZE = 4096
LONGEST_PERIOD = 10_000.0


class TransformerCache(NamedTuple):
    """What a query can attend to: the prompt, and the steps taken so far.

    Attributes:
        encoded: ``[B, L + 1, d]``, the prompt; the last row stands for positions that there are not.
        keys, values: ``[B, H, L + t, d / H]``, of the prompt and of ``t`` steps.
        visible: bool ``[B, L + t]``, false for padding.
    """

    encoded: Tensor
    keys: Tensor
    values: Tensor
    visible: Tensor


class TransformerReader(Agent):
    """Reads the prompt with self-attention. Each step is a query over the prompt and the steps before it.

    Source: Vaswani et al., "Attention Is All You Need", 2017, with normalisation before each part (Xiong et al., 2020).

    Args:
        env: The environment.
        d: Width.
        heads: Attention heads; they share the width.
        layers: Layers of self-attention over the prompt.

    Raises:
        ValueError: If a size is out of range.
    """

    def __init__(self, env: RegisterEnv, d: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__(env)
        if not 2 <= d <= MAX_SIZE or d % 2:
            raise ValueError(f"d: got {d}, expected an even number from 2 to {MAX_SIZE}")
        if heads < 1 or d % heads:
            raise ValueError(f"heads: got {heads}, expected a number that divides {d}")
        check_range(at_least=1, at_most=64, layers=layers)
        self.heads = heads
        self.embedding = nn.Embedding(env.vocabulary.size, d)
        self.said = nn.Embedding(1 + self.actions, d)  # of the action before, none first
        self.layers = nn.ModuleList(_EncoderLayer(d, heads) for _ in range(layers))
        self.encoded = nn.LayerNorm(d)
        self.nowhere = nn.Parameter(torch.zeros(d))
        self.look = nn.Linear(env.positions * d + env.flags + d, d)
        self.keys_values = nn.Linear(d, 2 * d)
        self.query = nn.Linear(d, d)
        self.attended = nn.Linear(d, d)
        self.feed_forward = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.norm = nn.LayerNorm(d)
        self.policy = nn.Linear(d, self.actions)
        self.value = nn.Linear(d, 1)

    def prefill(self, problems: Problems) -> TransformerCache:
        """Self-attention over the prompt."""
        length = problems.prompt.shape[1]
        visible = torch.arange(length, device=problems.device) < problems.prompt_length[:, None]
        embedded = self.embedding(problems.prompt)
        x = embedded + _positions(length, embedded)
        for layer in self.layers:
            x = layer(x, visible)
        x = self.encoded(x)
        keys, values = _by_heads(self.keys_values(x), self.heads).chunk(2, -1)
        nowhere = self.nowhere.to(x.dtype).expand(x.shape[0], 1, -1)
        return TransformerCache(torch.cat([x, nowhere], 1), keys, values, visible)

    def decode(
        self, cache: TransformerCache, previous: Tensor, observation: Observation
    ) -> tuple[Policy, TransformerCache]:
        """A query from what is seen at the reported positions, over the prompt and the steps so far."""
        encoded = cache.encoded
        place = torch.where(observation.positions < 0, encoded.shape[1] - 1, observation.positions)
        seen = encoded.gather(1, place[..., None].expand(-1, -1, encoded.shape[2])).flatten(1)
        heard = self.said(previous + 1)
        x = self.look(torch.cat([seen, observation.flags.to(seen.dtype), heard.to(seen.dtype)], 1))
        key, value = _by_heads(self.keys_values(x)[:, None], self.heads).chunk(2, -1)
        keys, values = torch.cat([cache.keys, key], 2), torch.cat([cache.values, value], 2)
        visible = torch.cat([cache.visible, torch.ones_like(cache.visible[:, :1])], 1)
        query = _by_heads(self.query(x)[:, None], self.heads)
        x = x + self.attended(_attend(query, keys, values, visible)[:, 0])
        x = self.norm(x + self.feed_forward(x))
        return Policy(self.policy(x), self.value(x)[:, 0]), TransformerCache(encoded, keys, values, visible)


class _EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, as ``nn.TransformerEncoderLayer(norm_first=True)`` has them.

    That one cannot be exported: as PyTorch traces its attention, a batch of one and a prompt of one are excluded.
    """

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed_forward = nn.LayerNorm(d), nn.LayerNorm(d)
        self.queries_keys_values = nn.Linear(d, 3 * d)
        self.attended = nn.Linear(d, d)
        self.feed_forward = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """``[B, L, d]``; what is not ``visible``, bool ``[B, L]``, is not attended to."""
        projected = self.queries_keys_values(self.before_attention(x)).chunk(3, 2)
        queries, keys, values = (_by_heads(one, self.heads) for one in projected)
        x = x + self.attended(_attend(queries, keys, values, visible))
        return x + self.feed_forward(self.before_feed_forward(x))


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, L, k d]`` by heads, ``[B, H, L, k d / H]``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """What queries ``[B, H, Q, d / H]`` get, ``[B, Q, d]``; ``visible`` says which keys there are, bool ``[B, K]``."""
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible[:, None, None, :])
    return attended.transpose(1, 2).flatten(2)


def _positions(length: int, like: Tensor) -> Tensor:
    """Sines and cosines of positions, ``[L, d]``; Vaswani et al., section 3.5."""
    d = like.shape[-1]
    rate = LONGEST_PERIOD ** (-torch.arange(0, d, 2, device=like.device) / d)
    angle = torch.arange(length, device=like.device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1).to(like.dtype)
