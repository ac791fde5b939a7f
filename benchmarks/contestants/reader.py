"""This project's reader, which does other work: it reads, acts in the calculator with feedback, and may stop early.

Its tokens are the actions that its episodes took.
"""

from torch import Tensor

from benchmarks.bare import BareLoop, as_command_line, make_module
from benchmarks.contestants.contestant import STAGES, Contestant


class Update(Contestant):
    """The reader in a bare loop. It has a size of its own, whatever ``d`` is."""

    def __init__(self, batch: int, stage: int, seed: int, d: int) -> None:
        as_command_line(batch)
        mixture = [float(i == stage) for i in range(STAGES)]
        self.loop = BareLoop(make_module("reader", seed=seed), batch, mixture=mixture)
        self.actions = self.loop.actions

    def update(self) -> Tensor:
        """Do one whole update."""
        return self.loop.update().loss.detach()
