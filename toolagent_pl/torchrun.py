"""What it takes to be restarted by torchrun."""

import os

from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import PrefixStore, TCPStore


def check_restarts() -> None:
    """Refuse what could not be restarted.

    Raises:
        ValueError: If torchrun on several nodes shares its store with the ranks.
    """
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    if several and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and _uses_store_of_torchrun():
        raise ValueError(
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE: got 0, expected 1 in the environment of torchrun on several nodes "
            "with --max-restarts: ranks that it restarts could not find each other"
        )


def meet_again(strategy: object) -> None:
    """Connect ranks that torchrun restarted.

    The store through which they find each other is the same for all attempts (as PyTorch 2.13 has it), and still
    holds the addresses of the dead. So each attempt uses names of its own. On several nodes, each torchrun counts
    for itself: see ``check_restarts``.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if not attempt or not _uses_store_of_torchrun() or not isinstance(strategy, DDPStrategy):
        return
    environment, device = strategy.cluster_environment, strategy.root_device
    assert environment is not None
    store = TCPStore(environment.main_address, environment.main_port, is_master=False)
    _init_dist_connection(
        environment,
        strategy._get_process_group_backend(),
        store=PrefixStore(f"attempt{attempt}", store),
        timeout=strategy._timeout,
        device_id=device if device.type != "cpu" else None,
    )


def _uses_store_of_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
