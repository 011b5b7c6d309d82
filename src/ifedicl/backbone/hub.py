"""The model hub: downloads of chosen files, uploads of a folder."""

from __future__ import annotations

from collections.abc import Sequence
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


def push(folder: Path, name: str, *, public: bool, api: Api, message: str) -> None:
    """Send a folder to the hub; what is there under that name gets a new commit.

    Args:
        folder: the files to send.
        name: ``ORGANISATION/NAME``.
        public: for everybody, where the repository is new; otherwise for its owners.
        api: the hub's.
        message: of the commit.

    Raises:
        DownloadError: the hub cannot be reached, or refuses.
    """
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message)
    except Exception as error:
        # The hub client lets errors of several network libraries through; all mean the same to the user.
        raise DownloadError(
            f"{name}: the hub did not take the folder ({type(error).__name__}: {error}). It lies whole in {folder}. Log in "
            "with `hf auth login` and a token that may write, and run the same command again"
        ) from error


def download(name: str, revision: str | None, patterns: Sequence[str], *, instead: str) -> Path | None:
    """The folder with a repository's files, downloaded where need be; None where the hub has no such repository or revision.

    Args:
        name: of the repository.
        revision: a branch, tag or commit; None: the default.
        patterns: which files are wanted.
        instead: what a user without a network can do, for the message.

    Raises:
        DownloadError: the hub cannot be reached, or the download was cut short.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["consolidated*"])
        )
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    except Exception as error:
        # The hub client lets errors of several network libraries through; all mean the same to the user.
        raise DownloadError(
            f"{name}: the download failed ({type(error).__name__}: {error}). What arrived is kept: run the same command "
            f"again to go on. Without a network, {instead}"
        ) from error
