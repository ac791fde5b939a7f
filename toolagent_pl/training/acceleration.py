"""CUDA graphs: the kernels of a function are captured once, and started together from then on.

An update of a compact network is some thousand small kernels; to start them one by one takes a CPU ten times as long as
a GPU takes to run them. Source: Gray, "Getting started with CUDA graphs", NVIDIA, 2019.
"""

import gc
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten  # as torch.compile knows it

from toolagent_pl.rl.rollout import MIN_ROWS_TO_SYNC

STAYS = "stays"  # attribute of tensors that are always in the same place
MIN_FOR_COMPILING = "2.11"  # versions before it cannot follow properties of named tuples

T = TypeVar("T")


def can_capture(device: torch.device) -> bool:
    """Whether there are CUDA graphs on a device."""
    return device.type == "cuda"


class _Graph(NamedTuple):
    """A captured call."""

    graph: torch.cuda.CUDAGraph
    read: Sequence[Tensor]  # where it reads its arguments
    results: Any  # where it writes them
    gradients: Tensor | None
    learning: Sequence[str]  # names of the weights that they are of


class GraphedCallable(Generic[T]):
    """A function whose kernels are replayed.

    Its first call with arguments of some shapes is made as it stands, and makes what is made only once; the second one
    is captured, or the first one again, where results are not copied. From then on its Python is not run any more: what
    it reads besides its arguments must be constants, or tensors that stay where they are. Modes of PyTorch may change
    (training, gradients, precision), and so may which weights learn. It must not wait for the GPU.

    Args:
        function: From trees of tensors and constants to a tree of tensors, at most one of which has a gradient.
        module: What that gradient is to: its weights.
        copied: Whether results are the caller's own. Else the next call writes over them; functions that take them as
            arguments read them where they are.
    """

    def __init__(self, function: Callable[..., T], module: nn.Module | None = None, copied: bool = True) -> None:
        self.function, self.module, self.copied = function, module, copied
        self.weights = dict(module.named_parameters()) if module else {}
        self._graphs: dict[Hashable, _Graph | None] = {}

    def __call__(self, *arguments: Any) -> T:
        """What the function returns."""
        leaves, structure = tree_flatten(arguments)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        known = ((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cuda")
        learning = tuple(name for name, weight in self.weights.items() if weight.requires_grad)
        key = (*known, *modes, self.module is not None and self.module.training, learning)
        if key not in self._graphs:
            self._graphs[key] = None
            results = self.function(*arguments)
            if self.copied:
                return results
        captured = self._graphs[key]
        if captured is None:
            places = [x.clone() if isinstance(x, Tensor) and not hasattr(x, STAYS) else x for x in leaves]
            captured = self._graphs[key] = self._capture(places, tree_unflatten(places, structure), learning)
        for into, x in zip(captured.read, tensors, strict=True):
            if into.data_ptr() != x.data_ptr():
                into.copy_(x)
        captured.graph.replay()
        if not self.copied:
            return captured.results
        return tree_map_only(Tensor, lambda x: self._own(x, captured), captured.results)

    def _own(self, result: Tensor, captured: _Graph) -> Tensor:
        if not result.requires_grad or captured.gradients is None:
            return result.clone()
        weights = [self.weights[name] for name in captured.learning]
        loss: Tensor = _Loss.apply(result.detach(), captured.gradients.clone(), *weights)  # type: ignore[no-untyped-call]
        return loss

    def _capture(self, places: Sequence[Any], given: Sequence[Any], learning: Sequence[str]) -> _Graph:
        graph, gradients = torch.cuda.CUDAGraph(), None
        with ExitStack() as stack:
            gc.disable()  # a graph that is thrown away meanwhile, as garbage, would spoil the captured
            stack.callback(gc.enable)
            stack.enter_context(torch.cuda.graph(graph, capture_error_mode="thread_local"))
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
        for x in () if self.copied else tree_leaves(results):
            if isinstance(x, Tensor):
                setattr(x, STAYS, True)
        return _Graph(graph, [x for x in places if isinstance(x, Tensor)], results, gradients, learning)


class Acceleration:
    """Runs the functions of a module compiled or captured, where that was asked for or pays; else as they stand.

    The options are those of ``ToolAgent``.
    """

    def __init__(self, module: Any, cuda_graphs: bool | None, compile_step: bool) -> None:
        here = torch.__version__
        if compile_step and here < MIN_FOR_COMPILING:
            raise ValueError(f"compile_step: got true with PyTorch {here}, expected {MIN_FOR_COMPILING} or newer")
        self._module = (module,)  # in a tuple, so that it is no part of itself
        self.cuda_graphs, self.compile_step = cuda_graphs, compile_step
        if compile_step:
            module.env.static_shapes = True  # so that one graph serves all batches
            # Private, for want of another: DDP would cut the graph into one for each MB of weights.
            torch._dynamo.config.optimize_ddp = False
        self.reset()

    def reset(self, running: bool = False) -> None:
        """Forget what was compiled and captured: a graph holds on to the tables, weights and ranks of one run.

        Outside of one, ``running``, nothing is captured, since weights might be moved. A ValueError where that is asked
        for and there is no GPU, or several.
        """
        (module,) = self._module
        if running and self.cuda_graphs and not (can_capture(module.device) and module.ranks == 1):
            got = f"true on {module.ranks} devices of type {module.device.type}"
            raise ValueError(f"cuda_graphs: got {got}, expected one GPU")
        self._running = running
        self._functions: dict[str, Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., T], *arguments: Any, copied: bool = True) -> T:
        """What the function returns. Its results may be written over by the next call, unless ``copied``."""
        if self.compile_step:
            return self._compiled(function, *arguments)
        name, (module,) = function.__name__, self._module
        captures = self._running and can_capture(module.device) and self.may_capture
        if not captures or (self.cuda_graphs is None and len(tree_leaves(arguments)[0]) >= MIN_ROWS_TO_SYNC):
            return function(*arguments)
        try:
            found: T = self._functions.setdefault(name, GraphedCallable(function, module, copied))(*arguments)
            return found
        except RuntimeError as error:
            no_memory = isinstance(error, torch.OutOfMemoryError)
            if not no_memory and "captur" not in str(error):
                raise
            reason = "there is no memory for a graph" if no_memory else f"what {name} calls waits for the GPU"
            reason = f"{reason} ({str(error).splitlines()[0]})"
            if self.cuda_graphs:
                raise ValueError(f"cuda_graphs: got true, but {reason}") from error
            rank_zero_warn(f"Kernels are started one by one, since {reason}.")
            self._functions[name] = function
            return function(*arguments)

    @property
    def may_capture(self) -> bool:
        """Whether a GPU may replay its kernels: alone, and without being told, with parts of this package only."""
        if self.cuda_graphs is not None:
            return self.cuda_graphs
        (module,) = self._module
        parts = (module.agent, module.env, module.reward, module.algorithm)
        own = all(type(part).__module__.startswith("toolagent_pl.") for part in parts)
        return own and not module.env.runs_foreign_code and bool(module.ranks == 1)

    def _compiled(self, function: Callable[..., T], *arguments: Any) -> T:
        name = function.__name__
        if name not in self._functions:
            if not self._functions:
                rank_zero_info("Compiling the training step, which takes some minutes.")
            with torch.no_grad():
                function(*arguments)  # environments make their tables: they are taken as they are
            self._functions[name] = torch.compile(function, dynamic=False, mode="reduce-overhead")
        found: T = tree_map_only(Tensor, torch.clone, self._functions[name](*arguments))
        return found


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
