"""The compiled kernels compute what PyTorch computes, for every kind of processor that they were compiled for."""

import platform
import shutil
from importlib import import_module

import pytest
import torch
from torch.testing import assert_close

from toolagent_pl import CalculatorMachine, TutorialMachine, kernels
from toolagent_pl.agents import ActorCritic
from toolagent_pl.agents.compiled import CompiledCell
from toolagent_pl.agents.gru import PlainCell, RecordedGRU
from toolagent_pl.learning.rollout import rollout
from toolagent_pl.machines import execute
from toolagent_pl.problems import Ladder
from toolagent_pl.randomness import Purpose, random_bits
from toolagent_pl.tokens import STAGED_VOCABULARY, Token

LADDER = Ladder(["T0", "T1", "T2"])


@pytest.fixture(params=["_avx512", "_avx2"])
def compiled(request, monkeypatch):
    """Has the kernels be those of one kind of processor."""
    mine = kernels.compiled()
    if mine is None or (request.param == "_avx512" and mine.LANES < 16):
        pytest.skip(f"{request.param}: not compiled, or not for this processor")
    module = import_module(f"toolagent_pl.kernels.{request.param}")
    monkeypatch.setattr(kernels, "compiled", lambda: module)
    return module


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def agent(**options):
    torch.manual_seed(4)
    return ActorCritic(**{"d": 48, **options})


@pytest.mark.skipif(
    platform.machine() != "x86_64"
    or not shutil.which("gcc")
    or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="not to be expected here",
)
def test_they_are_there_where_they_can_be_compiled():
    assert kernels.compiled() is not None


@pytest.mark.usefixtures("compiled", "threads")
# Fewer rows than fit into the registers, some more, and more than a thread takes at a time; all numbers of columns.
@pytest.mark.parametrize("batch", [1, 5, 77, 300])
@pytest.mark.parametrize("d", [16, 32, 48, 80])
def test_states_and_gradients_are_those_of_float64(batch, d):
    generator = torch.Generator().manual_seed(batch)
    results = []
    for dtype in (torch.float32, torch.float64):
        network = agent(d=d).to(dtype)
        generator.manual_seed(batch)
        initial = torch.randn(batch, d, generator=generator).to(dtype).requires_grad_()
        recurrence = network.begin(initial, horizon=5)
        assert isinstance(recurrence._cell, CompiledCell if dtype == torch.float32 else PlainCell)
        count, kept = batch, None
        for step in range(5):
            recurrence.step(torch.randint(STAGED_VOCABULARY, (count,), generator=generator), kept)
            kept = None
            if step in (0, 2):  # some episodes end
                going_on = torch.rand(count, generator=generator) < 0.7
                going_on[-1] = True
                kept = going_on.nonzero()[:, 0]
                count = len(kept)
        states = recurrence.replay()
        weight = torch.randn(states.shape, generator=generator).to(dtype)
        inputs = [initial, network.embedding.weight, *network.gru.parameters()]
        results.append([states, *torch.autograd.grad((states * weight).sum(), inputs)])
    for single, double in zip(*results, strict=True):
        assert_close(single.double(), double, rtol=1e-4, atol=1e-5 * max(1, double.abs().max().item()))


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize(
    "actions", [["MUL"], ["MUL", "ANS"], [str(token) for token in range(10)] + ["ANS", "MUL"], None]
)
@pytest.mark.parametrize("batch", [3, 200])
def test_choices_are_drawn_by_inverse_transform_sampling(batch, actions):
    everything = [str(token) for token in Token if token < STAGED_VOCABULARY]
    network = agent(actions=actions or everything)
    hidden, noise = 3 * torch.randn(batch, 48), torch.rand(batch)
    sums = network.double().log_policy(hidden.double()).exp().cumsum(1)
    choice = network.float().choose(hidden, noise)
    low = torch.cat([torch.zeros(batch, 1), sums], 1).gather(1, choice[:, None])[:, 0]
    high = sums.gather(1, choice[:, None])[:, 0]
    assert (low < noise + 1e-5).all()
    assert (noise < high + 1e-5).all()
    if batch > 100 and len(network.actions) > 2:
        assert len(choice.unique()) > 2
    assert torch.equal(network.choose(hidden, None), network.log_policy(hidden).argmax(1))


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("actions", [["MUL"], ["MUL", "ANS", "STO"], None])
@pytest.mark.parametrize("batch", [1, 9, 77, 9001])
@pytest.mark.parametrize("d", [16, 96])
def test_judgements_and_their_gradients_are_those_of_float64(batch, d, actions):
    everything = [str(token) for token in Token if token < STAGED_VOCABULARY]
    generator = torch.Generator().manual_seed(batch)
    hidden = 3 * torch.randn(batch, d, generator=generator)
    choices = torch.randint(len(actions or everything), (batch,), generator=generator)
    weight = torch.randn(3, batch, generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):
        network, states = agent(d=d, actions=actions or everything).to(dtype), hidden.to(dtype).requires_grad_()
        if dtype == torch.float32:
            judgement = torch.stack(network.judge(states, choices))
        else:
            policy = torch.distributions.Categorical(logits=network.policy(states)[:, network.actions])
            judgement = torch.stack([policy.log_prob(choices), policy.entropy(), network.value(states)[:, 0]])
        inputs = [states, *network.policy.parameters(), *network.value.parameters()]
        results.append([judgement, *torch.autograd.grad((judgement * weight).sum(), inputs)])
    for single, double in zip(*results, strict=True):
        assert_close(single.double(), double, rtol=1e-4, atol=1e-5 * max(1, double.abs().max().item()))


@pytest.mark.usefixtures("compiled")
def test_sure_policies_have_finite_judgements():
    network, choices = agent(), torch.arange(6)
    network.policy.bias.data[network.actions] = torch.tensor([0, 1e4, 0, -1e4, 100, 0])
    hidden = torch.randn(6, 48, requires_grad=True)
    judgement = network.judge(hidden, choices)
    assert judgement.log_prob.tolist() == pytest.approx([-1e4, 0, -1e4, -2e4, -9.9e3, -1e4], rel=1e-3)
    assert judgement.entropy.abs().max() < 1e-30
    assert torch.autograd.grad(judgement.entropy.sum(), hidden)[0].isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_choices_that_are_not_there_are_not_read():
    with pytest.raises(IndexError, match="choice"):
        agent().judge(torch.randn(3, 48), torch.tensor([0, 6, 1]))


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("machine", [CalculatorMachine(), CalculatorMachine(max_steps=5), TutorialMachine()])
@pytest.mark.parametrize("batch", [1, 3000])
def test_machines_end_as_they_do_by_pytorch(machine, batch, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    number = torch.arange(batch)
    problems = LADDER.problems(number, number % 3, number * 61 % 1000)
    actions = torch.randint(-3, 25, (batch, 12), generator=generator)  # with padding, and what is no token
    tools = torch.randint(Token.MUL, Token.EOS, (batch, 12), generator=generator)
    actions = torch.where(torch.rand(batch, 12, generator=generator) < 0.2, actions, tools)
    states = execute(machine, problems, actions)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    for state, wanted in zip(states, execute(machine, problems, actions), strict=True):
        for field, tensor, plain in zip(state._fields[1:], state[1:], wanted[1:], strict=True):
            assert torch.equal(tensor, plain), field


@pytest.mark.usefixtures("compiled")
def test_products_wrap_as_they_do_by_pytorch(monkeypatch):
    big = torch.full((4, 3), 2**62 + 12345)
    problems = LADDER.problems(*torch.zeros(3, 4, dtype=torch.int64))._replace(operands=big)
    actions = torch.tensor(
        [[Token.MUL, Token.ADD], [Token.SUB, Token.MUL], [Token.ADD, Token.SUB], [Token.STO, Token.RCL]]
    )
    values = execute(CalculatorMachine(), problems, actions)[-1].value
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert torch.equal(values, execute(CalculatorMachine(), problems, actions)[-1].value)


@pytest.mark.usefixtures("compiled")
def test_shapes_that_a_machine_does_not_have_are_refused():
    machine, number = CalculatorMachine(), torch.zeros(2, dtype=torch.int64)
    state = machine.start(LADDER.problems(number, number, number))
    with pytest.raises(IndexError, match="shape"):
        machine.step(state._replace(shape=state.shape + 10**6), number + Token.MUL)


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("count", [0, 5, 100_000])
def test_random_bits_are_those_of_pytorch(count, monkeypatch):
    counter = torch.arange(count) * 0x123456789ABCDEF
    bits = random_bits(7, Purpose.ACTION, counter)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert torch.equal(bits, random_bits(7, Purpose.ACTION, counter))


@pytest.mark.usefixtures("compiled")
def test_a_derived_agent_acts_by_its_own_policy():
    class Fixed(ActorCritic):
        def log_policy(self, hidden):
            return (super().log_policy(hidden) + torch.tensor([-1e9, 0, -1e9])).log_softmax(-1)

    network = Fixed(d=48, actions=["MUL", "ADD", "ANS"])
    assert (network.choose(torch.randn(50, 48), torch.rand(50)) == 1).all()


def test_they_are_what_a_rollout_uses(compiled, monkeypatch):
    called = []

    class Watched:
        LANES = compiled.LANES

        def __getattr__(self, name):
            called.append(name)
            return getattr(compiled, name)

    monkeypatch.setattr(kernels, "compiled", Watched)
    network, number = agent(), torch.arange(200)
    problems = LADDER.problems(number, number % 3, number)
    torch.stack(rollout(network, CalculatorMachine(max_steps=6), problems, 6, seed=1).judge(network)).sum().backward()
    assert set(called) == {
        "random_bits", "gru_step", "heads_choose", "registers_step", "heads_judge", "heads_backward", "gru_backward"
    }  # fmt: skip


@pytest.mark.usefixtures("compiled", "threads")
def test_steps_that_are_not_recorded_are_the_same():
    """They use the same memory again and again, while episodes move up into the places of those that have ended."""
    network = agent()
    initial, heard = torch.randn(1000, 48), torch.randint(STAGED_VOCABULARY, (1000,))
    kept = torch.arange(0, 1000, 3)
    found = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            recurrence = RecordedGRU(network.embedding, network.gru, initial, horizon=4)
            recurrence.step(heard)
            recurrence.step(heard)
            recurrence.step(heard[kept], kept)
            found.append(recurrence.step(heard[kept]).clone())
    assert torch.equal(*found)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_saturated_gates_stay_finite(scale):
    network = agent()
    network.embedding.weight.data *= scale
    initial = torch.randn(9, 48, requires_grad=True)
    recurrence = network.begin(initial, horizon=2)
    for _ in range(2):
        assert recurrence.step(torch.arange(9)).abs().max() < 10
    assert torch.autograd.grad(recurrence.replay().sum(), initial)[0].isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_what_is_no_number_is_passed_on():
    """Else a run that has gone wrong would go on."""
    network = agent()
    network.gru.weight_hh.data[0, 0] = float("nan")
    assert network.begin(torch.randn(9, 48), horizon=1).step(torch.arange(9)).isnan().any()


@pytest.mark.parametrize(
    "unfit", [lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x[:, :20].contiguous(), lambda x: x.T]
)
def test_what_they_cannot_compute_is_left_to_pytorch(compiled, unfit):
    fit = torch.randn(32, 48)
    assert kernels.network_kernels(fit) is compiled
    assert kernels.network_kernels(fit, unfit(fit)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.network_kernels(fit) is None


@pytest.mark.usefixtures("compiled")
def test_rows_that_are_not_there_are_not_read():
    network = agent()
    with pytest.raises(IndexError, match="token"):
        network.begin(torch.randn(3, 48), horizon=2).step(torch.tensor([0, STAGED_VOCABULARY, 1]))
    with pytest.raises(IndexError, match="row"):
        network.begin(torch.randn(3, 48), horizon=2).step(torch.tensor([0, 1]), torch.tensor([1, 3]))
