"""An exported checkpoint on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ifedicl.errors import DownloadError


class Api(Protocol):
    """What is used of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        """Make a repository."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> object:
        """Send a folder."""
        ...


def push(folder: Path, name: str, *, public: bool, api: Api) -> None:
    """Send a folder to the hub; what is there under that name gets a new commit.

    Args:
        folder: of :meth:`ifedicl.Adapter.export`.
        name: ``ORGANISATION/NAME``.
        public: for everybody, where the repository is new; otherwise for its owners.
        api: the hub's.

    Raises:
        DownloadError: the hub cannot be reached, or refuses.
    """
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="An ifedicl adapter, folded in")
    except Exception as error:
        # The hub client lets errors of several network libraries through; all mean the same to the user.
        raise DownloadError(
            f"{name}: the hub did not take the checkpoint ({type(error).__name__}: {error}). It lies whole in {folder}. Log in "
            "with `hf auth login` and a token that may write, and run the same command again"
        ) from error
