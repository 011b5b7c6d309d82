"""What the coordinator needs of whatever carries its messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ifedicl.federation.messages import Reply, Request
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import Receipt


@dataclass(frozen=True)
class Delivery:
    """One client's answer, and what it cost.

    Attributes:
        client: its name.
        reply: the reply; a ``Failure`` where there is none.
        bytes_down: of the request as it crossed.
        bytes_up: of the reply as it crossed; 0 where none came.
        seconds: from request to reply.
        parts: where it stands for several clients, what it cost each of them; their replies are kept for their failures alone.
        carrier_bytes: what the carrier added to both, where it can tell.
        receipt: the ledger's head and the digest of the frame as it arrived; None where no ledger stands behind the reply.
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
        """Names of all clients, in an order that stays."""
        ...

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Send one request to each client named and yield a delivery for each, in any order, as they come.

        Args:
            requests: by client.
            deadline: seconds from now after which a missing reply is a ``Failure`` with code ``late``.
            heads: by client, the known head of its ledger; it travels beside the request.
        """
        ...
