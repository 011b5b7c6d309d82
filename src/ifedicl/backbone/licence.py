"""The base model's terms for derived models: licence, notices, names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ifedicl.backbone import gguf
from ifedicl.errors import ConfigError, Fault
from ifedicl.settings import ModelSettings

_NOTICES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "ACCEPTABLE_USE")


@dataclass(frozen=True)
class Naming:
    """What a licence requires: the beginning of the name (case does not matter) and words on the card."""

    beginning: str
    words: str


_LLAMA = Naming("Llama", "Built with Llama")
NAMING: Mapping[str, Naming] = {
    "llama3": Naming("Llama-3", "Built with Meta Llama 3"),
    "llama3.1": _LLAMA,
    "llama3.2": _LLAMA,
    "llama3.3": _LLAMA,
    "llama4": _LLAMA,
}
"""By the licence's id on the hub. We know no such terms of other licences. This is no legal advice."""


@dataclass(frozen=True)
class Terms:
    """The terms that are stored with the base model.

    Attributes:
        licence: its id, for instance ``apache-2.0``; None if none is named.
        files: licence texts and notices.
    """

    licence: str | None
    files: tuple[Path, ...]

    @property
    def naming(self) -> Naming | None:
        """What the licence requires of names; None if we know no such term."""
        return NAMING.get(self.licence or "")

    def markdown(self) -> str:
        """A list in Markdown, for model cards and for the person who publishes."""
        names = ", ".join(f"`{file.name}`" for file in self.files)
        lines = [
            f"- licence of the base model: {self.licence or 'not named there; look it up before you publish'}",
            f"- licence texts and notices, included here: {names}"
            if names
            else "- the base model has no licence text or notice",
        ]
        if self.naming is not None:
            lines.append(
                f"- {self.naming.words}. A model made from it must have a name that begins with {self.naming.beginning!r}"
            )
        return "\n".join(lines)

    def copy_files(self, folder: Path) -> None:
        """Copy the licence texts and notices into a folder."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)

    def check_name(self, name: str) -> None:
        """Refuse a name that the licence does not allow.

        Raises:
            ConfigError: the name must have another beginning.
        """
        naming = self.naming
        if naming is not None and not name.rpartition("/")[2].lower().startswith(naming.beginning.lower()):
            allowed = f"a name that begins with {naming.beginning!r}, as the licence {self.licence} requires"
            raise ConfigError("export", [Fault("hub", repr(name), allowed, "Choose such a name.")])


def terms_of(settings: ModelSettings) -> Terms:
    """Read the terms from the folder, the GGUF file or the downloaded hub files of a model; nothing is downloaded."""
    source = Path(settings.source).expanduser()
    if source.is_file():
        return Terms(gguf.licence_of(source), _notices(source.parent))
    folder = source if source.is_dir() else _downloaded(settings)
    return Terms(None, ()) if folder is None else Terms(_card_licence(folder / "README.md"), _notices(folder))


def _downloaded(settings: ModelSettings) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(settings.source, revision=settings.revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _notices(folder: Path) -> tuple[Path, ...]:
    return tuple(file for file in sorted(folder.glob("*")) if file.is_file() and file.name.upper().startswith(_NOTICES))


def _card_licence(card: Path) -> str | None:
    if not card.is_file():
        return None
    from huggingface_hub import metadata_load

    try:
        licence = (metadata_load(card) or {}).get("license")
    except ValueError:
        return None  # a README without metadata of this form
    return licence if isinstance(licence, str) else None
