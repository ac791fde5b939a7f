"""This project: what ``fit`` does in an update, without Lightning's Trainer."""

from torch import Tensor

from benchmarks.bare import DEFAULT_RUN, STEADY_RATE, BareLoop, as_command_line, trained_reader


class Update:
    """The updates of the default run in a bare loop, from the weights that come with the package."""

    def __init__(self, batch: int, stage: str, width: int) -> None:
        as_command_line(batch)
        self.loop = BareLoop(trained_reader(stage, width, **DEFAULT_RUN | {"learning_rate": STEADY_RATE}), batch)
        self.actions = self.loop.actions

    def update(self) -> Tensor:
        """Do one whole update, and return how many actions were taken so far."""
        self.loop.update()
        return self.actions
