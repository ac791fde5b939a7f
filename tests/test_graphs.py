"""What a GPU replays is what it would compute: with CUDA graphs that are played on a CPU."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import BLIND, ONE_STAGE
from tests.test_fit import last_values
from toolagent_pl import graphs
from toolagent_pl.agents import BlindAgent
from toolagent_pl.cli import main
from toolagent_pl.learning import OutcomeReward
from toolagent_pl.module import ToolAgent

SHORT = ["fit", BLIND, *ONE_STAGE, "--trainer.accelerator=cpu", "--trainer.max_epochs=4", "--data.val_problems=20"]
SHORT += [
    "--data.batch_size=64",
    "--data.batches_per_epoch=3",
    "--trainer.log_every_n_steps=1",
    "--solved.accuracy=null",
]
# What changes from batch to batch is nothing that a recording could hold on to.
SHORT += ["--polish.at=1e-9", "--polish.batches=6", "--polish.step_cost=0.1", "--polish.anneal=true"]
READER = ["--model.agent=Reader", "--model.env.feedback=spans"]


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
    """A CPU that takes itself for a GPU; the graphs that were recorded."""
    found = []

    def new():
        found.append(Graph())
        return found[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr("toolagent_pl.module.can_record", lambda _: True)
    monkeypatch.setattr("toolagent_pl.module.is_recording", lambda _: Recording.active)
    for name in ("learning.rollout.may_wait", "agents.reader.may_wait"):  # a CPU would drop ended episodes
        monkeypatch.setattr(f"toolagent_pl.{name}", lambda *_: False)
    return found


@pytest.mark.parametrize(
    "options",
    [
        ["--model.algorithm.ent_target=0.5"],
        [*READER, "--model.algorithm=PPO", "--model.algorithm.minibatches=2", "--model.algorithm.epochs=2"],
        [*READER, "--model.algorithm=GRPO", "--model.accumulate=2"],
        [*READER, "--model.agent.recurrent=true"],
        ["--model.agent=TransformerReader", "--model.env.feedback=spans", "--model.algorithm=PPO"],
        ["--model.reward=ProgressReward", "--model.algorithm=RLOO"],
        ["--model.env=TutorialEnv", "--model.algorithm=TutorialA2C", "--model.reward=TutorialReward"],
        [
            "--model.algorithm=PPO",
            "--model.algorithm.normalize_advantage=minibatch",
            "--model.replay=SuccessReplay",
            "--model.replay.batch_size=16",
        ],
    ],
    ids=["A2C", "PPO", "GRPO in parts", "recurrent", "Transformer", "RLOO", "tutorial", "PPO and replay"],
)
def test_a_replayed_run_is_the_run(tmp_path, monkeypatch, played, options):
    monkeypatch.chdir(tmp_path)
    main([*SHORT, *options])
    assert sum(graph.replays for graph in played) >= 12
    count = len(played)
    main([*SHORT, *options, "--model.cuda_graphs=false"])
    assert len(played) == count
    replayed, plain = (last_values(f"lightning_logs/version_{run}") for run in range(2))
    same = [name for name in plain if not name.startswith(("throughput/", "hp/", "epoch"))]
    assert {"train/ent_coef", "train/gradient_norm", "tools/ANS", "test/T0_accuracy"} <= set(same)
    assert {name: replayed[name] for name in same} == {name: pytest.approx(plain[name], nan_ok=True) for name in same}


OWN = """
from toolagent_pl.learning import OutcomeReward

class Waits(OutcomeReward):
    def __call__(self, env, rollout):
        paid = super().__call__(env, rollout)
        assert float(paid.max()) <= 1
        return paid
"""


def test_what_cannot_be_replayed_is_one_line(tmp_path, monkeypatch, played, capsys):
    """And is left alone where nobody asked for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("waits.py").write_text(OWN)
    with pytest.raises(SystemExit):
        main([*SHORT, "--model.reward=waits.Waits", "--model.cuda_graphs=true"])
    said = capsys.readouterr().err
    assert "error: model.cuda_graphs: got true, but what learn calls waits for the GPU (CUDA error: operation n" in said
    before = len(played)
    main([*SHORT, "--model.reward=waits.Waits", "--trainer.max_epochs=1"])
    assert len(played) == before


@pytest.mark.usefixtures("played")
def test_what_was_not_asked_for_is_done_without(tmp_path, monkeypatch, recwarn):
    """Where a part of the package could not be recorded after all."""
    monkeypatch.chdir(tmp_path)
    paid = OutcomeReward.__call__

    def waits(*arguments):
        rewards = paid(*arguments)
        assert float(rewards.max()) <= 1
        return rewards

    monkeypatch.setattr(OutcomeReward, "__call__", waits)
    main([*SHORT, "--trainer.max_epochs=1"])
    said = [str(warning.message) for warning in recwarn]
    assert sum("Kernels are started one by one, since what learn calls waits for the GPU" in text for text in said) == 1


def test_a_cpu_replays_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([*SHORT, "--model.cuda_graphs=true"])
    assert "error: model.cuda_graphs: got true on 1 devices of type cpu, expected one GPU" in capsys.readouterr().err


def test_parts_of_ones_own_are_not_replayed_without_being_asked():
    class Reward(OutcomeReward):
        """It might count its calls."""

    class Agent(BlindAgent):
        """It might, too."""

    assert ToolAgent(["T0"]).may_replay
    assert not ToolAgent(["T0"], reward=Reward()).may_replay
    assert not ToolAgent(["T0"], agent=Agent).may_replay
    assert ToolAgent(["T0"], reward=Reward(), cuda_graphs=True).may_replay
    assert not ToolAgent(["T0"], cuda_graphs=False).may_replay


@pytest.mark.usefixtures("played")
def test_results_are_the_callers_own_unless_they_stay():
    weight = torch.nn.Linear(1, 1, bias=False)
    given = [torch.full((3, 1), float(k)) for k in range(5)]

    def loss(x):
        return weight(x).sum()

    def doubled(x):
        return x * 2

    results = [graphs.Replayed(loss, weight)] * 5
    losses = [function(x) for function, x in zip(results, given, strict=True)]
    for k, one in enumerate(losses):
        assert one.item() == pytest.approx(3 * k * weight.weight.item())
    sum(losses).backward()  # the gradients of several replays are added up
    assert weight.weight.grad.item() == 3 * (0 + 1 + 2 + 3 + 4)

    stays = graphs.Replayed(doubled, copied=False)
    first = stays(given[1])
    assert stays(given[2]) is first
    assert first.flatten().tolist() == [4, 4, 4]
    reads = graphs.Replayed(doubled)
    assert [reads(stays(x)).flatten().tolist()[0] for x in given] == [0, 4, 8, 12, 16]


@pytest.mark.usefixtures("played")
def test_weights_may_begin_to_learn():
    layers = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    function = graphs.Replayed(lambda x: layers(x).sum(), layers)
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
    function = graphs.Replayed(lambda x, flag: x.sum() if flag else x.amax())
    for size in (2, 3):
        for flag in (True, False):
            for k in range(1, 5):
                found = function(torch.full((size,), float(k)), flag)
                assert found.item() == (size * k if flag else k)
    assert [graph.replays for graph in played] == [3] * 4
