"""An agent that knows the textbook: what the solver makes of right and wrong plans can be told without training."""

import torch
from torch import nn

from toolagent_pl.agents import Agent, Policy
from toolagent_pl.problems.expression import parse, text_of, textbook_plan
from toolagent_pl.tools import Token, Tool

DESCRIPTION = {
    "agent": {"class_path": "tests.commands.scripted.Textbook", "init_args": {}},
    "env": {"class_path": "toolagent_pl.envs.CalculatorEnv", "init_args": {"max_steps": 12, "memory_depth": 4}},
    "tools": ["MUL", "ADD", "SUB"],
    "trained_stages": ["E5"],
}


class Textbook(Agent):
    """Plans as the textbook does, from the prompt; ``hurried``, it answers before it is done."""

    def __init__(self, spec, actions=None, hurried=False):
        super().__init__(spec, actions)
        self.hurried = hurried
        self.sign = nn.Parameter(torch.full((1,), -1.0))  # -1 prefers everything to what is right: 1 must be loaded

    def prefill(self, problems):
        vocabulary = self.spec.vocabulary
        plans = [textbook_plan(parse(text_of(p, vocabulary), vocabulary).tree) for p in problems.prompt.tolist()]
        if self.hurried:
            plans = [[*plan[:-2], Token.ANS] for plan in plans]
        longest = max(map(len, plans))
        return torch.tensor([[0, *plan, *[Token.ANS] * (longest - len(plan))] for plan in plans])

    def decode(self, cache, previous, observation):
        step = cache[:, 0]
        token = cache.gather(1, 1 + step.clamp(max=cache.shape[1] - 2)[:, None])
        logits = (token == self.actions).float() * self.sign
        return Policy(logits, logits[:, 0]), torch.cat([step[:, None] + 1, cache[:, 1:]], 1)


WEIGHTS = {"sign": torch.ones(1)}
EVIL = Tool("EVIL", "</script><i>", 1, torch.add)  # a symbol that would end the data of a page
