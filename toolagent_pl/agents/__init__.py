"""Agents: networks that choose the next action."""

from toolagent_pl.agents.agent import Agent, Cache, Evaluation, Policy, Rollout
from toolagent_pl.agents.blind import BlindAgent
from toolagent_pl.agents.reader import Reader
from toolagent_pl.agents.transformer import TransformerReader

__all__ = ["Agent", "BlindAgent", "Cache", "Evaluation", "Policy", "Reader", "Rollout", "TransformerReader"]
