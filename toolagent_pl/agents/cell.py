"""What a cell of a recurrent network is to those who step it: a step, and the way back through steps taken."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Rows(NamedTuple):
    """What ``N`` rows write down in a step, or in several, one step after the other.

    Attributes:
        heard: int64 ``[N]``, tokens.
        gates: ``[N, 4d]``, the values of n, r, z, h_n.
        before, after: ``[N, d]``, the states that each row goes on from, and gets to.
    """

    heard: Tensor
    gates: Tensor
    before: Tensor
    after: Tensor


class Cell(Protocol):
    """A GRU that takes steps, and knows the gradients of those taken. It may keep weights in a form of its own."""

    def step(self, rows: Rows, kept: Tensor | None, last: Tensor) -> None:
        """One step of ``K`` rows; gates and states are written.

        Args:
            rows: The ``K`` rows, tokens given.
            kept: int64 ``[K]``, rows of ``last`` that go on; None for all of them.
            last: ``[L, d]``, states after the step before.
        """

    def backward(
        self, rows: Rows, output: Tensor, steps: list[tuple[int, Tensor | None]], batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Back-propagation through time.

        With ``D`` the gradient of (i_n, r, z, h_n) before their activations and ``f`` that of a step's state:
            D_i_n = f (1 - z) (1 - n^2),  D_z = f (1 - z) z (h - n),  D_h_n = D_i_n r,  D_r = D_i_n h_n r (1 - r)
        and ``z (h - n) = h' - n``; ``f z + (D_r, D_z, D_h_n) W`` is what the step before gets.

        Args:
            rows: Those of all steps, ``[N]``. The gates are overwritten.
            output: ``[N, d]``, gradient of ``rows.after``.
            steps: For each step how many rows it has, and ``kept``.
            batch: Rows before the first step.

        Returns:
            Gradients of the initial state ``[batch, d]``, the table ``[V, 4d]`` and the weight ``[3d, d]``.
        """
