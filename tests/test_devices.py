"""Training on a GPU, as far as it can be tested without one.

On the device "meta" tensors have no content. So whatever has to look at one fails, where it would make the CPU wait
for a GPU; and a mode that sees all operations tells which of them takes a tensor from the CPU.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from toolagent_pl import CalculatorMachine, TutorialMachine
from toolagent_pl.agents import ActorCritic, Agent, gru
from toolagent_pl.learning.algorithms import A2C, TutorialA2C
from toolagent_pl.machines.rewards import OutcomeReward, ProgressReward, TutorialReward
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


class PlainActorCritic(ActorCritic):
    """Takes the way of an agent that is run a second time to learn."""

    begin = Agent.begin

    def step(self, hidden, heard):
        return torch.tanh(self.embedding(heard) + hidden @ self.gru.weight_hh[: hidden.shape[1]])


@pytest.mark.parametrize("agent", [ActorCritic, PlainActorCritic])
@pytest.mark.parametrize(
    ("machine", "reward", "algorithm"),
    [
        (CalculatorMachine(max_steps=8), OutcomeReward(), A2C()),
        (CalculatorMachine(max_steps=8), ProgressReward(), A2C(discount=0.9)),
        (TutorialMachine(max_steps=6), TutorialReward(), TutorialA2C()),
    ],
    ids=["outcome", "progress", "tutorial"],
)
def test_an_update_stays_on_its_device_and_waits_for_nothing(monkeypatch, machine, reward, algorithm, agent):
    # A number on the CPU may take part in operations on a GPU, but not in those on "meta".
    monkeypatch.setattr(gru, "_MINUS_ONE", torch.tensor(-1.0, device="meta"))
    module = ToolAgent(agent=agent, machine=machine, reward=reward, algorithm=algorithm).to("meta")
    module._trainer = SimpleNamespace(world_size=1, global_step=0, log_every_n_steps=10)
    stream = ProblemStream(module.ladder, seed=0, batch_size=32, batches=10, device="meta")
    module.training_step(stream.batch(0), 0)  # tables are made once, on the CPU
    monkeypatch.setattr(torch, "tensor", without_copy)
    with NothingMixed():
        module.training_step(stream.batch(1), 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        module.validation_step(stream.batch(2), 0)
