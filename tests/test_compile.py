"""What torch.compile makes of a training step: one graph, the same numbers."""

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
import torch._inductor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from tests.conftest import BLIND, ONE_STAGE
from tests.test_cli import error_of
from tests.test_fit import last_values
from toolagent_pl.agents import BlindAgent, Reader
from toolagent_pl.cli import main
from toolagent_pl.envs import CalculatorEnv
from toolagent_pl.learning import A2C, PPO, OutcomeReward, ProgressReward
from toolagent_pl.module import LEAST_FOR_COMPILING, ToolAgent
from toolagent_pl.problems.stream import ProblemStream

pytestmark = pytest.mark.skipif(torch.__version__ < LEAST_FOR_COMPILING, reason="PyTorch cannot compile it")

COMPILED = ["fit", BLIND, *ONE_STAGE, "--trainer.accelerator=cpu", "--model.compile_step=true", "--model.agent.d=16"]
COMPILED += ["--data.batch_size=64", "--data.batches_per_epoch=3", "--data.val_problems=20", "--trainer.max_epochs=2"]
COMPILED += ["--trainer.log_every_n_steps=1", "--solved.accuracy=null"]
# What falls from batch to batch is no reason to compile again.
COMPILED += ["--polish.at=1e-9", "--polish.batches=3", "--polish.step_cost=0.1", "--polish.anneal=true"]


def blind(spec):
    return BlindAgent(spec, d=16)


@pytest.fixture(autouse=True)
def compiled_anew():
    """Each function is compiled once, and nothing of it is left to the next test."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("agent", "env", "reward", "algorithm"),
    [
        (blind, CalculatorEnv(max_steps=4, feedback="none"), OutcomeReward(), A2C(gamma=0.9)),
        (Reader, CalculatorEnv(max_steps=3), ProgressReward(), A2C()),
    ],
    ids=["blind", "reader"],
)
def test_a_compiled_step_is_the_step(agent, env, reward, algorithm):
    """Rollout, loss, curves and gradients, in one graph that serves all batches, and any weight of the entropy."""
    torch.manual_seed(0)
    module = ToolAgent(["T0"], agent=agent, env=env, reward=reward, algorithm=algorithm)
    stream = ProblemStream(module.stages, seed=0, batch_size=64, batches=10)
    # A batch on a CPU is as wide as its longest prompt; those of a GPU are all as wide.
    batches = [stream.batch(position) for position in range(20)]
    widest = max(batch.prompt.shape[1] for batch in batches)
    batches = [batch for batch in batches if batch.prompt.shape[1] == widest][:2]
    module.learn(batches[0], module.ent_coef)
    compiled = torch.compile(module.learn, fullgraph=True, dynamic=False, backend="aot_eager")
    for problems, ent_coef in zip(batches, (0.05, 0.2), strict=True):
        results = []
        for learn in (module.learn, compiled):
            module.zero_grad()
            update = learn(problems, torch.tensor(ent_coef, dtype=torch.float64), with_metrics=True)
            update.loss.backward()
            results.append((*update, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}))
        assert_close(*results, rtol=1e-4, atol=1e-6)
        assert any(gradient.abs().max() > 1e-3 for gradient in results[0][-1].values())


def test_a_mean_over_ranks_is_part_of_a_compiled_step(tmp_path):
    """This process is all of the group, and believes in another rank, which counts for nothing."""
    module = ToolAgent(["T0"], agent=blind, env=CalculatorEnv(max_steps=3, feedback="none"))
    module._trainer = SimpleNamespace(world_size=2)
    problems = ProblemStream(module.stages, seed=0, batch_size=64, batches=1).batch(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        expected = module.learn(problems, module.ent_coef).loss
        compiled = torch.compile(module.learn, fullgraph=True, dynamic=False, backend="eager")
        assert_close(compiled(problems, module.ent_coef).loss, expected)
    finally:
        torch.distributed.destroy_process_group()
    module._trainer = None
    assert not torch.isclose(module.learn(problems, module.ent_coef).loss, expected)


def test_ranks_do_not_cut_a_compiled_step(monkeypatch):
    """DistributedDataParallel asks for a graph for each bucket of gradients, the first of them 1 MB."""
    env = CalculatorEnv(max_steps=3, feedback="none")
    module = ToolAgent(["T0"], agent=lambda spec: BlindAgent(spec, d=256), env=env, compile_step=True)
    module._trainer = SimpleNamespace(world_size=1, log_every_n_steps=10)
    monkeypatch.setattr(module, "_optimize", lambda _: None)
    graphs = []

    def traced(function, compile_function=torch.compile, **options):
        assert options.pop("mode") == "reduce-overhead"
        return compile_function(function, backend=lambda graph, _: graphs.append(graph) or graph, **options)

    monkeypatch.setattr(torch, "compile", traced)
    active = SimpleNamespace(bucket_bytes_cap=2**20)
    monkeypatch.setattr(torch.nn.parallel.DistributedDataParallel, "_active_ddp_module", active)
    module.training_step(ProblemStream(module.stages, seed=0, batch_size=32, batches=1).batch(0), 0)
    assert len(graphs) == 1


def test_a_compiled_step_stays_on_its_device():
    """A tensor of the CPU in it would keep a GPU from making a graph of it."""
    module = ToolAgent(["T0"], agent=Reader, env=CalculatorEnv(max_steps=3)).to("meta")
    stream = ProblemStream(module.stages, seed=0, batch_size=32, batches=10, device="meta")
    ent_coef = module.ent_coef.to("meta")
    module.learn(stream.batch(0), ent_coef)
    devices = set()

    def backend(graph, _):
        nodes = [node for module in graph.modules() if hasattr(module, "graph") for node in module.graph.nodes]
        results = tree_leaves([node.meta.get("example_value") for node in nodes])
        devices.update(result.device.type for result in results if isinstance(result, torch.Tensor))
        return graph

    compiled = torch.compile(module.learn, fullgraph=True, dynamic=False, backend=backend)
    compiled(stream.batch(1), ent_coef, with_metrics=True)
    assert devices == {"meta"}


@pytest.mark.parametrize(
    ("options", "functions"),
    [
        (["--model.algorithm.ent_target=0.5"], ["learn"]),
        (
            [
                "--model.algorithm=PPO",
                "--model.algorithm.epochs=2",
                "--model.algorithm.normalize_advantage=minibatch",
                "--model.replay=SuccessReplay",
                "--model.replay.batch_size=16",
            ],
            ["_collect", "_minibatch_loss"],
        ),
        (["--model.accumulate=2", "--model.algorithm=GRPO"], ["_collect", "_minibatch_loss"]),
    ],
    ids=["A2C", "PPO and replay", "GRPO in parts"],
)
def test_a_compiled_run_is_the_run(tmp_path, monkeypatch, options, functions):
    """With the graph as it is traced; what takes half a minute to be made of it is run by the checks of a GPU.

    Like CUDA graphs, each call makes what the last one returned worthless.
    """
    monkeypatch.chdir(tmp_path)
    compiled = []

    def traced(function, dynamic, mode, compile_function=torch.compile):
        assert mode == "reduce-overhead"
        compiled.append(function.__name__)
        graph = compile_function(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        returned = []

        def replay(*arguments):
            for tensor in returned:
                tensor.detach().fill_(torch.nan)
            result = graph(*arguments)
            returned[:] = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.is_floating_point()]
            return result

        return replay

    monkeypatch.setattr(torch, "compile", traced)
    main([*COMPILED, *options])
    assert compiled == functions
    main([*COMPILED, *options, "--model.compile_step=false"])
    compiled, plain = (last_values(f"lightning_logs/version_{run}") for run in range(2))
    same = [name for name in plain if not name.startswith(("throughput/", "hp/", "epoch"))]
    assert {"train/ent_coef", "train/gradient_norm", "tools/ANS", "test/T0_accuracy"} <= set(same)
    assert {name: compiled[name] for name in same} == pytest.approx(
        {name: plain[name] for name in same}, rel=1e-3, abs=1e-5, nan_ok=True
    )


def test_one_graph_serves_prompts_of_all_lengths(monkeypatch):
    """A batch on a CPU is as wide as its longest prompt, and other batches would be compiled for again."""
    module = ToolAgent(["E2"], agent=Reader, env=CalculatorEnv(max_steps="auto"), algorithm=PPO(), compile_step=True)
    module._trainer = SimpleNamespace(world_size=1, log_every_n_steps=1000)
    monkeypatch.setattr(module, "_optimize", lambda losses, **_: list(losses))
    graphs = []

    def traced(function, dynamic, compile_function=torch.compile, **_):
        return compile_function(function, dynamic=dynamic, backend=lambda graph, _: graphs.append(graph) or graph)

    monkeypatch.setattr(torch, "compile", traced)
    stream = ProblemStream(module.stages, seed=0, batch_size=4, batches=20)
    batches = [stream.batch(position) for position in range(20)]
    assert len({batch.prompt.shape[1] for batch in batches}) > 1
    for batch in batches:
        module.training_step(batch, 0)
    assert len(graphs) == 2


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
