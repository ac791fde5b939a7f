"""What a GPU replays or a compiler makes of an update is the update: with CUDA graphs that are played on a CPU.

And an update stays on its device. On the device "meta" tensors have no content: whatever has to look at one fails,
where it would make the CPU wait for a GPU; and a mode that sees all operations tells which take a tensor from the CPU.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.strategies import MAX
from tests.toy import Room, fit
from toolagent_pl.envs.calculator import CalculatorEnv, ProgressReward, Reader, TransformerReader
from toolagent_pl.envs.tutorial import BlindAgent, TutorialA2C, TutorialEnv, TutorialReward
from toolagent_pl.rl.a2c import A2C
from toolagent_pl.rl.agent import Agent
from toolagent_pl.rl.grpo import GRPO, RLOO
from toolagent_pl.rl.mlp import MLPAgent
from toolagent_pl.rl.ppo import PPO
from toolagent_pl.rl.replay import SuccessReplay
from toolagent_pl.rl.rewards import OutcomeReward
from toolagent_pl.rl.rollout import MIN_ROWS_TO_SYNC, can_sync
from toolagent_pl.training.acceleration import MIN_FOR_COMPILING, GraphedCallable
from toolagent_pl.training.module import ToolAgent
from toolagent_pl.training.stream import ProblemStream

CALCULATOR = CalculatorEnv(["T0"], max_steps=3)
BLIND = CalculatorEnv(["T0"], max_steps=3, feedback="none")
make_tensor = torch.tensor

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}


class Graph:
    """Operations on tensors, done again in the same places."""

    def __init__(self):
        self.operations = []
        self.replays = 0

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, arguments, options, results in self.operations:
            again = function(*arguments, **options)
            for result, other in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(result, torch.Tensor) and result.data_ptr() != other.data_ptr():
                    result.copy_(other)


class Recording(TorchDispatchMode):
    """Notes operations in a graph."""

    active = False

    def __init__(self, graph, capture_error_mode):
        super().__init__()
        self.graph = graph

    def __enter__(self):
        Recording.active = True
        return super().__enter__()

    def __exit__(self, *error):
        Recording.active = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        mask = any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(arguments[1:]))
        if function.overloadpacket in WAITS or (function is torch.ops.aten.index.Tensor and mask):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.graph.operations.append((function, arguments, options or {}, results))
        return results


@pytest.fixture
def played(monkeypatch):
    """A CPU that takes itself for a GPU; the graphs that were captured."""
    found = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: found.append(Graph()) or found[-1])
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr("toolagent_pl.training.acceleration.can_capture", lambda _: True)
    monkeypatch.setattr("toolagent_pl.rl.rollout.is_capturing", lambda _: Recording.active)
    for name in ("rl.rollout", "envs.calculator.reader"):  # a CPU would drop ended episodes
        monkeypatch.setattr(f"toolagent_pl.{name}.can_sync", lambda *_: False)
    return found


class Changes(Callback):
    """What changes from batch to batch, and is nothing that a graph could hold on to."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        module.step_cost = 0.02 * batch_idx
        for group in module.optimizers().param_groups:
            group["lr"] = 3e-3 / (1 + batch_idx)


def curves(batches=6, **options):
    """The metrics of a short run."""
    torch.manual_seed(0)
    module = ToolAgent(**options)
    metrics = fit(module, batches, callbacks=[Changes()]).callback_metrics
    assert {"train/ent_coef", "train/gradient_norm", "actions/ANS"} <= set(metrics)
    weights = torch.cat([weight.detach().flatten() for weight in module.agent.parameters()])
    return {**{name: float(value) for name, value in metrics.items()}, "weights": float(weights.square().sum())}


@pytest.mark.parametrize(
    "options",
    [
        {"agent": BlindAgent, "env": BLIND, "algorithm": A2C(ent_target=0.5)},
        {"algorithm": PPO(minibatches=2, epochs=2)},
        {"algorithm": GRPO(kl_coef=0.1), "accumulate": 2},
        {"agent": partial(Reader, recurrent=True)},
        {"agent": TransformerReader},
        {"agent": partial(MLPAgent, recurrent=True), "reward": ProgressReward(), "algorithm": RLOO()},
        {"agent": BlindAgent, "env": TutorialEnv(["T0"]), "algorithm": TutorialA2C(), "reward": TutorialReward()},
        {"algorithm": PPO(normalize_advantage="minibatch"), "replay": lambda: SuccessReplay(batch_size=16)},
    ],
    ids=["A2C", "PPO", "GRPO in parts", "recurrent", "Transformer", "MLP, RLOO", "tutorial", "PPO and replay"],
)
def test_a_replayed_run_is_the_run(played, options):
    found = []
    for cuda_graphs in (None, False):
        own = {"replay": options["replay"]()} if "replay" in options else {}
        found.append(curves(**{"env": CALCULATOR, **options, **own}, cuda_graphs=cuda_graphs))
        if cuda_graphs is None:
            assert sum(graph.replays for graph in played) >= 10
            count = len(played)
    assert len(played) == count
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6, nan_ok=True)


class Waits(OutcomeReward):
    def __call__(self, env, rollout):
        paid = super().__call__(env, rollout)
        assert float(paid.max()) <= 1
        return paid


def test_what_cannot_be_replayed_is_one_line(played, monkeypatch, recwarn):
    """And is done without where nobody asked for it."""
    with pytest.raises(ValueError, match=r"^cuda_graphs: got true, but what collect calls waits for the GPU \(CUDA"):
        curves(env=CALCULATOR, reward=Waits(), cuda_graphs=True)
    before = len(played)
    plain = curves(env=CALCULATOR, reward=Waits())  # no part of the package: it is not tried
    assert len(played) == before
    paid = OutcomeReward.__call__

    def waits(*arguments):
        rewards = paid(*arguments)
        assert float(rewards.max()) <= 1
        return rewards

    monkeypatch.setattr(OutcomeReward, "__call__", waits)
    assert curves(env=CALCULATOR) == pytest.approx(plain, rel=1e-4, abs=1e-6, nan_ok=True)
    said = [str(warning.message) for warning in recwarn]
    assert sum("Kernels are started one by one, since what collect calls waits for the GPU" in one for one in said) == 1


def test_a_cpu_replays_nothing():
    with pytest.raises(ValueError, match=r"^cuda_graphs: got true on 1 devices of type cpu, expected one GPU"):
        curves(env=CALCULATOR, cuda_graphs=True)


def test_parts_of_ones_own_are_not_replayed_without_being_asked():
    class Own(Reader):
        """It might count its calls."""

    assert ToolAgent(CALCULATOR).acceleration.may_capture
    assert not ToolAgent(Room()).acceleration.may_capture
    assert not ToolAgent(CalculatorEnv(["E1"], tools=["ADD", MAX])).acceleration.may_capture
    assert not ToolAgent(CALCULATOR, reward=Waits()).acceleration.may_capture
    assert not ToolAgent(CALCULATOR, agent=Own).acceleration.may_capture
    assert ToolAgent(CALCULATOR, agent=Own, cuda_graphs=True).acceleration.may_capture
    assert not ToolAgent(CALCULATOR, cuda_graphs=False).acceleration.may_capture


@pytest.mark.usefixtures("played")
def test_results_are_the_callers_own_unless_they_stay():
    weight = torch.nn.Linear(1, 1, bias=False)
    given = [torch.full((3, 1), float(k)) for k in range(5)]
    loss = GraphedCallable(lambda x: weight(x).sum(), weight)
    losses = [loss(x) for x in given]
    for k, one in enumerate(losses):
        assert one.item() == pytest.approx(3 * k * weight.weight.item())
    sum(losses).backward()  # the gradients of several replays are added up
    assert weight.weight.grad.item() == 3 * (0 + 1 + 2 + 3 + 4)

    stays, reads = GraphedCallable(lambda x: x * 2, copied=False), GraphedCallable(lambda x: x * 2)
    first = stays(given[1])
    assert stays(given[2]) is first
    assert first.flatten().tolist() == [4, 4, 4]
    assert [reads(stays(x)).flatten().tolist()[0] for x in given] == [0, 4, 8, 12, 16]


@pytest.mark.usefixtures("played")
def test_weights_may_begin_to_learn():
    layers = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    function = GraphedCallable(lambda x: layers(x).sum(), layers)
    for learns in (False, True, False):
        layers[0].requires_grad_(learns)
        for k in range(4):
            layers.zero_grad()
            function(torch.full((2, 1), float(k))).backward()
            assert layers[1].bias.grad.item() == 2
            assert (layers[0].weight.grad is not None) == learns
            if learns:
                assert layers[0].weight.grad.item() == pytest.approx(2 * k * layers[1].weight.item())


def test_other_shapes_are_recorded_anew(played):
    function = GraphedCallable(lambda x, flag: x.sum() if flag else x.amax())
    for size in (2, 3):
        for flag in (True, False):
            for k in range(1, 5):
                found = function(torch.full((size,), float(k)), flag)
                assert found.item() == (size * k if flag else k)
    assert [graph.replays for graph in played] == [3] * 4


# What torch.compile makes of it: one graph, the same numbers.

compiled = pytest.mark.skipif(torch.__version__ < MIN_FOR_COMPILING, reason="PyTorch cannot compile it")


@pytest.fixture
def traced(monkeypatch):
    """Names of the functions that are compiled, as they are traced; each of them once."""
    found, compile_function = [], torch.compile

    def trace(function, dynamic, mode):
        assert mode == "reduce-overhead"
        found.append(function.__name__)
        graph = compile_function(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        returned = []

        def replay(*arguments):
            for tensor in returned:  # like CUDA graphs, each call makes what the last one returned worthless
                tensor.detach().fill_(torch.nan)
            result = graph(*arguments)
            returned[:] = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.is_floating_point()]
            return result

        return replay

    monkeypatch.setattr(torch, "compile", trace)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield found
    torch._dynamo.reset()


@compiled
@pytest.mark.parametrize(
    "options",
    [
        {"env": CALCULATOR, "reward": ProgressReward(), "algorithm": PPO(epochs=2, minibatches=2, ent_target=0.5)},
        {"env": CALCULATOR, "agent": TransformerReader, "algorithm": GRPO(), "accumulate": 2},
    ],
    ids=["PPO", "GRPO in parts"],
)
def test_a_compiled_run_is_the_run(traced, options):
    """With the graph as it is traced, which serves all batches; no prompt of them is as wide as the next."""
    found = curves(batches=3, **options, compile_step=True)
    assert traced == ["collect", "minibatch_loss"]
    assert found == pytest.approx(curves(batches=3, **options), rel=1e-3, abs=1e-5, nan_ok=True)


# An update stays on its device.


class NothingMixed(TorchDispatchMode):
    """Refuses operations on tensors of several devices, copies among them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        assert len(devices) < 2, f"{func} takes a tensor from the CPU"
        return result


def without_copy(*args, device="cpu", **kwargs):
    """``torch.tensor``, which fills a tensor on the CPU and copies it. No mode sees anything of that."""
    assert torch.device(device).type == "cpu", "torch.tensor copies to a device"
    return make_tensor(*args, **kwargs)


class EvaluatedAgain(BlindAgent):
    """Takes the way of an agent that has no forward of its own."""

    forward = Agent.forward


@pytest.mark.parametrize(
    ("agent", "env", "reward", "algorithm", "options"),
    [
        (BlindAgent, BLIND, OutcomeReward(), A2C(ent_target=1.0), {}),
        (EvaluatedAgain, BLIND, ProgressReward(), A2C(gamma=0.9), {}),
        (BlindAgent, TutorialEnv(max_steps=6), TutorialReward(), TutorialA2C(), {}),
        (Reader, CalculatorEnv(), OutcomeReward(), PPO(ent_target=1.0), {}),
        (Reader, CalculatorEnv(), OutcomeReward(), GRPO(kl_coef=0.1), {"accumulate": 3}),
        (MLPAgent, CALCULATOR, OutcomeReward(), PPO(), {}),
    ],
    ids=["outcome", "progress, evaluated again", "tutorial", "reader by PPO", "reader by GRPO in parts", "MLP"],
)
def test_an_update_stays_on_its_device_and_waits_for_nothing(monkeypatch, agent, env, reward, algorithm, options):
    module = ToolAgent(env, agent=agent, reward=reward, algorithm=algorithm, **options).to("meta")
    module.trainer = SimpleNamespace(log_every_n_steps=10)
    # A number on the CPU may take part in operations on a GPU, but not in those on "meta".
    module.ent_coef = module.ent_coef.to("meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # PyTorch does not know it for "meta"
    optimizer = torch.optim.Adam([weight for weight in module.parameters() if weight.requires_grad])
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(optimizer, "step", lambda: module.on_before_optimizer_step(optimizer))
    stream = ProblemStream(env, seed=0, batch_size=32, batches=10, device="meta")
    module.training_step(stream.batch(0), 0)  # tables are made once, on the CPU
    module.validation_step(stream.batch(0), 0)
    monkeypatch.setattr(torch, "tensor", without_copy)
    with NothingMixed():
        module.step_cost = 0.1
        module.training_step(stream.batch(1), 0)
        module.validation_step(stream.batch(2), 0)
    assert module.batches_seen == 2
    without = [name for name, weight in module.agent.named_parameters() if weight.grad is None]
    assert all("value" in name or "level" in name for name in without)


def test_a_gpu_is_waited_for_in_huge_batches_alone(monkeypatch):
    """And never while its kernels are captured."""
    capturing = [False]
    monkeypatch.setattr("toolagent_pl.rl.rollout.is_capturing", lambda _: capturing[0])
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [can_sync(gpu, rows) for rows in (1, MIN_ROWS_TO_SYNC - 1, MIN_ROWS_TO_SYNC)] == [False, False, True]
    assert can_sync(cpu, 1)
    capturing[0] = True
    assert not can_sync(gpu, MIN_ROWS_TO_SYNC)
