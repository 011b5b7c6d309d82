"""The catalog of served adapters, from folders and from the task store. New versions are picked up while the server runs."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ifedicl.adapter import Adapter
from ifedicl.adapter.format import adapter_folder
from ifedicl.backbone.multi_adapter import Apart, Placed
from ifedicl.errors import AdapterError, FingerprintError, IfediclError, ServeError
from ifedicl.federation.run_folder import RunFolder
from ifedicl.serve.asked import ROUTES
from ifedicl.serve.asked.any_route import KindRoute
from ifedicl.serve.faults import type_and_place
from ifedicl.store.protocol import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """An adapter as its source loads it.

    Attributes:
        version: differs between versions.
        origin: ``folder`` or ``store``.
        run: the folder of the run that made it, if known.
        figures: the store's figures of it.
    """

    adapter: Adapter
    version: str
    origin: str
    run: Path | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """An adapter that a source has, not loaded yet. ``mark`` changes with each version."""

    name: str
    mark: object
    load: Callable[[], Loaded]


class Source(Protocol):
    """A place that holds adapters."""

    def offers(self) -> Sequence[Offer]:
        """The adapters that it holds now."""
        ...


@dataclass(frozen=True, eq=False)
class Served:
    """A served adapter, with the offer's name and mark; ``raw``: the raw model for the same task."""

    name: str
    mark: object
    loaded: Loaded
    placed: Placed | Apart
    raw: Placed | Apart

    @property
    def route(self) -> KindRoute:
        """Where it is asked."""
        return ROUTES[type(self.loaded.adapter.task)]


@dataclass(frozen=True)
class Folder:
    """One adapter folder; ``ifedicl run`` replaces it as a whole."""

    name: str
    path: Path

    @classmethod
    def of(cls, argument: str) -> Folder:
        """From ``FOLDER`` or ``NAME=FOLDER``; the name of RUN/adapter is RUN."""
        name, _, folder = argument.rpartition("=")
        path = adapter_folder(Path(folder).expanduser())
        absolute = path.absolute()
        return cls(slug(name or (absolute.parent.name if absolute.name == "adapter" else absolute.name)), path)

    def offers(self) -> Sequence[Offer]:
        """The folder's adapter."""
        try:
            stat = (self.path / "adapter.json").stat()
        except OSError:  # loading reports what is missing; an adapter that was served before stays
            return [Offer(self.name, None, self._load)]
        return [Offer(self.name, (stat.st_mtime_ns, stat.st_ino, stat.st_size), self._load)]

    def _load(self) -> Loaded:
        adapter = Adapter.load(self.path)
        header, _ = adapter.header_and_tensors()  # with the digest of the tensors
        version = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
        run = self.path.absolute().parent
        return Loaded(adapter, version, "folder", run if RunFolder(run).metrics.is_file() else None)


@dataclass(frozen=True, eq=False)
class StoreSource:
    """The newest version of every task of a store that belongs to one model; ``federation`` None: of all federations."""

    store: Store
    fingerprint: str
    federation: str | None = None

    def offers(self) -> Sequence[Offer]:
        """One for each task. If several tasks have one name, the oldest gets the plain name, so that names stay stable."""
        entries = self.store.entries(federation=self.federation)  # oldest first
        newest = {entry.key: entry for entry in entries if entry.fingerprint == self.fingerprint}
        offers: dict[str, Offer] = {}
        for key, entry in newest.items():
            plain = slug(entry.task)
            name = f"{plain}-{key[:8]}" if plain in offers else plain
            offers[name] = Offer(name, entry.id, partial(self._load, entry.id))
        return list(offers.values())

    def _load(self, version: int) -> Loaded:
        stored = self.store.get(version)
        facts = {**stored.entry.metrics, "federation": stored.entry.federation, "stored": stored.entry.created}
        return Loaded(stored.adapter, str(stored.entry.version), "store", figures=facts)


class Catalog:
    """The adapters served now. One thread refreshes it; any thread may read it."""

    def __init__(
        self, sources: Sequence[Source], fingerprint: str, place: Callable[[Adapter], tuple[Placed | Apart, Placed | Apart]]
    ) -> None:
        """Start empty.

        Args:
            sources: of two adapters with one name, the earlier source's is served.
            fingerprint: of the model.
            place: returns the adapter and the raw model for its task, both on the model.
        """
        self._sources = sources
        self._fingerprint = fingerprint
        self._place = place
        self._served: Mapping[str, Served] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def get(self, name: str | None) -> Served:
        """The adapter of a name; without a name, the only one.

        Raises:
            AdapterError: no adapter has that name, or several are served and none is named.
        """
        names = ", ".join(sorted(self._served)) or "none"
        if name is None:
            if len(self._served) != 1:
                raise AdapterError(f"adapter: received nothing; name one of the served adapters: {names}")
            return next(iter(self))
        if name not in self._served:
            raise AdapterError(f"adapter: received {name[:80]!r}, which is not served; served: {names}")
        return self._served[name]

    def refresh(self, *, strict: bool = False) -> None:
        """Read the sources: load new adapters, drop removed ones.

        Raises:
            IfediclError: only if ``strict``: an adapter cannot be read or is of another model. Otherwise errors are logged, and
                what was served before stays.
        """
        served: dict[str, Served] = {}
        for source in self._sources:
            try:
                offers = source.offers()
            except IfediclError as error:
                if strict:
                    raise
                _log.warning("adapters are not refreshed: %s", error)
                return
            for offer in offers:
                self._add(offer, served, strict=strict)
        self._served = served

    def _add(self, offer: Offer, served: dict[str, Served], *, strict: bool) -> None:
        if offer.name in served:
            if strict:
                raise ServeError(f"adapters: two have the name {offer.name!r}; give other names with NAME=FOLDER")
            return
        known = self._served.get(offer.name)
        if known is not None and known.mark == offer.mark:
            served[offer.name] = known
            return
        try:
            served[offer.name] = self._loaded(offer)
            _log.info("serving %s, version %s", offer.name, served[offer.name].loaded.version)
        except Exception as error:  # any error: one adapter must not keep the others from loading
            if strict:
                raise
            _log.warning(
                "%s is not loaded: %s", offer.name, error if isinstance(error, IfediclError) else type_and_place(error)
            )
            if known is not None:
                served[offer.name] = known

    def _loaded(self, offer: Offer) -> Served:
        loaded = offer.load()
        adapter = loaded.adapter
        if adapter.fingerprint != self._fingerprint:
            raise FingerprintError(
                f"adapter {offer.name!r} was made with {adapter.model_name} (fingerprint {adapter.fingerprint[:12]}…), this "
                f"server runs {self._fingerprint[:12]}…. One server serves the adapters of one model: start another for it"
            )
        return Served(offer.name, offer.mark, loaded, *self._place(adapter))


def slug(name: str) -> str:
    """A name that needs no escaping in a URL."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "adapter"
