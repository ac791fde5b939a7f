"""Training on a GPU, as far as it can be tested without one.

On the device "meta" tensors have no content. So whatever has to look at one fails, where it would make the CPU wait
for a GPU; and a mode that sees all operations tells which of them takes a tensor from the CPU.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolagent_pl.agents import Agent, BlindAgent, Reader
from toolagent_pl.agents.agent import WORTH_WAITING, may_wait
from toolagent_pl.envs import CalculatorEnv, TutorialEnv
from toolagent_pl.learning import A2C, PPO, OutcomeReward, ProgressReward, TutorialA2C, TutorialReward
from toolagent_pl.module import ToolAgent
from toolagent_pl.problems.stream import ProblemStream

make_tensor = torch.tensor


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
    """Takes the way of an agent that is run a second time to learn."""

    def forward(self, rollout):
        return Agent.forward(self, rollout)


BLIND = {"max_steps": 8, "feedback": "none"}


@pytest.mark.parametrize(
    ("agent", "env", "reward", "algorithm", "options"),
    [
        (BlindAgent, CalculatorEnv(**BLIND), OutcomeReward(), A2C(ent_target=1.0), {}),
        (EvaluatedAgain, CalculatorEnv(**BLIND), ProgressReward(), A2C(gamma=0.9), {}),
        (BlindAgent, TutorialEnv(max_steps=6), TutorialReward(), TutorialA2C(), {}),
        (Reader, CalculatorEnv(max_steps="auto"), OutcomeReward(), PPO(ent_target=1.0), {}),
        (Reader, CalculatorEnv(max_steps="auto"), OutcomeReward(), A2C(), {"accumulate": 3}),
        (Reader, CalculatorEnv(max_steps="auto"), OutcomeReward(), A2C(), {}),
    ],
    ids=["outcome", "progress, evaluated again", "tutorial", "reader by PPO", "reader in parts", "reader"],
)
def test_an_update_stays_on_its_device_and_waits_for_nothing(monkeypatch, agent, env, reward, algorithm, options):
    module = ToolAgent(agent=agent, env=env, reward=reward, algorithm=algorithm, **options).to("meta")
    module._trainer = SimpleNamespace(world_size=1, log_every_n_steps=10)
    # A number on the CPU may take part in operations on a GPU, but not in those on "meta".
    module.ent_coef = module.ent_coef.to("meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # PyTorch does not know it for "meta"
    optimizer = torch.optim.Adam(module.parameters())
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(optimizer, "step", lambda: module.on_before_optimizer_step(optimizer))
    stream = ProblemStream(module.stages, seed=0, batch_size=32, batches=10, device="meta")
    module.training_step(stream.batch(0), 0)  # tables are made once, on the CPU
    module.validation_step(stream.batch(0), 0)
    monkeypatch.setattr(torch, "tensor", without_copy)
    with NothingMixed():
        module.step_cost = 0.1
        module.training_step(stream.batch(1), 0)
        module.validation_step(stream.batch(2), 0)
    assert module.batches_seen == 2
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_gpu_is_waited_for_in_huge_batches_alone(monkeypatch):
    """And never while its kernels are recorded."""
    recording = [False]
    monkeypatch.setattr("toolagent_pl.agents.agent.is_recording", lambda _: recording[0])
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [may_wait(gpu, rows) for rows in (1, WORTH_WAITING - 1, WORTH_WAITING)] == [False, False, True]
    assert may_wait(cpu, 1)
    recording[0] = True
    assert not may_wait(gpu, WORTH_WAITING)
