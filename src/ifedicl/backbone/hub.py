"""The model hub: downloads of chosen files, uploads of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ifedicl.errors import ConfigError, DownloadError, Fault


class Api(Protocol):
    """The part of ``huggingface_hub.HfApi`` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object: ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> object: ...


def check_id(name: str) -> None:
    """Refuse a name that no repository of an owner can have.

    Raises:
        ConfigError: it is not ``OWNER/NAME`` in the hub's letters.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        is_valid = name.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        allowed = "OWNER/NAME of letters, digits, - _ and ., at most 96 characters"
        raise ConfigError("push", [Fault("repository", repr(name), allowed, "Name your account or organisation first.")])


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
            f"{name}: the hub did not accept the upload ({type(error).__name__}: {error}). Nothing here has changed. Log in "
            "with `hf auth login` and a token that may write, and do the same again"
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
