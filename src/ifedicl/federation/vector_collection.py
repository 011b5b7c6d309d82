"""Stage 1 at the server: the clients' context vectors, with those of later examples added to earlier ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ifedicl.core.vectors import ContextVectors
from ifedicl.federation.assignment import Assignment
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.client_pool import ClientPool, Participation
from ifedicl.federation.messages import VectorsReply, VectorsRequest
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.reply_validation import Checks
from ifedicl.settings import TOGETHER

_log = logging.getLogger(__name__)


@dataclass
class _Collected:
    """What is known of the clients' vectors while they answer; fields as those of the checkpoint's state."""

    client_vectors: dict[str, ContextVectors]
    cursors: dict[str, str]
    dtypes: dict[str, str]

    def note(self, name: str, reply: VectorsReply) -> None:
        """Where the client is now, and what its model computes in."""
        self.cursors[name], self.dtypes[name] = reply.cursor, reply.dtype


class VectorCollection:
    """Asks all clients for vectors of examples that they have not vectorised yet."""

    def __init__(self, clients: ClientPool, assignment: Assignment, memory: Memory) -> None:
        """Prepare; nothing is asked yet."""
        self._clients = clients
        self._assignment = assignment
        self._memory = memory
        self._checks = Checks(assignment)

    def vectors(self) -> list[ContextVectors]:
        """All clients' vectors, in client order; where their sum is all that is needed, the sum.

        A sum takes the memory of one client's vectors, however many clients there are.

        Raises:
            TooFewClientsError: fewer clients than ``coordination.min_clients`` ever gave any.
            StorageError: the checkpoint cannot be written.
        """
        state = self._memory.state
        collected = _Collected(dict(state.client_vectors), dict(state.cursors), dict(state.dtypes))
        answers = (self._add_up if self._assignment.method.vectors_add_up else self._hold_each)(collected)
        self._memory.keep(
            replace(
                self._memory.state,
                client_vectors=collected.client_vectors,
                cursors=collected.cursors,
                dtypes=collected.dtypes,
            )
        )
        usable = {name: vectors for name, vectors in collected.client_vectors.items() if vectors.examples > 0}
        givers = collected.cursors if self._assignment.method.vectors_add_up and usable else usable
        self._clients.require(
            Participation(tuple(name for name in self._clients.names if name in givers), answers.failures), "vectors"
        )
        if len(set(collected.dtypes.values())) > 1:
            mix = ", ".join(f"{name}: {dtype}" for name, dtype in collected.dtypes.items())
            _log.warning("clients compute in different dtypes (%s); their vectors differ a little for that alone", mix)
        order = dict.fromkeys((TOGETHER, *self._clients.names))
        return [usable[name] for name in order if name in usable]

    def _hold_each(self, collected: _Collected) -> Participation:
        """What each client gives in place of its earlier vectors, or on top of them."""
        held = collected.client_vectors

        def take(name: str, reply: VectorsReply) -> None:
            held[name] = reply.vectors if reply.replaces or name not in held else held[name].combine(reply.vectors)
            collected.note(name, reply)

        return self._ask(collected.cursors, take)

    def _add_up(self, collected: _Collected) -> Participation:
        """What each client gives on top of the sum. A sum cannot give back what it took: where a client's earlier examples
        changed, what it gave for them stays, as in secure mode, and only what is added from now on follows.
        """
        known, total, added = dict(collected.cursors), Total(VectorsReply), 0
        for vectors in collected.client_vectors.values():  # one sum; a run that an older version began has several parts
            total.add(VectorsReply(vectors, "", replaces=True, dtype="", wire_dtype="float32"))

        def take(name: str, reply: VectorsReply) -> None:
            nonlocal added
            if reply.replaces and name in known:
                _log.warning("earlier examples of %s changed: what it gave for them before stays in the sums", name)
            elif reply.vectors.examples:
                total.add(reply)
                added += reply.vectors.examples
            elif name not in known:
                return  # it has given nothing yet
            collected.note(name, reply)

        answers = self._ask(known, take)
        if added and (together := total.reply) is not None:
            collected.client_vectors = {TOGETHER: together.vectors}
        return answers

    def _ask(self, cursors: Mapping[str, str], take: Callable[[str, VectorsReply], None]) -> Participation:
        task, method, model = self._assignment.task, self._assignment.method, self._assignment.model
        # Those who are told the same get the very same object, which engines encode once.
        asked = {cursor: VectorsRequest(task, method, model.fingerprint, cursor) for cursor in {"", *cursors.values()}}
        requests = {name: asked[cursors.get(name, "")] for name in self._clients.names}
        return self._clients.collect(requests, VectorsReply, self._checks.is_usable_vectors, take)
