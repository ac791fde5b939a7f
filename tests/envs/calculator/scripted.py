"""An agent that knows the reference plan: right and wrong plans without training."""

import torch
from torch import nn

from toolagent_pl import CalculatorEnv, Solver
from toolagent_pl.envs.calculator import Reader
from toolagent_pl.envs.calculator.expression import parse, reference_plan, text_of
from toolagent_pl.envs.calculator.tools import Token, Tool
from toolagent_pl.rl.agent import Agent, Policy

READER = {
    "env": {"class_path": "toolagent_pl.envs.calculator.CalculatorEnv", "init_args": {"stages": ["E5"]}},
    "agent": {"class_path": "toolagent_pl.envs.calculator.Reader", "init_args": {"hidden": 8}},
}


class Scripted(Agent):
    """Plans as the reference does, from the prompt; ``hurried``, it answers before it is done."""

    def __init__(self, env, hurried=False):
        super().__init__(env)
        self.vocabulary, self.tokens, self.hurried = env.vocabulary, torch.tensor(env.tokens), hurried
        self.sign = nn.Parameter(torch.full((1,), -1.0))  # -1 prefers everything to what is right: 1 must be loaded

    def prefill(self, problems):
        known = self.vocabulary
        plans = [reference_plan(parse(text_of(p, known), known).tree) for p in problems.prompt.tolist()]
        if self.hurried:
            plans = [[*plan[:-2], Token.ANS] for plan in plans]
        longest = max(map(len, plans))
        return torch.tensor([[0, *plan, *[Token.ANS] * (longest - len(plan))] for plan in plans])

    def decode(self, cache, previous, observation):
        step = cache[:, 0]
        token = cache.gather(1, 1 + step.clamp(max=cache.shape[1] - 2)[:, None])
        logits = (token == self.tokens).float() * self.sign
        return Policy(logits, logits[:, 0]), torch.cat([step[:, None] + 1, cache[:, 1:]], 1)


WEIGHTS = {"sign": torch.ones(1)}
EVIL = Tool("EVIL", "</script><i>", 1, torch.add)  # a symbol that would end the data of a page


def scripted(hurried=False, **options):
    """A solver that plans as the reference does, and can be saved; ``options`` are those of the environment."""
    options = {"stages": ["E5"], "max_steps": 12, "memory_depth": 4, **options}
    env = CalculatorEnv(**options)
    agent = Scripted(env, hurried)
    agent.load_state_dict(WEIGHTS)
    description = {
        "env": {"class_path": "toolagent_pl.envs.calculator.CalculatorEnv", "init_args": options},
        "agent": {"class_path": "tests.envs.calculator.scripted.Scripted", "init_args": {"hurried": hurried}},
    }
    return Solver(agent, env, description)


def untrained():
    """A solver with an agent of this package, of random weights."""
    env = CalculatorEnv(["E5"])
    return Solver(Reader(env, hidden=8), env, READER)
