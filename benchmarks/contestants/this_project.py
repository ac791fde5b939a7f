"""This project: what ``fit --config configs/tutorial.yaml`` does in an update, without the Trainer."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from benchmarks.bare import BareLoop, as_command_line
from benchmarks.contestants import contestant
from benchmarks.contestants.contestant import ACTIONS, LEARNING_RATE, SHOWN, STAGES, VOCABULARY
from toolagent_pl.agents import BlindAgent
from toolagent_pl.envs import TutorialEnv
from toolagent_pl.learning import TutorialA2C, TutorialReward
from toolagent_pl.learning.rollout import collect
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems import Problems
from toolagent_pl.tools import Token


def tutorial_module(d: int, seed: int = 0) -> ToolAgent:
    """The module of the tutorial's configuration."""
    names = [str(token) if token < Token.CTX else Token(token).name for token in range(VOCABULARY)]
    return ToolAgent(
        agent=partial(BlindAgent, d=d, actions=names, context="batch"),
        env=TutorialEnv(ACTIONS),
        reward=TutorialReward(),
        algorithm=TutorialA2C(contestant.VF_COEF, contestant.ENT_COEF),
        learning_rate=LEARNING_RATE,
        seed=seed,
    )


class Update(contestant.TorchContestant):
    """The public parts that the command line puts together."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        as_command_line(batch)
        self.module, self.stage, self.drawn = tutorial_module(d, seed), stage, seed
        agent = self.module.agent
        assert isinstance(agent, BlindAgent)
        parts = {name: getattr(agent, name) for name in ("embedding", "gru", "policy", "value")}
        network = SimpleNamespace(**parts, stage=agent.stage_embedding)
        super().__init__(batch, network, contestant.initial_weights(d, seed))
        self.loop = BareLoop(self.module, batch, mixture=[float(i == stage) for i in range(STAGES)])

    def update(self) -> Tensor:
        """Do one whole update."""
        loss = self.loop.update().loss.detach()
        self.actions += self.batch * ACTIONS
        return loss

    def problems(self) -> Tensor:
        """Operands of fresh problems."""
        raise NotImplementedError  # the loop makes whole problems

    def episodes(self, operands: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean reward and loss; the problems are found by their operands."""
        module, shown = self.module, SHOWN[self.stage]
        index = operands[:, :shown] @ torch.from_numpy(10 ** np.arange(shown)[::-1].copy())
        problems: Problems = module.stages.all_problems(self.stage, index)
        actions = None if given is None else given.T
        self.drawn += 1
        rollout = collect(
            module.agent, module.env, problems, seed=self.drawn, continue_after_done=True, actions=actions
        )
        rewards = module.rewards(rollout)
        evaluation = module.agent(rollout._replace(mask=torch.ones_like(rollout.mask)))  # of all steps
        terms = module.algorithm.loss(evaluation, rollout, module.algorithm.advantages(rollout, rewards))
        total = terms.policy + module.algorithm.vf_coef * terms.value - module.algorithm.ent_coef * terms.entropy
        return rewards.sum(0).mean(), total / rollout.mask.numel()
