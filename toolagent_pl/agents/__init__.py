"""Agents: networks that choose the next token."""

from toolagent_pl.agents.actor_critic import ActorCritic
from toolagent_pl.agents.agent import Agent, Judgement, Network, Recurrence

__all__ = ["ActorCritic", "Agent", "Judgement", "Network", "Recurrence"]
