"""Paths in a settings file: relative ones begin at the file's own folder."""

from __future__ import annotations

from pathlib import Path

from ifedicl.rows import HUB_PREFIX
from ifedicl.settings.config import ModelSettings


def anchored(source: str, folder: Path) -> str:
    """``source`` as a path from the file's ``folder``; an id of the hub as it is."""
    return source if source.startswith(HUB_PREFIX) else str(folder / Path(source).expanduser())


def anchored_model(model: ModelSettings, folder: Path) -> ModelSettings:
    """The model in the file's ``folder`` if there is one; otherwise as it is, for instance an id of the hub."""
    local = folder / Path(model.source).expanduser()
    return model.model_copy(update={"source": str(local)}) if local.exists() else model
