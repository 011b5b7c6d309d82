"""Stage 1 at the server: collects the clients' context vectors, and adds those of later examples to earlier ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ifedicl.core.vectors import ContextVectors
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool, Participation
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import VectorsReply, VectorsRequest
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.reply_validation import ReplyChecks
from ifedicl.settings import TOGETHER

_log = logging.getLogger(__name__)


@dataclass
class _Collected:
    """The replies so far, in the fields of the checkpoint's state."""

    client_vectors: dict[str, ContextVectors]
    cursors: dict[str, str]
    dtypes: dict[str, str]

    def note(self, name: str, reply: VectorsReply) -> None:
        """Note the client's cursor and dtype."""
        self.cursors[name], self.dtypes[name] = reply.cursor, reply.dtype


class VectorCollection:
    """Asks all clients for the vectors of examples that they have not vectorised yet."""

    def __init__(self, clients: ClientPool, manifest: Manifest, memory: Memory) -> None:
        """Prepare; nothing is sent yet."""
        self._clients = clients
        self._manifest = manifest
        self._memory = memory
        self._checks = ReplyChecks(manifest)

    def vectors(self) -> list[ContextVectors]:
        """All clients' vectors, in client order; their sum alone if the method needs no more.

        A sum takes the memory of one client's vectors, for any number of clients.

        Raises:
            TooFewClientsError: fewer clients than ``coordination.min_clients`` have sent vectors, now or earlier.
            StorageError: the checkpoint cannot be written.
        """
        state = self._memory.state
        collected = _Collected(dict(state.client_vectors), dict(state.cursors), dict(state.dtypes))
        adds_up = self._manifest.method.vectors_add_up
        answers = (self._collect_sum if adds_up else self._collect_each)(collected)
        self._memory.keep(replace(self._memory.state, **vars(collected)))
        usable = {name: vectors for name, vectors in collected.client_vectors.items() if vectors.examples > 0}
        senders = collected.cursors if adds_up and usable else usable
        participants = tuple(name for name in self._clients.names if name in senders)
        self._clients.require(Participation(participants, answers.failures), "vectors")
        if len(set(collected.dtypes.values())) > 1:
            mix = ", ".join(f"{name}: {dtype}" for name, dtype in collected.dtypes.items())
            _log.warning("clients compute in different dtypes (%s), so their vectors differ a little", mix)
        order = dict.fromkeys((TOGETHER, *self._clients.names))
        return [usable[name] for name in order if name in usable]

    def _collect_each(self, collected: _Collected) -> Participation:
        """Replace each client's earlier vectors, or add to them."""
        known = collected.client_vectors

        def take(name: str, reply: VectorsReply) -> None:
            known[name] = reply.vectors if reply.replaces or name not in known else known[name].combine(reply.vectors)
            collected.note(name, reply)

        return self._ask(collected.cursors, take)

    def _collect_sum(self, collected: _Collected) -> Participation:
        """Add each client's vectors to the sum.

        A sum only grows: if a client's earlier examples change, their old vectors stay in it, as in secure mode.
        """
        known, total, added = dict(collected.cursors), Total(VectorsReply), 0
        for vectors in collected.client_vectors.values():  # one sum; several in a run of an older version
            total.add(VectorsReply(vectors, "", replaces=True, dtype="", wire_dtype="float32"))

        def take(name: str, reply: VectorsReply) -> None:
            nonlocal added
            if reply.replaces and name in known:
                _log.warning("client %s changed earlier examples: their old vectors stay in the sum", name)
            elif reply.vectors.examples:
                total.add(reply)
                added += reply.vectors.examples
            elif name not in known:
                return  # it has sent no vectors yet
            collected.note(name, reply)

        answers = self._ask(known, take)
        if added and (together := total.reply) is not None:
            collected.client_vectors = {TOGETHER: together.vectors}
        return answers

    def _ask(self, cursors: Mapping[str, str], take: Callable[[str, VectorsReply], None]) -> Participation:
        job = self._clients.manifest.digest
        # Clients with the same cursor share one request object, which engines encode once.
        by_cursor = {cursor: VectorsRequest(job, cursor) for cursor in {"", *cursors.values()}}
        requests = {name: by_cursor[cursors.get(name, "")] for name in self._clients.names}
        return self._clients.collect(requests, VectorsReply, self._checks.is_usable_vectors, take)
