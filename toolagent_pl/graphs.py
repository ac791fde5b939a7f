"""CUDA graphs: the kernels of a function are recorded once, and started together from then on.

An update of a compact network is some thousand small kernels; to start them one by one takes a CPU ten times as long as
a GPU takes to run them. Source: Gray, "Getting started with CUDA graphs", NVIDIA, 2019.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from toolagent_pl.process import without_collecting

STAYS = "stays"  # attribute of tensors that are always in the same place

T = TypeVar("T")


def can_record(device: torch.device) -> bool:
    """Whether there are CUDA graphs on a device."""
    return device.type == "cuda"


def is_recording(device: torch.device) -> bool:
    """Whether kernels are only recorded at the moment, so that nothing can be waited for."""
    return can_record(device) and torch.cuda.is_current_stream_capturing()


class _Recording(NamedTuple):
    """A recorded call: its graph, where it reads its arguments, where it writes results and gradients, and of what."""

    graph: torch.cuda.CUDAGraph
    read: Sequence[Tensor]
    results: Any
    gradients: Tensor | None
    learning: Sequence[str]


class Replayed(Generic[T]):
    """A function whose kernels are replayed.

    Its first call with arguments of some shapes is made as it stands, and makes what is made only once; the second one
    is recorded, or the first one again, where results are not copied. From then on the function's Python is not run any
    more: what it reads besides its arguments must be constants, or tensors that stay where they are. Modes of PyTorch
    may change (training, gradients, precision), and so may which weights learn.

    Args:
        function: From trees of tensors and constants to a tree of tensors, at most one of which has a gradient. It must
            not wait for the GPU.
        module: What that gradient is to: its weights.
        copied: Whether results are the caller's own. Else the next call writes over them; functions that take them as
            arguments read them where they are.
    """

    def __init__(self, function: Callable[..., T], module: nn.Module | None = None, copied: bool = True) -> None:
        self.function, self.module, self.copied = function, module, copied
        self.weights = dict(module.named_parameters()) if module else {}
        self._recordings: dict[Hashable, _Recording | None] = {}

    def __call__(self, *arguments: Any) -> T:
        """What the function returns.

        Raises:
            RuntimeError: If the function waits for the GPU.
        """
        leaves, structure = tree_flatten(arguments)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        known = ((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cuda")
        learning = tuple(name for name, weight in self.weights.items() if weight.requires_grad)
        key = (*known, *modes, self.module is not None and self.module.training, learning)
        if key not in self._recordings:
            self._recordings[key] = None
            results = self.function(*arguments)
            if self.copied:
                return results
        recording = self._recordings[key]
        if recording is None:
            read = [x if hasattr(x, STAYS) else x.clone() for x in tensors]
            copies = iter(read)
            given = tree_unflatten([next(copies) if isinstance(x, Tensor) else x for x in leaves], structure)
            recording = self._recordings[key] = self._record(read, given, learning)
        for into, x in zip(recording.read, tensors, strict=True):
            if into.data_ptr() != x.data_ptr():
                into.copy_(x)
        recording.graph.replay()
        if not self.copied:
            return recording.results
        return tree_map_only(Tensor, lambda x: self._own(x, recording), recording.results)

    def _own(self, result: Tensor, recording: _Recording) -> Tensor:
        if not result.requires_grad or recording.gradients is None:
            return result.clone()
        weights = [self.weights[name] for name in recording.learning]
        loss: Tensor = _Loss.apply(result.detach(), recording.gradients.clone(), *weights)  # type: ignore[no-untyped-call]
        return loss

    def _record(self, read: Sequence[Tensor], given: Sequence[Any], learning: Sequence[str]) -> _Recording:
        graph, gradients = torch.cuda.CUDAGraph(), None
        # A graph that is thrown away meanwhile, as garbage, would spoil the recording.
        with without_collecting(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            # The weights as other tensors in the same place: autograd knows those by the stream that it met them on.
            names = learning if torch.is_grad_enabled() else ()
            weights = {f"module.{name}": self.weights[name].detach().requires_grad_() for name in names}
            results = functional_call(_Call(self.function, self.module), weights, tuple(given))
            losses = [x for x in tree_leaves(results) if isinstance(x, Tensor) and x.requires_grad]
            if losses:
                (loss,) = losses
                with torch.autocast(loss.device.type, enabled=False):
                    found = torch.autograd.grad(loss, [*weights.values()], allow_unused=True, materialize_grads=True)
                gradients = torch.cat([gradient.flatten() for gradient in found])
        if not self.copied:
            for x in tree_leaves(results):
                if isinstance(x, Tensor):
                    setattr(x, STAYS, True)
        return _Recording(graph, read, results, gradients, learning)


class Recordings:
    """Functions of a module by their names, each of them replayed."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._functions = module, dict[str, Replayed[Any]]()

    def __call__(self, function: Callable[..., T], *arguments: Any, copied: bool = True) -> T:
        """What the function returns; see ``Replayed``."""
        name = function.__name__
        if name not in self._functions:
            self._functions[name] = Replayed(function, self._module, copied)
        replayed: Replayed[T] = self._functions[name]
        return replayed(*arguments)


class _Call(nn.Module):
    """The function as a module that has the other one's weights."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Loss(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Tensor, *weights: Tensor) -> Tensor:
        ctx.gradients, ctx.shapes = gradients, [weight.shape for weight in weights]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        parts = (grads[0] * ctx.gradients).split([shape.numel() for shape in ctx.shapes])
        return None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))
