"""What the store keeps and what it is asked by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic_core import to_json

from ifedicl.adapter import FORMAT_VERSION, Adapter
from ifedicl.core.vectors import Array32
from ifedicl.errors import AdapterError, IfediclError
from ifedicl.settings import Method, PrivacySettings, method_of
from ifedicl.task import Task

_LATER: Mapping[str, object] = {"depths": (0.0, 1.0), "promise": ""}
"""Fields that came after the first stores, and what is the usual: it is in no key, so that those stores are found again."""


def _promise(privacy: PrivacySettings) -> str:
    """As JSON in the names and with the constants of the first stores, so that what they hold is found again."""
    said = {
        "mode": privacy.mode,
        "min_clients": privacy.min_survivors,
        "drop_out": privacy.dropout,
        "min_examples": privacy.min_examples,
        "largest_update": 100.0,
        "bits": 40,
        "noise": privacy.noise,
    }
    return to_json(said).decode()


@dataclass(frozen=True)
class TaskKey:
    """What must be the same for a stored adapter to be the answer: an exact hit.

    Attributes:
        federation: id of the federation; nothing is found across it.
        fingerprint: of the model.
        task: digest of template, labels, label words and how they are read.
        read_position: of stage 1.
        rank: of the context subspace; 0: scalars only.
        readout: whether the settings ask for one.
        format_version: of the adapter.
        depths: the fractions of the depth between which is injected; the second is 1, except of adapters of earlier versions.
        promise: the privacy settings where they promise noise: no other adapter keeps that promise.
    """

    federation: str
    fingerprint: str
    task: str
    read_position: str
    rank: int
    readout: bool
    format_version: int = FORMAT_VERSION
    depths: tuple[float, float] = (0.0, 1.0)
    promise: str = ""

    @classmethod
    def of(cls, federation: str, fingerprint: str, task: Task, method: Method) -> Self:
        """Of a request."""
        position, readout = method.vectors.read_position, method.readout is not None
        depths = method.injection.from_depth, 1.0
        promise = _promise(method.privacy) if method.privacy is not None and method.promises_noise else ""
        return cls(federation, fingerprint, task.digest, position, method.rank, readout, depths=depths, promise=promise)

    @classmethod
    def of_adapter(cls, federation: str, adapter: Adapter) -> Self:
        """Of what a request ended with.

        Raises:
            AdapterError: its provenance does not tell the settings.
        """
        try:
            method = method_of(adapter.provenance)
        except (KeyError, IfediclError) as error:
            raise AdapterError(
                f"adapter {adapter.task.name!r}: its provenance does not say by which settings it came to be, so none can ask "
                "for it. Store adapters that `ifedicl run` wrote"
            ) from error
        return cls.of(federation, adapter.fingerprint, adapter.task, method)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all fields."""
        fields = {name: value for name, value in asdict(self).items() if name not in _LATER}
        return hashlib.sha256(json.dumps(fields | self._extras, sort_keys=True).encode()).hexdigest()

    @property
    def scope(self) -> str:
        """Hex SHA-256 of what two tasks must share for their signatures to be compared."""
        content = json.dumps([self.federation, self.fingerprint, self.read_position, *self._extras.values()])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def _extras(self) -> dict[str, object]:
        """What is asked beyond the usual."""
        return {name: value for name, usual in _LATER.items() if (value := getattr(self, name)) != usual}


@dataclass(frozen=True)
class Entry:
    """One version of one task, without its tensors.

    Attributes:
        id: of this version in this store.
        task: its name, for people.
        federation: id.
        fingerprint: of the model.
        key: digest of the :class:`TaskKey`.
        version: 1 for the first.
        created: seconds since 1970, by the database's clock.
        size: bytes of the tensors.
        metrics: as JSON: rounds, held-out loss and accuracy.
    """

    id: int
    task: str
    federation: str
    fingerprint: str
    key: str
    version: int
    created: float
    size: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """One version, whole."""

    entry: Entry
    adapter: Adapter
    signature: Array32 | None


@dataclass(frozen=True)
class Neighbour:
    """A version near a signature.

    Attributes:
        entry: of it.
        cosine: between the two signatures, in [-1, 1].
    """

    entry: Entry
    cosine: float
