"""What torch.compile makes of machines and of a training step: one graph, the same numbers."""

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
import torch._inductor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from tests.test_cli import error_of
from tests.test_fit import last_values
from toolagent_pl import CalculatorMachine, TutorialMachine
from toolagent_pl.agents import ActorCritic, Agent, gru
from toolagent_pl.cli import main
from toolagent_pl.learning.algorithms import A2C, TutorialA2C
from toolagent_pl.machines import execute
from toolagent_pl.machines.rewards import OutcomeReward, ProgressReward, TutorialReward
from toolagent_pl.module import LEAST_FOR_COMPILING, ToolAgent
from toolagent_pl.problems import Ladder
from toolagent_pl.problems.stream import ProblemStream
from toolagent_pl.tokens import TOOLS, Token

pytestmark = pytest.mark.skipif(torch.__version__ < LEAST_FOR_COMPILING, reason="PyTorch cannot compile it")

COMPILED = ["fit", "--trainer.accelerator=cpu", "--model.compile_step=true", "--model.agent.d=16"]
COMPILED += ["--data.stages=[T0]", "--curriculum.stages=[0]", "--model.machine.max_steps=3"]
ANY_TOKEN = [str(token) for token in Token if token < Token.OPEN]


class Own(Agent):
    """An agent that knows no more than it must."""

    def __init__(self, stages):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 16)
        self.heads = torch.nn.Linear(16, len(TOOLS) + 1)
        self.register_buffer("actions", torch.tensor(TOOLS))

    def encode(self, problems):
        return self.embedding(problems.observation).sum(1)

    def step(self, hidden, heard):
        return torch.tanh(hidden + self.embedding(heard))

    def log_policy(self, hidden):
        return self.heads(hidden)[..., 1:].log_softmax(-1)

    def values(self, hidden):
        return self.heads(hidden)[..., 0]


def small(stages):
    return ActorCritic(stages, d=16)


def talkative(stages):
    return ActorCritic(stages, d=16, actions=ANY_TOKEN, context="batch")


@pytest.fixture(autouse=True)
def compiled_anew():
    """Each function is compiled once, and nothing of it is left to the next test."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("machine", [CalculatorMachine(max_steps=9), TutorialMachine(max_steps=9)])
def test_a_machine_compiles_whole(machine):
    draw = torch.Generator().manual_seed(0)
    problems = ProblemStream(Ladder(["T0", "T1", "T2"]), seed=0, batch_size=300, batches=1).batch(0)
    actions = torch.randint(-1, 20, (300, 12), generator=draw)
    tools = torch.tensor(TOOLS)[torch.randint(len(TOOLS), (300, 12), generator=draw)]
    actions = torch.where(torch.rand(300, 12, generator=draw) < 0.9, tools, actions)

    def run(problems, actions):
        return machine.outcome(execute(machine, problems, actions)[-1])

    outcome = torch.compile(run, fullgraph=True, backend="eager")(problems, actions)
    for ours, expected in zip(outcome, run(problems, actions), strict=True):
        assert torch.equal(ours, expected)
    assert outcome.answered.any()


@pytest.mark.parametrize(
    ("agent", "machine", "reward", "algorithm"),
    [
        (small, CalculatorMachine(max_steps=7), OutcomeReward(), A2C()),
        (small, CalculatorMachine(max_steps=7), ProgressReward(), A2C(discount=0.9)),
        (talkative, TutorialMachine(max_steps=6), TutorialReward(), TutorialA2C()),
        (Own, CalculatorMachine(max_steps=7), OutcomeReward(), A2C(normalize_advantage=False)),
    ],
    ids=["outcome", "progress", "tutorial", "own agent"],
)
def test_a_compiled_step_is_the_step(agent, machine, reward, algorithm):
    """Rollout, loss, curves and gradients, in one graph that serves all batches."""
    module = ToolAgent(agent=agent, machine=machine, reward=reward, algorithm=algorithm)
    stream = ProblemStream(module.ladder, seed=0, batch_size=64, batches=10)
    module.learn(stream.batch(0))
    compiled = torch.compile(module.learn, fullgraph=True, dynamic=False, backend="aot_eager")
    for position in range(2):
        results = []
        for learn in (module.learn, compiled):
            module.zero_grad()
            step = learn(stream.batch(position), with_points=True)
            step.loss.backward()
            results.append((*step, {name: p.grad for name, p in module.named_parameters()}))
        assert_close(*results, rtol=1e-4, atol=1e-6)


def test_a_mean_over_ranks_is_part_of_a_compiled_step(tmp_path):
    """This process is all of the group, and believes in another rank, which counts for nothing."""
    module = ToolAgent(agent=small, machine=CalculatorMachine(max_steps=4), stages=["T0"])
    module._trainer = SimpleNamespace(world_size=2)
    problems = ProblemStream(module.ladder, seed=0, batch_size=64, batches=1).batch(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        expected = module.learn(problems).loss
        compiled = torch.compile(module.learn, fullgraph=True, dynamic=False, backend="aot_eager")
        assert_close(compiled(problems).loss, expected)
    finally:
        torch.distributed.destroy_process_group()
    module._trainer = None
    assert not torch.isclose(module.learn(problems).loss, expected)


def test_ranks_do_not_cut_a_compiled_step(monkeypatch):
    """DistributedDataParallel asks for a graph for each bucket of gradients, the first of them 1 MB."""
    module = ToolAgent(["T0"], lambda stages: ActorCritic(stages, d=256), CalculatorMachine(3), compile_step=True)
    module._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1, global_step=0, log_every_n_steps=10)
    graphs = []

    def traced(function, compile_function=torch.compile, **options):
        del options["mode"]
        return compile_function(function, backend=lambda graph, _: graphs.append(graph) or graph, **options)

    monkeypatch.setattr(torch, "compile", traced)
    active = SimpleNamespace(bucket_bytes_cap=2**20)
    monkeypatch.setattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", active)
    module.training_step(ProblemStream(module.ladder, seed=0, batch_size=32, batches=1).batch(0), 0)
    assert len(graphs) == 1


def test_a_compiled_step_stays_on_its_device(monkeypatch):
    """A tensor of the CPU in it would keep a GPU from making a graph of it."""
    monkeypatch.setattr(gru, "_MINUS_ONE", torch.tensor(-1.0, device="meta"))  # of the step that is not compiled
    module = ToolAgent(agent=small, machine=CalculatorMachine(max_steps=7)).to("meta")
    stream = ProblemStream(module.ladder, seed=0, batch_size=32, batches=10, device="meta")
    module.learn(stream.batch(0))
    devices = set()

    def backend(graph, _):
        nodes = [node for module in graph.modules() if hasattr(module, "graph") for node in module.graph.nodes]
        results = tree_leaves([node.meta.get("example_value") for node in nodes])
        devices.update(result.device.type for result in results if isinstance(result, torch.Tensor))
        return graph

    torch.compile(module.learn, fullgraph=True, dynamic=False, backend=backend)(stream.batch(1), with_points=True)
    assert devices == {"meta"}


def test_a_compiled_run_solves_its_stage(tmp_path, monkeypatch):
    """With the graph as it is traced; what takes half a minute to be made of it is run by the checks of a GPU."""
    monkeypatch.chdir(tmp_path)
    modes = []

    def traced(function, dynamic, mode, compile_function=torch.compile):
        modes.append(mode)
        return compile_function(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    main([*COMPILED, "--trainer.precision=bf16-mixed"])
    assert modes == ["reduce-overhead"]
    torch._dynamo.reset()
    main([*COMPILED, "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=1"])
    assert modes == ["reduce-overhead", "default"]
    values = last_values("lightning_logs/version_0")
    assert values["test/T0_accuracy"] == 1.0
    assert 0 < values["tools/ANS"] < 1


def test_a_pytorch_that_is_too_old_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toolagent_pl.module.LEAST_FOR_COMPILING", "99.1")
    expected = f"model.compile_step: got true with PyTorch {torch.__version__}, expected 99.1 or newer"
    assert expected in error_of(capsys, *COMPILED)


def test_a_compiler_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    nowhere = torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "nothing"))})
    with nowhere, pytest.raises(SystemExit) as stopped:
        main(COMPILED)
    said = str(stopped.value)
    assert said.startswith("error: model.compile_step: got true, which torch.compile cannot do here (")
    assert "C++ compiler" in said
    assert "\n" not in said
