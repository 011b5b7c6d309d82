"""What the store holds, and the key of a request."""

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
from ifedicl.kinds.any_task import AnyTask
from ifedicl.settings import Method, PrivacySettings, method_of

_LATER: Mapping[str, object] = {"depths": (0.0, 1.0), "promise": ""}
"""Fields that the first stores lack, with their defaults. Digests leave defaults out, so earlier stores still match."""


def _promise(privacy: PrivacySettings) -> str:
    """The privacy settings as JSON, with the names and constants of the first stores, so that earlier stores still match."""
    values = {
        "mode": privacy.mode,
        "min_clients": privacy.min_survivors,
        "drop_out": privacy.dropout,
        "min_examples": privacy.min_examples,
        "largest_update": 100.0,
        "bits": 40,
        "noise": privacy.noise,
    }
    return to_json(values).decode()


@dataclass(frozen=True)
class TaskKey:
    """The properties that a request and a stored adapter must share for an exact hit.

    Attributes:
        federation: id of the federation; requests find nothing of another one.
        fingerprint: of the model.
        task: digest of template, labels, label words and how they are scored.
        read_position: of stage 1.
        rank: of the context subspace; 0: scalars only.
        readout: whether the settings have one.
        format_version: of the adapter.
        depths: fractions of the depth between which layers are injected; the second is 1 except in earlier versions' adapters.
        promise: the privacy settings of a private run, as JSON; otherwise empty.
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
    def of(cls, federation: str, fingerprint: str, task: AnyTask, method: Method) -> Self:
        """The key of a request."""
        position, readout = method.vectors.read_position, method.readout is not None
        depths = method.injection.from_depth, 1.0
        promise = _promise(method.privacy) if method.privacy is not None and method.promises_noise else ""
        return cls(federation, fingerprint, task.digest, position, method.rank, readout, depths=depths, promise=promise)

    @classmethod
    def of_adapter(cls, federation: str, adapter: Adapter) -> Self:
        """The key of the request that an adapter answers.

        Raises:
            AdapterError: its provenance does not state the settings.
        """
        try:
            method = method_of(adapter.provenance)
        except (KeyError, IfediclError) as error:
            raise AdapterError(
                f"adapter {adapter.task.name!r}: its provenance does not state its settings, so no request can match it. Store "
                "adapters that `ifedicl run` wrote"
            ) from error
        return cls.of(federation, adapter.fingerprint, adapter.task, method)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all fields, later ones only where they differ from their defaults."""
        fields = {name: value for name, value in asdict(self).items() if name not in _LATER}
        return hashlib.sha256(json.dumps(fields | self._extras, sort_keys=True).encode()).hexdigest()

    @property
    def scope(self) -> str:
        """Hex SHA-256 of the properties that two tasks must share for their signatures to be comparable."""
        content = json.dumps([self.federation, self.fingerprint, self.read_position, *self._extras.values()])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def _extras(self) -> dict[str, object]:
        return {name: value for name, default in _LATER.items() if (value := getattr(self, name)) != default}


@dataclass(frozen=True)
class Entry:
    """One version of one task, without its tensors.

    Attributes:
        id: of this version in this store.
        task: its name.
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
    """One version with its tensors."""

    entry: Entry
    adapter: Adapter
    signature: Array32 | None


@dataclass(frozen=True)
class Neighbour:
    """A version, and the cosine between its signature and another one, in [-1, 1]."""

    entry: Entry
    cosine: float
