"""What the process asks of the system."""

import pytest
import torch

from toolagent_pl.process import use_threads


@pytest.mark.parametrize(
    ("batch", "set_by_user", "threads"), [(64, None, 1), (1535, None, 2), (10**6, None, 4), (64, "4", 4)]
)
def test_as_many_threads_as_a_batch_keeps_busy(monkeypatch, batch, set_by_user, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    try:
        torch.set_num_threads(4)
        use_threads(batch)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
