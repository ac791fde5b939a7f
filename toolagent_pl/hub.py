"""The Hugging Face Hub: agents are loaded from it by name, and pushed to it."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from toolagent_pl.saved import FILES, read
from toolagent_pl.solver import Solver


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
        folder = Path(name).expanduser()
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(str(name), allow_patterns=[*FILES], **options))
            except (HFValidationError, HfHubHTTPError, OSError) as error:  # no such name, no right to it, no network
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"name: got {name}, expected a folder, or an agent on the Hub ({reason})") from error
        return cls(*read(folder))

    def save_pretrained(  # type: ignore[override]
        self,
        directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: Any = None,
        model_card_kwargs: Any = None,
        **facts: Any,
    ) -> None:
        """As ``Solver.save_pretrained``.

        Args:
            directory: Made if it is not there.
            push_to_hub: Push what was written, too.
            repo_id: Its name on the Hub; that of the folder without it.
            config, model_card_kwargs: Not used; they are what the mixin passes.
            facts: ``overwrite``, and those about the training.
        """
        Solver.save_pretrained(self, directory, **facts)
        if push_to_hub:
            HubSolver.from_pretrained(directory).push_to_hub(repo_id or Path(directory).name)
