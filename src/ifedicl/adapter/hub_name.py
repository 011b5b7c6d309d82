"""An adapter on the hub, by its name: ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.

Commands take a folder where they take an adapter. Only the prefix makes them ask the hub, so a mistyped path never does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ifedicl.adapter.format import BESIDE, CARD, HEADER, TENSORS
from ifedicl.backbone import hub
from ifedicl.errors import AdapterError

PREFIX = "hub:"
_FILES = [f"{folder}{name}" for folder in ("", f"{BESIDE}/") for name in (TENSORS, HEADER, CARD)]
_CACHED = re.compile(r"/models--([^/]+--[^/]+)/snapshots/[^/]+/?$")
_FORM = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository and its revision; None: the default branch."""

    id: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> Self | None:
        """What ``text`` names; None: it has no prefix and is a path.

        Raises:
            AdapterError: it has the prefix, and is not of the form above.
        """
        if not text.startswith(PREFIX):
            return None
        found = _FORM.fullmatch(text.removeprefix(PREFIX))
        if found is None:
            raise AdapterError(f"adapter: received {text!r}; allowed: {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@REVISION")
        return cls(found["id"], found["revision"])

    def downloaded(self) -> Path:
        """The folder with the repository's files, as far as they are an adapter's; downloaded if necessary.

        Raises:
            AdapterError: the hub has no such repository or revision.
            DownloadError: the hub cannot be reached.
        """
        folder = hub.download(self.id, self.revision, _FILES, instead="give the adapter's folder")
        if folder is None:
            raise AdapterError(
                f"{self.id} (revision {self.revision or 'default'}): no such folder or hub id. Check the spelling; a private "
                "repository needs `hf auth login` first"
            )
        return folder


def hub_id_of_model(source: str) -> str | None:
    """A model's id on the hub, also of a downloaded copy in the hub's cache; None if its source is another path."""
    path = Path(source).expanduser()
    if cached := _CACHED.search(path.as_posix()):
        return cached[1].replace("--", "/", 1)
    # A path of another machine need not exist here.
    is_path = path.is_absolute() or path.exists() or source.startswith((".", "~")) or "\\" in source
    return None if is_path else source
