"""The updates of ``fit`` in a bare loop, without Lightning's Trainer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from toolagent_pl import Solver
from toolagent_pl.agents import BlindAgent, Reader
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.graphs import Recordings
from toolagent_pl.learning import PPO
from toolagent_pl.module import ToolAgent, Update
from toolagent_pl.problems import Stages
from toolagent_pl.problems.stream import ProblemStream
from toolagent_pl.process import PROBLEMS_PER_THREAD, keep_freed_memory

# What `fit` has without any configuration.
DEFAULT_RUN: dict[str, Any] = {
    "algorithm": PPO(minibatches=2, ent_coef=0.15, ent_target=1.0),
    "learning_rate": 4e-3,
    "betas": (0.9, 0.98),
}
Mode = Literal["eager", "replayed", "compiled"]
STEADY_RATE = 1e-6  # of updates whose work shall stay the same


def make_module(agent: str, stages: Sequence[str] = ("T0", "T1", "T2"), **options: Any) -> ToolAgent:
    """The blind agent or the reader on the calculator, with the defaults of the module otherwise."""
    torch.manual_seed(0)
    if agent == "blind":
        return ToolAgent(stages, agent=BlindAgent, **options)
    return ToolAgent(stages, agent=Reader, env=CalculatorEnv(max_steps="auto"), **options)


def trained_reader(stage: str, width: int, **options: Any) -> ToolAgent:
    """The agent that comes with the package, in a network of another width: what it has more is zero."""
    module = ToolAgent([stage], agent=partial(Reader, hidden=width), env=CalculatorEnv(max_steps="auto"), **options)
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
    """Actions of the textbook's plan for a problem of a stage, on average: ten for five operators."""
    problems = ProblemStream(Stages([stage]), 0, 2**15, batches=1).batch(0)
    return round(float(problems.textbook_length.double().mean()))


def as_command_line(batch: int) -> None:
    """Have this process use memory and threads as ``fit`` does."""
    keep_freed_memory()
    torch.set_num_threads(min(torch.get_num_threads(), max(1, batch // PROBLEMS_PER_THREAD)))


class BareLoop:
    """Nothing but problems, rollout, reward, loss, gradient, clipping and Adam.

    Args:
        module: A module without a trainer.
        batch: Problems in an update.
        device: Where to train.
        mixture: Share of each stage.
        low: Precision of matrix products, as in Lightning's mixed precision; None for that of the weights.
        mode: ``replayed`` records the kernels of a GPU and replays them; ``compiled`` compiles all but the optimizer.
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
        self.module, self.batch, self.device, self.low = module.to(device), batch, torch.device(device), low
        stages = Stages(module.stages.stages[: module.trained_stages], module.stages.vocabulary.tools)
        self.stream = ProblemStream(stages, module.seed, batch, batches=1, device=device, replay=mode == "replayed")
        if mixture is not None:
            self.stream.mixture = list(mixture)
        optimizer = module.configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: module.on_before_optimizer_step(optimizer))  # clips
        # What the Trainer would do.
        module.optimizers = lambda: optimizer  # type: ignore[assignment,method-assign,return-value]
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[assignment,method-assign]
        module.ent_coef = module.ent_coef.to(device)
        self.learn: Callable[..., Update] = module.learn
        self.position = 0
        self.actions = torch.zeros((), dtype=torch.int64, device=device)  # taken so far
        if mode == "replayed":
            module._run = Recordings(module)  # type: ignore[method-assign]
            self.learn = partial(module._run, module.learn)
        elif mode == "compiled":
            module.learn(self.stream.batch(0), module.ent_coef)  # the environment makes its tables
            self.learn = torch.compile(module.learn, dynamic=False, mode="reduce-overhead")

    def update(self) -> Update:
        """Do one whole update."""
        module, problems = self.module, self.stream.batch(self.position)
        self.position += 1
        single = module._single_pass
        with torch.autocast(self.device.type, self.low, enabled=self.low is not None, cache_enabled=False):
            update = self.learn(problems, module.ent_coef) if single else module._learn_in_parts(problems, False)
        if single:
            module._optimize([update.loss])
            module._steer(update.entropy)
        self.actions += update.actions
        return update
