"""The limit: the matrix products of the reader's update, encoder included, and nothing between them."""

import torch
from torch import Tensor, nn

from benchmarks.bare import as_command_line, steps_of, trained_reader

MINIBATCHES = 4
ENCODER = ("symbol", "score")  # layers that see each number of a problem once, not each step


class Update:
    """Products of the shapes that an update has, into memory that is there already."""

    def __init__(self, batch: int, stage: str, width: int) -> None:
        as_command_line(batch)
        module, self.steps = trained_reader(stage, width), steps_of(stage)
        zero = torch.zeros(1, dtype=torch.int64)
        numbers = module.env.problems(zero, zero, 0, held_out=False).operands.shape[1]
        layers = {name: part for name, part in module.agent.named_modules() if isinstance(part, nn.Linear)}
        self.batch, self.actions = batch, 0
        self.acting, self.learning = [], []
        for name, layer in layers.items():
            rows = batch * numbers if name in ENCODER else batch
            times = 1 if name in ENCODER else self.steps
            self.acting += [_buffers(layer, rows)] * times
            self.learning += [_buffers(layer, rows * times // MINIBATCHES)] * MINIBATCHES

    @torch.no_grad()
    def update(self) -> Tensor:
        """Forward while acting; forward, and back to weights and inputs, while learning."""
        for x, weight, y, _ in self.acting:
            torch.mm(x, weight.T, out=y)
        for x, weight, y, gradient in self.learning:
            torch.mm(x, weight.T, out=y)
            torch.mm(y.T, x, out=gradient)
            torch.mm(y, weight, out=x)
        self.actions += self.batch * self.steps
        return self.learning[-1][2][0, 0]


def _buffers(layer: nn.Linear, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, output, and gradient of the weight; zeros, so that nothing grows from update to update."""
    weight = layer.weight.detach()
    return torch.zeros(rows, weight.shape[1]), weight, torch.zeros(rows, weight.shape[0]), torch.zeros_like(weight)
