"""The compiled kernels compute what PyTorch computes, for every kind of processor that they were compiled for."""

import platform
import shutil
from importlib import import_module

import pytest
import torch
from torch.testing import assert_close

from toolagent_pl import CalculatorMachine, TutorialMachine, kernels
from toolagent_pl.agents import ActorCritic
from toolagent_pl.learning.rollout import MAX_HORIZON, rollout
from toolagent_pl.machines import execute
from toolagent_pl.problems import Ladder
from toolagent_pl.randomness import Purpose, random_bits, random_uniform
from toolagent_pl.tokens import STAGED_VOCABULARY, TOOLS, Token

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


EVERYTHING = [str(token) for token in Token if token < STAGED_VOCABULARY]


def agent(**options):
    torch.manual_seed(4)
    return ActorCritic(**{"d": 48, **options})


def some_problems(size):
    number = torch.arange(size)
    return LADDER.problems(number, number % 3, number * 61 % 1000)


def some_choices(network, horizon, size):
    return torch.randint(len(network.actions), (horizon, size), generator=torch.Generator().manual_seed(size))


def stepped(max_steps):
    """A machine whose steps are taken by Python."""

    class Stepped(CalculatorMachine):
        def step(self, state, action, **options):
            return super().step(state, action, **options)

    return Stepped(max_steps)


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
@pytest.mark.parametrize(
    ("d", "actions"), [(16, ["MUL"]), (32, ["MUL", "ANS"]), (48, [*EVERYTHING[:10], "ANS", "MUL"]), (80, EVERYTHING)]
)
@pytest.mark.parametrize("past_end", [False, True])
@pytest.mark.parametrize("machine", [CalculatorMachine, stepped])
def test_what_is_learned_from_is_that_of_float64(batch, d, actions, past_end, machine):
    results = []
    for dtype in (torch.float32, torch.float64):
        network = agent(d=d, actions=actions).to(dtype)
        choices = some_choices(network, 7, batch)
        episodes = rollout(network, machine(max_steps=5), some_problems(batch), 7, past_end=past_end, choices=choices)
        seen = episodes.mask | past_end
        assert torch.equal(episodes.choices[seen], choices[: len(seen)][seen])
        weight = torch.randn(3, 7, batch, generator=torch.Generator().manual_seed(0))[:, : len(seen)]
        judgement = torch.stack(episodes.judgement) * seen
        (judgement * weight).sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        results.append((episodes, [judgement, *gradients]))
    (episodes, singles), (expected, doubles) = results
    for ours, theirs in zip(
        (episodes.tokens, episodes.mask, *episodes.final[1:]),
        (expected.tokens, expected.mask, *expected.final[1:]),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    for single, double in zip(singles, doubles, strict=True):
        assert_close(single.double(), double.double(), rtol=1e-4, atol=1e-5 * max(1, double.abs().max().item()))


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("actions", [["MUL"], ["MUL", "ANS"], [*EVERYTHING[:10], "ANS", "MUL"], EVERYTHING])
@pytest.mark.parametrize("batch", [3, 200])
def test_choices_are_drawn_by_inverse_transform_sampling(batch, actions):
    network = agent(actions=actions)
    network.policy.weight.data *= 9
    episodes = rollout(network, CalculatorMachine(), some_problems(batch), 4, seed=5, past_end=True)
    choice, double = episodes.choices, network.double()
    recurrence = double.begin(double.encode(episodes.problems), 4)
    heard = [torch.full_like(choice[0], Token.CTX), *episodes.tokens[:-1]]
    log_policy = double.log_policy(torch.stack([recurrence.step(token).clone() for token in heard]))
    sums = log_policy.exp().cumsum(2)
    noise = random_uniform(5, Purpose.ACTION, episodes.problems.number * MAX_HORIZON + torch.arange(4)[:, None])
    low = torch.cat([torch.zeros(4, batch, 1), sums], 2).gather(2, choice[..., None])[..., 0]
    high = sums.gather(2, choice[..., None])[..., 0]
    assert (low < noise + 1e-5).all()
    assert (noise < high + 1e-5).all()
    if batch > 100 and len(actions) > 2:
        assert len(choice.unique()) > 2
    likeliest = rollout(network.float(), CalculatorMachine(), some_problems(batch), 1).choices[0]
    assert torch.equal(likeliest, log_policy[0].argmax(1))


@pytest.mark.usefixtures("compiled")
def test_sure_policies_have_finite_judgements():
    network, choices = agent(), torch.arange(6)[None]
    network.policy.bias.data[network.actions] = torch.tensor([0, 1e4, 0, -1e4, 100, 0])
    judgement = rollout(network, CalculatorMachine(), some_problems(6), 1, choices=choices).judgement
    assert judgement.log_prob[0].tolist() == pytest.approx([-1e4, 0, -1e4, -2e4, -9.9e3, -1e4], rel=1e-3)
    assert judgement.entropy.abs().max() < 1e-30
    judgement.entropy.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("machine", [CalculatorMachine(), CalculatorMachine(max_steps=5), TutorialMachine()])
@pytest.mark.parametrize("batch", [1, 3000])
def test_machines_end_as_they_do_by_pytorch(machine, batch):
    for actions in (EVERYTHING, [str(tool) for tool in TOOLS]):
        network = agent(d=16, actions=actions)
        choices, problems = some_choices(network, 12, batch), some_problems(batch)
        final = rollout(network, machine, problems, 12, past_end=True, choices=choices).final
        wanted = execute(machine, problems, network.actions[choices].T)[-1]
        for field, tensor, plain in zip(final._fields[1:], final[1:], wanted[1:], strict=True):
            assert torch.equal(tensor, plain), field


@pytest.mark.usefixtures("compiled")
def test_products_wrap_as_they_do_by_pytorch():
    network, machine = agent(actions=["MUL", "ADD", "SUB", "STO", "RCL"]), CalculatorMachine()
    problems = some_problems(4)
    problems = problems._replace(operands=torch.full_like(problems.operands, 2**62 + 12345))
    choices = torch.tensor([[0, 2, 1, 3], [1, 0, 2, 4]])
    values = rollout(network, machine, problems, 2, choices=choices).final.value
    assert torch.equal(values, execute(machine, problems, network.actions[choices].T)[-1].value)
    assert values.abs().max() > 2**61


@pytest.mark.usefixtures("compiled")
def test_what_is_not_there_is_not_read():
    class Astray(CalculatorMachine):
        def start(self, problems):
            state = super().start(problems)
            return state._replace(shape=state.shape + 10**6)

    with pytest.raises(IndexError, match="machine"):
        rollout(agent(), Astray(), some_problems(3), 2)
    for choice in (6, -1, -(2**32), 2**32):
        with pytest.raises(IndexError, match="choice"):
            rollout(agent(), CalculatorMachine(), some_problems(2), 1, choices=torch.tensor([[0, choice]]))
    network = agent()
    network.actions[1] = STAGED_VOCABULARY
    with pytest.raises(IndexError):
        rollout(network, CalculatorMachine(), some_problems(3), 2)


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("count", [0, 5, 100_000])
@pytest.mark.parametrize("bits", [64, 63, 23])
def test_random_bits_are_those_of_pytorch(count, bits, monkeypatch):
    counter = torch.arange(count) * 0x123456789ABCDEF
    drawn = random_bits(7, Purpose.ACTION, counter, bits)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert torch.equal(drawn, random_bits(7, Purpose.ACTION, counter, bits))


@pytest.mark.usefixtures("compiled")
def test_states_that_do_not_fit_are_not_taken_for_others():
    """Kernels know addresses only: what does not fit is PyTorch's, which says so."""

    class Wide(ActorCritic):
        def encode(self, problems):
            return super().encode(problems).repeat(1, 2)

    class Few(ActorCritic):
        def encode(self, problems):
            return super().encode(problems)[:2]

    class Blind(ActorCritic):
        def __init__(self):
            super().__init__(d=48)
            self.embedding = torch.nn.Embedding(Token.CTX, 48)

        def encode(self, problems):
            return torch.zeros(problems.size, 48)

    for network in (Wide(d=48), Few(d=48)):
        with pytest.raises(RuntimeError):
            rollout(network, CalculatorMachine(), some_problems(3), 2, seed=0)
    with pytest.raises(IndexError, match="vocabulary"):
        rollout(Blind(), CalculatorMachine(), some_problems(3), 2, seed=0)


@pytest.mark.usefixtures("compiled")
def test_what_is_written_down_has_the_type_of_the_states():
    """Whatever type PyTorch gives to new tensors."""
    expected = rollout(agent(), CalculatorMachine(), some_problems(50), 4, seed=0).judgement
    before = torch.get_default_dtype()
    network, problems = agent(), some_problems(50)
    torch.set_default_dtype(torch.bfloat16)
    try:
        judgement = rollout(network, CalculatorMachine(), problems, 4, seed=0).judgement
    finally:
        torch.set_default_dtype(before)
    assert_close(torch.stack(judgement), torch.stack(expected))


@pytest.mark.usefixtures("compiled")
def test_a_machine_with_registers_of_another_type_takes_its_own_steps():
    def ends(kind):
        class Other(CalculatorMachine):
            def start(self, problems):
                state = super().start(problems)
                return state._replace(idle=state.idle.to(kind))

        return rollout(agent(), Other(), some_problems(60), 5, seed=0)

    short, usual = ends(torch.int32), ends(torch.int64)
    assert torch.equal(short.tokens, usual.tokens)
    assert torch.equal(short.final.idle, usual.final.idle)


@pytest.mark.usefixtures("compiled")
def test_a_derived_agent_acts_by_its_own_policy():
    class Fixed(ActorCritic):
        def log_policy(self, hidden):
            return (super().log_policy(hidden) + torch.tensor([-1e9, 0, -1e9])).log_softmax(-1)

    network = Fixed(d=48, actions=["MUL", "ADD", "ANS"])
    assert (rollout(network, CalculatorMachine(), some_problems(50), 3, seed=0).choices == 1).all()


@pytest.mark.parametrize("machine", [CalculatorMachine, stepped])
def test_they_are_what_a_rollout_uses(machine, compiled, monkeypatch):
    called = []

    class Watched:
        LANES = compiled.LANES

        def __getattr__(self, name):
            called.append(name)
            return getattr(compiled, name)

    monkeypatch.setattr(kernels, "compiled", Watched)
    episodes = rollout(agent(), machine(max_steps=6), some_problems(200), 6, seed=1)
    torch.stack(episodes.judgement).sum().backward()
    assert set(called) == {"random_bits", "rollout", "rollout_backward"}


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("machine", [CalculatorMachine, stepped])
def test_steps_that_are_not_recorded_are_the_same(machine):
    """They use the same memory again and again, while episodes move up into the places of those that have ended."""
    network = agent()
    recorded = rollout(network, machine(max_steps=9), some_problems(1000), 9, seed=2)
    with torch.no_grad():
        blind = rollout(network, machine(max_steps=9), some_problems(1000), 9, seed=2)
    assert blind.judgement is None
    assert torch.equal(blind.tokens, recorded.tokens)
    assert torch.equal(blind.mask, recorded.mask)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_saturated_gates_stay_finite(scale):
    network = agent()
    network.embedding.weight.data *= scale
    judgement = rollout(network, CalculatorMachine(), some_problems(9), 2, seed=0).judgement
    assert all(part.isfinite().all() for part in judgement)
    judgement.value.sum().backward()
    assert network.gru.weight_hh.grad.isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_what_is_no_number_is_passed_on():
    """Else a run that has gone wrong would go on."""
    network = agent()
    network.gru.weight_hh.data[0, 0] = float("nan")
    judgement = rollout(network, CalculatorMachine(), some_problems(9), 1, seed=0).judgement
    assert judgement.value.isnan().all()
    assert judgement.log_prob.isnan().all()


@pytest.mark.parametrize(
    "unfit", [lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x[:, :20].contiguous(), lambda x: x.T]
)
def test_what_they_cannot_compute_is_left_to_pytorch(compiled, unfit):
    fit = torch.randn(32, 48)
    assert kernels.network_kernels(fit) is compiled
    assert kernels.network_kernels(fit, unfit(fit)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.network_kernels(fit) is None
