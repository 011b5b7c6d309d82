"""The protocol of the layers of a client's endpoint. Each layer calls the next inner one.

The inner layers return a reply: the client, and its differential privacy. The layers around them return a :class:`Disclosure`:
the owner's policy, the secure sum. The outermost layer is an :data:`Endpoint`, from envelope to envelope.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

from ifedicl.federation.messages import Envelope, Reply, Request
from ifedicl.ledger.usage import ReplyFacts

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)


class Handler(Protocol[Q, A]):
    """One layer of a client's endpoint."""

    @property
    def name(self) -> str:
        """The client's name in the federation."""

    def handle(self, request: Q, /) -> A:
        """Answer one request. Never raises: an error becomes a ``Failure``."""


@dataclass(frozen=True)
class Disclosure:
    """A reply, which leaves or goes into a sum, and facts for the ledger's line."""

    reply: Reply
    facts: ReplyFacts = field(default_factory=ReplyFacts)


Replier: TypeAlias = Handler[Request, Reply]
"""Answers plain requests: a client, or a layer directly around it."""
Discloser: TypeAlias = Handler[Request, Disclosure]
"""A layer that knows the facts of its replies."""
Endpoint: TypeAlias = Handler[Envelope, Envelope]
"""A client as an engine reaches it."""
