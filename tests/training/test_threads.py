"""What the process asks of the system."""

import pytest
import torch

from toolagent_pl.training.ranks import PROBLEMS_PER_THREAD, threads_for


@pytest.mark.parametrize(
    ("batch", "set_by_user", "threads"), [(64, None, 1), (10**9, None, 2), (PROBLEMS_PER_THREAD, None, 1), (64, "2", 2)]
)
def test_as_many_threads_as_a_batch_keeps_busy(monkeypatch, batch, set_by_user, threads):
    monkeypatch.setattr("toolagent_pl.training.ranks._MOST_THREADS", 2)
    monkeypatch.setattr("os.environ", {} if set_by_user is None else {"OMP_NUM_THREADS": set_by_user})
    before = torch.get_num_threads()
    with threads_for(batch):
        assert torch.get_num_threads() == (threads if set_by_user is None else before)
    assert torch.get_num_threads() == before
