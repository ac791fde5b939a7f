"""Random numbers: SplitMix64 by counter, uniform, and unrelated between seeds and purposes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import splitmix64
from toolagent_pl.rl.random_numbers import Purpose, random_below, random_bits, random_uniform

COUNTER = torch.arange(20_000)


def chi_square(values, cells):
    """Per degree of freedom, so about 1 where ``values`` are uniform over ``range(cells)``."""
    seen = values.bincount(minlength=cells)
    assert len(seen) == cells
    expected = len(values) / cells
    return ((seen - expected).square().sum() / expected / (cells - 1)).item()


def test_the_reference_gives_the_published_numbers():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**40), st.sampled_from(Purpose), st.integers(0, 2**62))
def test_draws_are_those_of_splitmix64(seed, purpose, first):
    # The key of a sequence is itself an output: number 256 * seed + purpose of the generator that starts at 0.
    gamma = 0x9E3779B97F4A7C15
    (key,) = splitmix64((256 * seed + purpose - 1) * gamma % 2**64, 1)
    wanted = splitmix64((key + first * gamma) % 2**64, 3)
    counter = first + torch.arange(3)
    assert [bits % 2**64 for bits in random_bits(seed, purpose, counter).tolist()] == wanted
    assert random_below(seed, purpose, counter, torch.tensor(1000)).tolist() == [(z >> 1) % 1000 for z in wanted]
    assert random_uniform(seed, purpose, counter).tolist() == [((z >> 41) + 0.5) / 2**23 for z in wanted]


def test_a_draw_depends_on_its_counter_alone():
    counter = torch.tensor([[7, 0], [3, 7]])
    drawn = random_bits(1, Purpose.PROBLEM, counter)
    assert counter.tolist() == [[7, 0], [3, 7]]
    assert drawn.tolist() == random_bits(1, Purpose.PROBLEM, torch.arange(8))[counter].tolist()


@pytest.mark.parametrize("purpose", Purpose)
def test_draws_are_uniform(purpose):
    assert 0.5 < chi_square(random_below(2**31, purpose, COUNTER, torch.tensor(100)), 100) < 1.6
    assert 0.5 < chi_square((random_uniform(2**31, purpose, COUNTER) * 64).long(), 64) < 1.6
    assert 0.5 < chi_square(random_bits(2**31, purpose, COUNTER) & 63, 64) < 1.6


@pytest.mark.parametrize(
    ("seed", "purpose", "first"),
    [(0, Purpose.PROBLEM, 1), (1, Purpose.PROBLEM, 0), (256, Purpose.PROBLEM, 0), (0, Purpose.STAGE, 0)],
)
def test_successive_draws_and_other_seeds_and_purposes_are_unrelated(seed, purpose, first):
    one = random_below(0, Purpose.PROBLEM, COUNTER, torch.tensor(10))
    other = random_below(seed, purpose, COUNTER + first, torch.tensor(10))
    assert 0.5 < chi_square(10 * one + other, 100) < 1.6


def test_sequences_do_not_overlap():
    draws = [random_bits(seed, purpose, COUNTER[:5000]) for seed in range(20) for purpose in Purpose]
    assert len(torch.cat(draws).unique()) == 20 * len(Purpose) * 5000


def test_uniform_numbers_never_reach_their_bounds():
    drawn = random_uniform(0, Purpose.ACTION, torch.arange(1_000_000))
    assert drawn.dtype == torch.float32
    assert 0 < drawn.min() < 1e-5
    assert 1 - 1e-5 < drawn.max() < 1
