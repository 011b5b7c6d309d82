"""Which adapters are served: from folders and out of the task store, new versions while the server runs."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ifedicl.adapter import Adapter
from ifedicl.backbone.multi_adapter import Placed
from ifedicl.errors import AdapterError, FingerprintError, IfediclError, ServeError
from ifedicl.serve.error_log import happened
from ifedicl.store.protocol import Store

_log = logging.getLogger(__name__)
_HEADER = "adapter.json"


@dataclass(frozen=True)
class Loaded:
    """An adapter as a source gives it.

    Attributes:
        adapter: it.
        version: a new one has another.
        origin: ``folder`` or ``store``.
        run: the folder of the run that made it, where it is known.
        figures: what the store knows of it.
    """

    adapter: Adapter
    version: str
    origin: str
    run: Path | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """Something that a source has, not loaded yet.

    Attributes:
        name: as requests name it.
        mark: changes with each version.
        load: reads it.
    """

    name: str
    mark: object
    load: Callable[[], Loaded]


class Source(Protocol):
    """Where adapters come from."""

    def offers(self) -> Sequence[Offer]:
        """What is there now."""
        ...


@dataclass(frozen=True, eq=False)
class Served:
    """An adapter that is served.

    Attributes:
        name: as requests name it.
        loaded: adapter, version and where they come from.
        placed: it on the model.
        raw: the raw model, asked its task.
    """

    name: str
    loaded: Loaded
    placed: Placed
    raw: Placed


class Folder:
    """One adapter folder; ``ifedicl run`` replaces it as a whole."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    @classmethod
    def of(cls, argument: str) -> Folder:
        """From ``FOLDER`` or ``NAME=FOLDER``; the name of RUN/adapter is RUN."""
        name, _, place = argument.rpartition("=")
        path = Path(place).expanduser()
        absolute = path.absolute()
        return cls(slug(name or (absolute.parent.name if absolute.name == "adapter" else absolute.name)), path)

    def offers(self) -> Sequence[Offer]:
        """The folder's adapter."""
        try:
            stat = (self._path / _HEADER).stat()
        except OSError:  # loading says what is missing; where it was served before, it still is
            return [Offer(self._name, None, self._load)]
        return [Offer(self._name, (stat.st_mtime_ns, stat.st_ino, stat.st_size), self._load)]

    def _load(self) -> Loaded:
        adapter = Adapter.load(self._path)
        header, _ = adapter.packed()  # with the digest of the tensors
        version = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
        run = self._path.absolute().parent
        return Loaded(adapter, version, "folder", run if (run / "metrics.jsonl").is_file() else None)


class StoreSource:
    """The newest version of every task of a store that belongs to one model."""

    def __init__(self, store: Store, fingerprint: str, federation: str | None = None) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._federation = federation

    def offers(self) -> Sequence[Offer]:
        """One a task. Of tasks with one name the oldest has the plain one, so that it stays what it was."""
        own = [item for item in self._store.entries(federation=self._federation) if item.fingerprint == self._fingerprint]
        newest = {item.key: item for item in own}
        taken: set[str] = set()
        offers = []
        for key, entry in newest.items():
            plain = slug(entry.task)
            name = f"{plain}-{key[:8]}" if plain in taken else plain
            taken.add(name)
            offers.append(Offer(name, entry.id, lambda version=entry.id: self._load(version)))  # type: ignore[misc]
        return offers

    def _load(self, version: int) -> Loaded:
        stored = self._store.get(version)
        facts = {**stored.entry.metrics, "federation": stored.entry.federation, "stored": stored.entry.created}
        return Loaded(stored.adapter, str(stored.entry.version), "store", figures=facts)


class Catalog:
    """What is served at this moment. One thread refreshes it; any may read."""

    def __init__(self, sources: Sequence[Source], fingerprint: str, place: Callable[[Adapter], tuple[Placed, Placed]]) -> None:
        """Hold nothing yet.

        Args:
            sources: an earlier one's names come before a later one's.
            fingerprint: of the model.
            place: puts an adapter on it.
        """
        self._sources = sources
        self._fingerprint = fingerprint
        self._place = place
        self._served: Mapping[str, tuple[object, Served]] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter([served for _, served in self._served.values()])

    def __len__(self) -> int:
        return len(self._served)

    def get(self, name: str | None) -> Served:
        """By name; without one, the only one.

        Raises:
            AdapterError: there is none of that name, or there are several to choose from.
        """
        names = ", ".join(sorted(self._served)) or "none at the moment"
        if name is None:
            if len(self._served) != 1:
                raise AdapterError(f"adapter: not given; name one of those that are served: {names}")
            return next(iter(self))
        if name not in self._served:
            raise AdapterError(f"adapter {name[:80]!r} is not served; served: {names}")
        return self._served[name][1]

    def refresh(self, *, strict: bool = False) -> None:
        """Look at the sources; load what is new, drop what has gone.

        Args:
            strict: raise what goes wrong. Otherwise it is logged, and what was served before stays.

        Raises:
            IfediclError: an adapter cannot be read or is of another model, where ``strict``.
        """
        served: dict[str, tuple[object, Served]] = {}
        for source in self._sources:
            try:
                offers = source.offers()
            except IfediclError as error:
                if strict:
                    raise
                _log.warning("adapters are not refreshed: %s", error)
                return
            for offer in offers:
                self._take(offer, served, strict=strict)
        self._served = served

    def _take(self, offer: Offer, served: dict[str, tuple[object, Served]], *, strict: bool) -> None:
        if offer.name in served:
            if strict:
                raise ServeError(f"two adapters are called {offer.name!r}; name them: NAME=FOLDER")
            return
        known = self._served.get(offer.name)
        if known is not None and known[0] == offer.mark:
            served[offer.name] = known
            return
        try:
            served[offer.name] = (offer.mark, self._loaded(offer))
            _log.info("serving %s, version %s", offer.name, served[offer.name][1].loaded.version)
        except Exception as error:  # of whatever kind: one adapter must not keep the others from being taken in
            if strict:
                raise
            _log.warning("%s is not taken in: %s", offer.name, error if isinstance(error, IfediclError) else happened(error))
            if known is not None:
                served[offer.name] = known

    def _loaded(self, offer: Offer) -> Served:
        loaded = offer.load()
        if loaded.adapter.fingerprint != self._fingerprint:
            raise FingerprintError(
                f"adapter {offer.name!r} was made with {loaded.adapter.model_name} (fingerprint "
                f"{loaded.adapter.fingerprint[:12]}…), this server runs {self._fingerprint[:12]}…. One server serves the "
                "adapters of one model: start another for it"
            )
        return Served(offer.name, loaded, *self._place(loaded.adapter))


def slug(name: str) -> str:
    """A name that needs no escaping in a URL."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "adapter"
