"""The protocol of an engine, which carries the coordinator's messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ifedicl.federation.messages import Reply, Request
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import Receipt


@dataclass(frozen=True)
class Delivery:
    """One client's reply, and its cost.

    Attributes:
        client: its name.
        reply: a ``Failure`` if none came.
        bytes_down: of the request on the wire.
        bytes_up: of the reply on the wire; 0 if none came.
        seconds: from request to reply.
        parts: of a sum over clients: the cost to each, whose reply is kept for its failure alone.
        carrier_bytes: bytes that the carrier added to both messages, if known.
        receipt: the ledger's head and the digest of the frame as it arrived; None: the client has no ledger.
    """

    client: str
    reply: Reply
    bytes_down: int
    bytes_up: int
    seconds: float
    parts: tuple[Delivery, ...] = ()
    carrier_bytes: int = 0
    receipt: Receipt | None = None


class Engine(Protocol):
    """Carries requests to clients and their replies back."""

    def clients(self) -> tuple[str, ...]:
        """The names of all clients, in a fixed order."""

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Send one request to each client and yield one delivery for each, in any order.

        Args:
            requests: by client.
            deadline: seconds from now after which a missing reply is a ``Failure`` with code ``late``.
            heads: by client, the known head of its ledger, which travels with the request.
        """
