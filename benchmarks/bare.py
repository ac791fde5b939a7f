"""The updates of ``fit`` in a bare loop, without Lightning's Trainer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from toolagent_pl import CalculatorEnv, Solver, ToolAgent
from toolagent_pl.envs.calculator import Reader
from toolagent_pl.envs.tutorial import BlindAgent
from toolagent_pl.rl import A2C, PPO
from toolagent_pl.training.acceleration import Acceleration, GraphedCallable
from toolagent_pl.training.ranks import PROBLEMS_PER_THREAD, keep_freed_memory
from toolagent_pl.training.stream import ProblemStream

# What `fit` has without any configuration.
DEFAULT_RUN: dict[str, Any] = {
    "algorithm": PPO(minibatches=4, ent_coef=0.15, ent_target=1.0),
    "learning_rate": 1e-2,
    "betas": (0.9, 0.98),
    "weight_decay": 0.2,
}
TUTORIAL = ("T0", "T1", "T2")
Mode = Literal["eager", "replayed", "compiled"]
STEADY_RATE = 1e-6  # of updates whose work shall stay the same


def make_module(agent: str, stages: Sequence[str] = TUTORIAL, **options: Any) -> ToolAgent:
    """The blind agent, with A2C and no feedback, or the reader; with the defaults of the module otherwise."""
    torch.manual_seed(0)
    if agent == "blind":
        env = CalculatorEnv(stages, max_steps=12, feedback="none")
        return ToolAgent(env, agent=BlindAgent, **{"algorithm": A2C(), **options})
    return ToolAgent(CalculatorEnv(stages), **options)


def trained_reader(stage: str, width: int, **options: Any) -> ToolAgent:
    """The agent that comes with the package, in a network of another width: what it has more is zero."""
    module = ToolAgent(CalculatorEnv([stage]), agent=partial(Reader, hidden=width), **options)
    trained: Any = Solver.from_checkpoint().agent
    with torch.no_grad():
        for name, into in module.agent.named_parameters():
            weight = trained.get_parameter(name)
            critic = trained.critic if name.startswith("look.") else 0  # the last rows of that layer
            borders = [len(weight) - critic], [len(into) - critic]
            into.zero_()
            for to, of in zip(into.tensor_split(borders[1]), weight.tensor_split(borders[0]), strict=True):
                to[tuple(map(slice, of.shape))] = of
    return module


def steps_of(stage: str) -> int:
    """Actions of the reference plan for a problem of a stage, on average: ten for five operators."""
    problems = ProblemStream(CalculatorEnv([stage]), 0, 2**15, batches=1).batch(0)
    return round(float(problems.reference_length.double().mean()))


def as_command_line(batch: int) -> None:
    """Have this process use memory and threads as ``fit`` does."""
    keep_freed_memory()
    torch.set_num_threads(min(torch.get_num_threads(), max(1, batch // PROBLEMS_PER_THREAD)))


class Replaying:
    """What ``ToolAgent.acceleration`` does on a GPU during a run: functions are captured and replayed."""

    def __init__(self, module: ToolAgent) -> None:
        self._module = (module,)
        self._functions: dict[str, GraphedCallable[Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any, copied: bool = True) -> Any:
        """What the function returns."""
        graphed = GraphedCallable(function, self._module[0], copied)
        return self._functions.setdefault(function.__name__, graphed)(*arguments)


class BareLoop:
    """Nothing but problems, rollout, reward, loss, gradient, clipping and AdamW.

    Args:
        module: A module without a trainer.
        batch: Problems in an update.
        device: Where to train.
        mixture: Share of each stage.
        low: Precision of matrix products, as in Lightning's mixed precision; None for that of the weights.
        mode: ``replayed`` captures the kernels of a GPU and replays them; ``compiled`` compiles rollout and loss.

    Attributes:
        actions: Taken so far, a scalar on the device.
    """

    def __init__(
        self,
        module: ToolAgent,
        batch: int,
        device: torch.device | str = "cpu",
        mixture: Sequence[float] | None = None,
        low: torch.dtype | None = None,
        mode: Mode = "eager",
    ) -> None:
        self.module, self.device, self.low = module.to(device), torch.device(device), low
        if mode == "replayed":
            module.acceleration = Replaying(module)  # type: ignore[assignment]
        elif mode == "compiled":
            module.acceleration = Acceleration(module, cuda_graphs=None, compile_step=True)
        self.stream = ProblemStream(module.env, module.seed, batch, 1, device=device, replay=mode == "replayed")
        if mixture is not None:
            self.stream.mixture = list(mixture)
        optimizer = module.configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: module.on_before_optimizer_step(optimizer))  # clips
        # What the Trainer would do.
        module.optimizers = lambda: optimizer  # type: ignore[assignment,method-assign,return-value]
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[assignment,method-assign]
        module.is_logging_batch = lambda: False  # type: ignore[method-assign]
        self.actions = torch.zeros((), dtype=torch.int64, device=device)

    def update(self) -> None:
        """Do one whole update, and count its actions."""
        problems = self.stream.batch(self.module.batches_seen)
        with torch.autocast(self.device.type, self.low, enabled=self.low is not None, cache_enabled=False):
            self.module.training_step(problems, 0)
        self.actions += self.module.actions_taken
