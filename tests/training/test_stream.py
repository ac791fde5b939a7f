"""Streams: problem i depends on the seed and on i, and on nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from toolagent_pl import CalculatorEnv, Problems
from toolagent_pl.envs.calculator.stages import Stage
from toolagent_pl.envs.calculator.tools import Token
from toolagent_pl.rl.env import select
from toolagent_pl.training.stream import FixedProblems, ProblemStream, Sample

ENV = CalculatorEnv(["T0", "E3", "T2"])


def stream(**changes):
    return ProblemStream(**{"env": ENV, "seed": 5, "batch_size": 24, "batches": 6, **changes})


def loader(of, workers):
    return DataLoader(of, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def numbers(batches):
    return [batch.number.tolist() for batch in batches]


def widened(problems):
    """Of one width: a batch is as wide as its longest problem."""
    pad = torch.nn.functional.pad
    room = 5 - problems.operands.shape[1]
    return problems._replace(
        prompt=pad(problems.prompt, (0, 30 - problems.prompt.shape[1]), value=Token.EOS),
        operands=pad(problems.operands, (0, room)),
        positions=pad(problems.positions, (0, room), value=-1),
        tree=pad(problems.tree, (0, 0, 0, room)),
    )


def joined(batches):
    return Problems(*(torch.cat(column) for column in zip(*map(widened, batches), strict=True)))


def assert_same(one, other):
    for left, right in zip(widened(one), widened(other), strict=True):
        assert torch.equal(left, right)


def test_a_stage_without_a_share_is_never_drawn(monkeypatch):
    """Nor where shares that add up to 1 are a little less in float32."""
    one = stream()
    one._mixture.copy_(torch.tensor([0.0, 1 - 2e-7, 0.0]))
    for uniform in (2.0**-24, 1 - 2.0**-24):
        monkeypatch.setattr("toolagent_pl.training.stream.random_uniform", lambda *_, u=uniform: torch.full((24,), u))
        assert one.batch(0).stage.tolist() == [1] * 24


@given(
    seed=st.integers(0, 2**32 - 1),
    ranks=st.integers(1, 4),
    share=st.integers(1, 3),
    batches=st.integers(1, 2),
    position=st.integers(0, 2**31),
    mixture=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
def test_a_problem_is_a_function_of_seed_and_number(seed, ranks, share, batches, position, mixture):
    size = ranks * share
    parts = []
    for rank in range(ranks):
        part = stream(seed=seed, batch_size=size, batches=batches, rank=rank, ranks=ranks)
        part.mixture = mixture
        parts += [part.batch(position + k) for k in range(batches)]
    problems = joined(parts)
    assert sorted(problems.number.tolist()) == list(range(position * size, (position + batches) * size))
    alone = stream(seed=seed, batch_size=1, batches=1)
    alone.mixture = mixture
    for row, number in enumerate(problems.number.tolist()):
        assert_same(alone.batch(number), select(problems, slice(row, row + 1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_is_all_that_a_run_needs_to_go_on(workers):
    whole = list(stream(batches=12))
    for position in (0, 3, 6):
        resumed = stream()
        resumed.position = position
        rest = list(loader(resumed, workers))
        assert len(rest) == 6 - position % 6  # from mid-epoch, the rest of the epoch
        assert_same(joined(rest), joined(whole[position : position + len(rest)]))


def test_persistent_workers_see_a_new_position_and_mixture_at_the_next_iteration():
    source = stream()
    batches = loader(source, 2)
    source.mixture = [1, 0, 0]
    assert joined(batches).stage.unique().tolist() == [0]
    source.mixture, source.position = [0, 0, 1], 8
    epoch = list(batches)
    assert numbers(epoch) == numbers(stream(batches=12))[8:]
    assert joined(epoch).stage.unique().tolist() == [2]


def test_stages_are_mixed_as_asked_for():
    source = stream(batch_size=20_000, batches=1)
    for shares in ([0.2, 0.3, 0.5], [0, 0.25, 0.75], [1, 0, 0], [2, 1, 1]):
        source.mixture = shares
        drawn = joined(source).stage.bincount(minlength=3) / 20_000
        assert drawn.tolist() == pytest.approx([share / sum(shares) for share in shares], abs=0.015)
        assert all(count == 0 for count, share in zip(drawn, shares, strict=True) if share == 0)


def test_training_never_sees_what_validation_is_made_of():
    source = stream(batch_size=20_000, batches=1)
    source.mixture = [1, 0, 0]
    trained = {tuple(row) for row in joined(source).operands.tolist()}
    validated = joined(FixedProblems(ENV, 1, Sample.VALIDATION, 2000, 8192)).operands
    seen = {tuple(row) for row in validated.tolist()}
    assert (len(trained), len(seen)) == (900, 100)
    assert not {row[:3] for row in trained} & seen


def fixed(env=ENV, sample=Sample.TEST, per_stage=7, batch_size=8192, **options):
    return FixedProblems(env, len(env.all_stages), sample, per_stage, batch_size, **options)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("per_stage", "whole"), [(7, False), (1000, False), (7, True)])
def test_fixed_problems_are_shared_out_none_twice(ranks, per_stage, whole):
    problems = joined(
        batch for rank in range(ranks) for batch in fixed(per_stage=per_stage, whole=whole, rank=rank, ranks=ranks)
    )
    for position in range(3):
        wanted = (ENV.size(position) if whole else None) or per_stage
        assert sorted(problems.number[problems.stage == position].tolist()) == list(range(wanted))
    order = (problems.stage * 100_000 + problems.number).argsort()
    assert_same(select(problems, order), joined(fixed(per_stage=per_stage, whole=whole)))


def test_small_stages_are_taken_whole_and_others_by_a_held_out_sample():
    problems = joined(fixed(per_stage=50, whole=True))
    assert problems.stage.bincount().tolist() == [1000, 50, 100_000]
    for position in (0, 2):
        assert len(problems.operands[problems.stage == position].unique(dim=0)) == ENV.size(position)
    sample = joined(fixed(per_stage=50))
    assert_same(select(problems, problems.stage == 1), select(sample, sample.stage == 1))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("per_stage", [1, 2])
def test_more_ranks_than_fixed_problems(per_stage, whole):
    env = CalculatorEnv(["E1", "E2", Stage("P", "a-b", digits=2)])  # none that could be enumerated
    shares = [fixed(env, per_stage=per_stage, whole=whole, rank=rank, ranks=4) for rank in range(4)]
    batches = [3 if rank < per_stage else 0 for rank in range(4)]
    assert [len(list(share)) for share in shares] == batches
    assert [len(share) for share in shares] == batches


def test_fixed_problems_are_the_same_each_time_and_never_mix_stages():
    problems = fixed(per_stage=100, batch_size=30)
    once, again = list(problems), list(problems)
    assert len(once) == len(problems) == 12
    assert all(batch.size <= 30 and len(batch.stage.unique()) == 1 for batch in once)
    assert_same(joined(once), joined(again))


def test_seeds_and_samples_have_problems_of_their_own():
    for one, other, share in (
        (stream(), stream(seed=6), 0.1),
        (fixed(per_stage=1000), fixed(per_stage=1000, sample=Sample.VALIDATION), 0.02),
    ):
        assert (joined(one).operands == joined(other).operands).all(1).float().mean() < share


def test_batches_that_mix_stages_hold_the_same_problems():
    env = CalculatorEnv(["T0", "E3", "E1"])

    def told(ranks: int, **options) -> list[tuple]:
        loaders = [FixedProblems(env, 3, Sample.VALIDATION, 7, rank=i, ranks=ranks, **options) for i in range(ranks)]
        batches = [batch for loader in loaders for batch in loader]
        assert len(batches) == sum(map(len, loaders))
        problems = widened(joined(batches))
        return sorted(zip(*(x.tolist() for x in (problems.stage, problems.number, problems.operands)), strict=True))

    apart = told(1, batch_size=50)
    assert len(apart) == 21
    assert len(FixedProblems(env, 3, Sample.VALIDATION, 7, batch_size=50, mixed=True)) == 1
    for ranks, batch_size in ((1, 50), (1, 4), (2, 5)):
        assert told(ranks, batch_size=batch_size, mixed=True) == apart
