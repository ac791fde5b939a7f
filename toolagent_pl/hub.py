"""The Hugging Face Hub: agents are loaded from it by name, and pushed to it."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from toolagent_pl.saved import CARD, CONFIG, WEIGHTS, read
from toolagent_pl.solver import Solver

FILES = [CONFIG, WEIGHTS, CARD]  # all that there is of an agent; nothing else is downloaded


class HubSolver(ModelHubMixin, Solver, library_name="toolagent_pl"):  # type: ignore[misc]
    """A solver with ``push_to_hub``, and ``from_pretrained`` for names on the Hub as well as folders."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "HubSolver":  # type: ignore[override]
        """Load an agent.

        Args:
            name: On the Hub, ``owner/name``, or of a folder.
            options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            ValueError: If there is no such agent, it cannot be had, or it cannot be built.
        """
        try:
            found: HubSolver = super().from_pretrained(name, **options)
        except (HfHubHTTPError, OSError) as error:  # no such name, no right to it, no network
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"name: got {name}, expected a folder, or an agent on the Hub ({reason})") from error
        return found

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "HubSolver":
        if Path(model_id).is_dir():
            return cls(*read(model_id))
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=FILES,
        )
        return cls(*read(folder))

    def _save_pretrained(self, save_directory: Path) -> None:
        Solver.save_pretrained(self, save_directory)
