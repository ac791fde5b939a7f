"""Plain PyTorch without loops over problems: act without gradients, then learn from all steps in one pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contestants import contestant
from benchmarks.contestants.contestant import ACTIONS, CTX, OPERANDS, SHOWN, VOCABULARY
from toolagent_pl import TutorialEnv


class Update(contestant.TorchContestant):
    """Plain PyTorch without loops over problems."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        torch.manual_seed(seed)
        super().__init__(batch, contestant.Network(d), contestant.initial_weights(d, seed))
        self.env = TutorialEnv(max_steps=ACTIONS)
        self.stage, self.shown = stage, SHOWN[stage]

    def problems(self) -> Tensor:
        """Operands of fresh problems."""
        return torch.randint(10, (self.batch, OPERANDS))

    @torch.no_grad()
    def act(self, hidden: Tensor) -> Tensor:
        """Sampled actions, ``[B, T]``."""
        action = torch.full((hidden.shape[1],), CTX)
        actions = []
        for _ in range(ACTIONS):
            _, hidden = self.network.gru(self.network.embedding(action)[None], hidden)
            cumulated = F.softmax(self.network.policy(hidden[0]), 1).cumsum(1)[:, :-1]
            action = (cumulated < torch.rand(len(cumulated), 1)).sum(1)  # faster than torch.multinomial
            actions.append(action)
        return torch.stack(actions, 1)

    def episodes(self, operands: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean reward and loss."""
        net = self.network
        stage = torch.full((len(operands),), self.stage)
        count = torch.bincount(operands[:, : self.shown].flatten(), minlength=VOCABULARY)
        count[CTX] += len(operands)
        hidden = torch.tanh(count / count.sum() @ net.embedding.weight + net.stage(stage))[None]
        actions = self.act(hidden.detach()) if given is None else given
        reward, _ = self.env.run(operands, stage, actions)
        taken = actions.T
        heard = torch.cat([torch.full_like(taken[:1], CTX), taken[:-1]])
        states, _ = net.gru(net.embedding(heard), hidden)
        log_policy = F.log_softmax(net.policy(states), 2)
        chosen = log_policy.gather(2, taken[..., None])[..., 0].sum(0)
        entropy = -(log_policy.exp() * log_policy).sum(2).mean()
        baseline = net.value(states)[..., 0].sum(0)
        policy_loss = -(chosen * (reward - baseline).detach()).mean()
        loss = policy_loss + contestant.VF_COEF * F.mse_loss(baseline, reward) - contestant.ENT_COEF * entropy
        return reward.mean(), loss
