"""The narrow protocol of a client's end: each layer handles what comes, and asks the layer within.

A client's end is built of layers, one around the other. The inner ones answer a request with a reply: the client, and its
differential privacy. The ones around them answer with a :class:`Disclosure`: the owner's policy, the secure sum. The outermost
layer is an :data:`Endpoint`: it takes and gives envelopes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from ifedicl.federation.messages import Envelope, Reply, Request
from ifedicl.ledger.usage import ExampleSet

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)


class Handler(Protocol[Q, A]):
    """One layer of a client's end."""

    @property
    def name(self) -> str:
        """How the coordinator knows the client."""
        ...

    def handle(self, request: Q, /) -> A:
        """Answer one request. Never raises: what goes wrong becomes a ``Failure``."""
        ...


@dataclass(frozen=True)
class Disclosure:
    """A reply on its way out, and what the ledger's line says beside it.

    Attributes:
        reply: what leaves.
        run: digest of the run that it belongs to; empty where that is not known.
        examples: which training examples its sums are of; None of other replies.
        epsilon: the ε of all that left in this run, for one example; None: there is no DP guarantee.
    """

    reply: Reply
    run: str = ""
    examples: ExampleSet | None = None
    epsilon: float | None = None


Replier: TypeAlias = Handler[Request, Reply]
"""Answers plain requests: a client, or what stands directly around it."""
Discloser: TypeAlias = Handler[Request, Disclosure]
"""A layer that knows what its replies tell."""
Endpoint: TypeAlias = Handler[Envelope, Envelope]
"""A client's whole end: all that an engine needs of a client."""
