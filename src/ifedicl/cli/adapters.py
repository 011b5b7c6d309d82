"""Adapters that commands are given: a folder, or the hub's after ``hub:``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ifedicl.adapter import Adapter


def folder_argument(named: str) -> str:
    """``[NAME=]FOLDER`` of ``[NAME=]FOLDER`` or ``[NAME=]hub:OWNER/NAME[@REVISION]``, which is downloaded if necessary.

    Raises:
        AdapterError: the hub has no such repository or revision.
        DownloadError: the hub cannot be reached.
    """
    from ifedicl.adapter.hub_name import HubName

    name, _, place = named.rpartition("=")
    on_hub = HubName.of(place)
    return named if on_hub is None else f"{name or on_hub.id.partition('/')[2]}={on_hub.downloaded()}"


def read_adapter(named: Path, model: str | None) -> Adapter:
    """An adapter whose model, ``model`` if it is given, is looked for before torch is imported.

    Raises:
        AdapterError: there is no such adapter, or it is incomplete.
        BackboneError: its model is not there.
        DownloadError: the hub cannot be reached.
    """
    from ifedicl.adapter import Adapter
    from ifedicl.adapter.hub_name import HubName
    from ifedicl.backbone.source import check_source

    is_on_hub = HubName.of(str(named)) is not None
    adapter = (Adapter.from_pretrained(named) if is_on_hub else Adapter.load(named)).with_model_source(model)
    check_source(adapter.model)
    return adapter
