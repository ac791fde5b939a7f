"""The updates of ``fit`` in a bare loop, without Lightning's Trainer."""

from collections.abc import Callable, Sequence

import torch

from toolagent_pl.machines import CalculatorMachine
from toolagent_pl.module import Step, ToolAgent
from toolagent_pl.problems import Problems
from toolagent_pl.problems.stream import ProblemStream

LARGEST_NORM = 1.0


class BareLoop:
    """The default agent on the calculator, learning by A2C.

    Args:
        batch: Problems in an update.
        device: Where to train.
        mixture: Share of each stage; the first stage alone, as in the first epoch of ``fit``, without it.
        stages: Their names.
        max_steps: Of an episode.
    """

    def __init__(
        self,
        batch: int,
        device: torch.device | str = "cpu",
        mixture: Sequence[float] | None = None,
        stages: Sequence[str] = ("T0", "T1", "T2"),
        max_steps: int = 12,
    ) -> None:
        torch.manual_seed(0)
        self.module = ToolAgent(stages, machine=CalculatorMachine(max_steps)).to(device)
        self.learn: Callable[[Problems], Step] = self.module.learn
        self.stream = ProblemStream(self.module.ladder, self.module.seed, batch, batches=1, device=device)
        self.stream.mixture = mixture or [float(stage == stages[0]) for stage in stages]
        self.optimizer = self.module.configure_optimizers()
        self.parameters = list(self.module.parameters())
        self.position = 0

    def update(self) -> None:
        """Do one whole update."""
        problems = self.stream.batch(self.position)
        self.position += 1
        loss = self.learn(problems).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM)
        self.optimizer.step()
