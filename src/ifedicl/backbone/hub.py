"""The model hub: downloads of chosen files, uploads of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ifedicl.errors import DownloadError


class Api(Protocol):
    """The part of ``huggingface_hub.HfApi`` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object: ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> object: ...


def push(folder: Path, name: str, *, public: bool, api: Api, message: str) -> None:
    """Upload a folder to the hub as a commit.

    Args:
        folder: the files.
        name: ``ORGANISATION/NAME``.
        public: whether a new repository can be seen by everyone.
        api: the hub's interface.
        message: the commit message.

    Raises:
        DownloadError: the hub cannot be reached, or refuses.
    """
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message)
    except Exception as error:  # the hub client raises errors of several network libraries
        raise DownloadError(
            f"{name}: the hub did not accept the folder ({type(error).__name__}: {error}). It is complete in {folder}. Log in "
            "with `hf auth login` and a token that may write, and run the same command again"
        ) from error


def download(name: str, revision: str | None, patterns: Sequence[str], *, instead: str) -> Path | None:
    """The folder with a repository's files, downloaded if necessary; None if the hub has no such repository or revision.

    Args:
        name: the repository.
        revision: a branch, tag or commit; None: the default.
        patterns: the files to download.
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
    except Exception as error:  # the hub client raises errors of several network libraries
        raise DownloadError(
            f"{name}: the download failed ({type(error).__name__}: {error}). The downloaded part is kept: run the same command "
            f"again to continue. Without a network, {instead}"
        ) from error
