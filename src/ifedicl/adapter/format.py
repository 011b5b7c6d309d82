"""The format of an adapter's folder: a JSON header with the digest of the tensors, and the tensors. No pickle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, Field, StrictInt, StrictStr
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ifedicl import files
from ifedicl.adapter.content import Content
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.errors import AdapterError
from ifedicl.kinds import TaskField
from ifedicl.settings import ModelSettings
from ifedicl.version import __version__

FORMAT_VERSION = 1
UPPER_FORMAT_VERSION = 2
"""The format of an adapter whose first layer is not the model's first; readers of format 1 would use the wrong layers."""
DEPTHS_FORMAT_VERSION = 3
"""The format of an adapter whose readout reads the text's mean state at several layers."""
_VERSIONS = FORMAT_VERSION, UPPER_FORMAT_VERSION, DEPTHS_FORMAT_VERSION
TENSORS, HEADER, CARD = "adapter.safetensors", "adapter.json", "README.md"
BESIDE = "ifedicl"
"""The adapter's folder within an export."""

C = TypeVar("C", bound=Content)


class _ReadoutHeader(BaseModel):
    """One field of the two: formats 1 and 2 know one layer."""

    pooled_layer: StrictInt | None = None
    pooled_layers: tuple[StrictInt, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        return self.pooled_layers if self.pooled_layer is None else (self.pooled_layer,)


class _Header(BaseModel):
    """The JSON header. Every field is checked: the file may come from another party."""

    task: TaskField
    model: ModelSettings
    fingerprint: StrictStr
    provenance: dict[str, Any]
    readout: _ReadoutHeader | None = None
    first_layer: StrictInt = Field(default=0, ge=0)


def adapter_folder(path: Path) -> Path:
    """The adapter's folder: ``path`` itself, or the one within a run's folder."""
    inner = path / "adapter"
    return inner if not (path / HEADER).exists() and (inner / HEADER).exists() else path


def pack(content: Content) -> tuple[dict[str, Any], bytes]:
    """The header as JSON, and the tensors."""
    tensors = save(_tensors(content))
    header = {
        **_beginning(content),
        "ifedicl_version": __version__,
        "task": content.task.model_dump(mode="json"),
        "model": content.model.model_dump(mode="json"),
        "fingerprint": content.fingerprint,
        **({} if content.readout is None else {"readout": _layers_of(content.readout)}),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        "provenance": dict(content.provenance),
    }
    return header, tensors


def write_files(content: Content, folder: Path, card: str) -> None:
    """Write header, tensors and ``card`` to a folder.

    Raises:
        StorageError: as :func:`ifedicl.files.write_bytes`.
    """
    header, tensors = pack(content)
    files.write_bytes(folder / TENSORS, tensors)
    files.write_json(folder / HEADER, header)
    files.write_text(folder / CARD, card)


def unpack(kind: type[C], header: Any, data: bytes, source: str) -> C:
    """An object of class ``kind`` from what :func:`pack` returned; ``source`` names the adapter in messages.

    Raises:
        AdapterError: torn, of another format version, or with a field of another type.
    """
    version = header.get("format_version") if isinstance(header, dict) else None
    if version not in _VERSIONS:
        known = f"{', '.join(map(str, _VERSIONS[:-1]))} and {_VERSIONS[-1]}"
        writer = header.get("ifedicl_version") if isinstance(header, dict) else None
        written = f" (ifedicl {writer} wrote the adapter)" if isinstance(writer, str) else ""
        raise AdapterError(f"{source}: format version {version!r}; this ifedicl reads {known}. Update ifedicl{written}")
    if hashlib.sha256(data).hexdigest() != header.get("tensors_sha256"):
        raise AdapterError(f"{source}: {TENSORS} is torn or not the one written with {HEADER}; copy the adapter again")
    try:
        tensors, stated = load(data), _Header.model_validate(header)
        if version != FORMAT_VERSION and "first_layer" not in stated.model_fields_set:
            raise ValueError("first_layer is missing")
        first_layer = 0 if version == FORMAT_VERSION else stated.first_layer
        context = Context(tensors["vectors.mean"], tensors.get("subspace.basis"), first_layer)
        coefficients = Coefficients(tensors["coefficients.scales"], tensors.get("subspace.core"))
        if coefficients.form != Form(len(context.vectors), context.rank):
            raise ValueError(f"{coefficients.form} with a basis of rank {context.rank}")
        layers = () if stated.readout is None else stated.readout.layers
        readout = Readout(tensors["readout.weights"], layers) if "readout.weights" in tensors else None
        classes, width = stated.task.columns, context.vectors.shape[2]
        if readout is not None and not readout.fits(classes, width):
            raise ValueError(f"a readout {readout.weights.shape} for {classes} columns and a width of {width}")
        return kind(
            task=stated.task,
            readout=readout,
            context=context,
            coefficients=coefficients,
            model=stated.model,
            fingerprint=stated.fingerprint,
            provenance=stated.provenance,
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise AdapterError(f"{source}: {HEADER} and {TENSORS} do not fit each other ({error})") from error


def _beginning(content: Content) -> dict[str, int]:
    """The header's first fields: the lowest format version that has the content and, from version 2 on, the first layer."""
    first_layer = content.context.first_layer
    if content.readout is not None and len(content.readout.pooled_layers) > 1:
        return {"format_version": DEPTHS_FORMAT_VERSION, "first_layer": first_layer}
    if first_layer:
        return {"format_version": UPPER_FORMAT_VERSION, "first_layer": first_layer}
    return {"format_version": FORMAT_VERSION}


def _layers_of(readout: Readout) -> dict[str, Any]:
    layers = readout.pooled_layers
    return {"pooled_layers": layers} if len(layers) > 1 else {"pooled_layer": layers[0] if layers else None}


def _tensors(content: Content) -> dict[str, Array32]:
    """The tensors by their names in the format."""
    named = {
        "vectors.mean": content.context.vectors,
        "subspace.basis": content.context.basis,
        "coefficients.scales": content.coefficients.scales,
        "subspace.core": content.coefficients.core,
        "readout.weights": None if content.readout is None else content.readout.weights,
    }
    # safetensors ignores strides.
    return {name: np.ascontiguousarray(array) for name, array in named.items() if array is not None}
