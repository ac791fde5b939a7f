"""What the process asks of the system."""

import pytest
import torch

from toolagent_pl.training.ranks import PROBLEMS_PER_THREAD, threads_for


@pytest.mark.parametrize(
    ("batch", "set_by_user", "threads"), [(64, None, 1), (10**9, None, 2), (PROBLEMS_PER_THREAD, None, 1), (64, "2", 2)]
)
def test_as_many_threads_as_a_batch_keeps_busy(monkeypatch, batch, set_by_user, threads):
    before = torch.get_num_threads()
    monkeypatch.setattr("toolagent_pl.training.ranks._MOST_THREADS", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    try:
        torch.set_num_threads(2)
        with threads_for(batch):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
