"""This project: what ``fit`` does in an update, without Lightning's Trainer."""

from torch import Tensor

from benchmarks.bare import DEFAULT_RUN, STEADY_RATE, BareLoop, as_command_line, make_module
from toolagent_pl import Solver


class Update:
    """The updates of the default run in a bare loop, from the weights that come with the package."""

    def __init__(self, batch: int, stage: str) -> None:
        as_command_line(batch)
        module = make_module("reader", [stage], **DEFAULT_RUN | {"learning_rate": STEADY_RATE})
        module.agent.load_state_dict(Solver.from_checkpoint().agent.state_dict())
        self.loop = BareLoop(module, batch)
        self.actions = self.loop.actions

    def update(self) -> Tensor:
        """Do one whole update."""
        return self.loop.update().loss.detach()
