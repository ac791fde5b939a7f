"""The updates of ``fit`` in a bare loop, without Lightning's Trainer."""

import torch

from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.stream import ProblemStream

LARGEST_NORM = 1.0


class BareLoop:
    """The default agent on the calculator, learning by A2C.

    Args:
        batch: Problems in an update.
        device: Where to train.
        mixture: Share of each stage; the first stage alone, as in the first epoch of ``fit``, without it.
    """

    def __init__(
        self, batch: int, device: torch.device | str = "cpu", mixture: tuple[float, ...] = (1.0, 0.0, 0.0)
    ) -> None:
        torch.manual_seed(0)
        self.module = ToolAgent().to(device)
        self.stream = ProblemStream(self.module.ladder, self.module.seed, batch, batches=1, device=device)
        self.stream.mixture = list(mixture)
        self.optimizer = self.module.configure_optimizers()
        self.parameters = list(self.module.parameters())
        self.position = 0

    def update(self) -> None:
        """Do one whole update."""
        module, problems = self.module, self.stream.batch(self.position)
        self.position += 1
        loss = module.learn(problems).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM)
        self.optimizer.step()
