"""What an agent is: a recurrent network that is told the problem once, and hears the tokens that it emits."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from toolagent_pl.problems import Problems


class Agent(nn.Module, ABC):
    """A recurrent actor-critic. Derive from it and name your class in the configuration.

    Attributes:
        actions: int64 ``[A]``, the tokens that may be chosen.
    """

    actions: Tensor

    @abstractmethod
    def encode(self, problems: Problems) -> Tensor:
        """State before the first token heard, ``[B, d]``."""

    @abstractmethod
    def step(self, hidden: Tensor, heard: Tensor) -> Tensor:
        """State after one more token heard, used while acting.

        Args:
            hidden: ``[B, d]``.
            heard: int64 ``[B]``: CTX, then the agent's own tokens.

        Returns:
            ``[B, d]``.
        """

    @abstractmethod
    def unroll(self, hidden: Tensor, heard: Tensor) -> Tensor:
        """States after each token heard, used while learning; the same numbers as ``step`` again and again.

        Args:
            hidden: ``[B, d]``, from ``encode``.
            heard: int64 ``[T, B]``.

        Returns:
            ``[T, B, d]``.
        """

    @abstractmethod
    def log_policy(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of ``actions``, float32 ``[..., A]``."""

    @abstractmethod
    def state_value(self, hidden: Tensor) -> Tensor:
        """Expected return from here on, float32 ``[...]``."""
