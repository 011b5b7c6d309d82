"""What the base model's owner asks of whoever passes on a model made from it: licence, notices, names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ifedicl.backbone import gguf
from ifedicl.errors import ConfigError, Fault
from ifedicl.settings import ModelSettings

_NOTICES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "ACCEPTABLE_USE")


@dataclass(frozen=True)
class Naming:
    """What a licence asks of names and cards.

    Attributes:
        beginning: of the name, compared without regard to case.
        words: that the card shows.
    """

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
"""By the licence's id on the hub; of licences that are not here no such terms are known to us. They are no legal advice."""


@dataclass(frozen=True)
class Terms:
    """The base model's terms, as far as they lie beside it.

    Attributes:
        licence: its id, ``apache-2.0`` for instance; None where nothing names one.
        files: licence texts and notices.
    """

    licence: str | None
    files: tuple[Path, ...]

    @property
    def naming(self) -> Naming | None:
        """What names must look like; None where the licence asks nothing that we know of."""
        return NAMING.get(self.licence or "")

    def described(self) -> str:
        """In Markdown, for a card and for whoever is about to publish."""
        held = ", ".join(f"`{file.name}`" for file in self.files)
        lines = [
            f"- licence of the base model: {self.licence or 'not named where it lies; look it up before you pass this on'}"
        ]
        lines.append(
            f"- its texts, carried along: {held}" if held else "- no licence text or notice lies beside the base model"
        )
        if self.naming is not None:
            lines.append(
                f"- {self.naming.words}. A model made from it must have a name that begins with {self.naming.beginning!r}"
            )
        return "\n".join(lines)

    def check_name(self, name: str) -> None:
        """Refuse a name that the licence does not allow.

        Raises:
            ConfigError: it must begin otherwise.
        """
        naming, own = self.naming, name.rpartition("/")[2]
        if naming is not None and not own.lower().startswith(naming.beginning.lower()):
            allowed = f"a name that begins with {naming.beginning!r}, as the licence {self.licence} asks"
            raise ConfigError("export", [Fault("hub", repr(name), allowed, "Choose such a name.")])


def terms_of(settings: ModelSettings) -> Terms:
    """Read the terms off the folder, the GGUF file or the hub's files that a model was loaded from; nothing is downloaded."""
    source = Path(settings.source).expanduser()
    if source.is_file():
        return Terms(gguf.licence_of(source), _notices(source.parent))
    folder = source if source.is_dir() else _downloaded(settings)
    return Terms(None, ()) if folder is None else Terms(_card_licence(folder / "README.md"), _notices(folder))


def _downloaded(settings: ModelSettings) -> Path | None:
    try:
        return Path(snapshot_download(settings.source, revision=settings.revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _notices(folder: Path) -> tuple[Path, ...]:
    return tuple(file for file in sorted(folder.glob("*")) if file.is_file() and file.name.upper().startswith(_NOTICES))


def _card_licence(card: Path) -> str | None:
    if not card.is_file():
        return None
    try:
        licence = (metadata_load(card) or {}).get("license")
    except ValueError:
        return None  # a README without, or with other, metadata
    return licence if isinstance(licence, str) else None
