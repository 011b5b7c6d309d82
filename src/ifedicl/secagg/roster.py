"""Who takes part in one sum, with which keys: the part of the protocol that clients and server must see alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ifedicl.secagg.keys import agreed, derived, digest


def binding_of(session: str, rules: str, request: bytes) -> bytes:
    """Digest of all that a sum is about: what is keyed, signed or sealed for one means nothing in another."""
    return digest(b"ifedicl secure sum 1", session.encode(), rules.encode(), request)


@dataclass(frozen=True)
class Advert:
    """A client's public keys for one sum.

    Attributes:
        mask_key: X25519; pairs agree on their masks with it. The server learns its private half if the client drops out.
        channel_key: X25519; shares are sealed with it, and nobody ever learns its private half.
        signature: Ed25519 of both, in the binding of this sum.
    """

    mask_key: bytes
    channel_key: bytes
    signature: bytes

    def content(self, binding: bytes, name: str) -> bytes:
        """What the signature signs."""
        return digest(b"advert", binding, name.encode(), self.mask_key, self.channel_key)


@dataclass(frozen=True)
class Roster:
    """The clients of one sum.

    Attributes:
        binding: digest of session, rules and request: keys, signatures and seals of one sum mean nothing in another.
        adverts: by name, in the order of their positions.
        threshold: fewest clients whose total may be revealed, and fewest shares that give a secret back.
    """

    binding: bytes
    adverts: Mapping[str, Advert]
    threshold: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(self.adverts)

    @cached_property
    def digest(self) -> bytes:
        """Names the sum with all who take part."""
        keys = [part for name, own in self.adverts.items() for part in (name.encode(), own.mask_key, own.channel_key)]
        return digest(b"roster", self.binding, self.threshold.to_bytes(4, "big"), *keys)

    @cached_property
    def positions(self) -> dict[str, int]:
        """From 1; where a client's shares lie on the polynomials."""
        return {name: position for position, name in enumerate(self.adverts, start=1)}

    def pair_seed(self, own: X25519PrivateKey, one: str, other: str) -> bytes:
        """Of the mask that two clients share; ``own`` is the private mask key of ``one``. Both compute the same."""
        pair = sorted((one, other), key=lambda name: self.positions[name])
        secret = agreed(own, self.adverts[other].mask_key)
        return derived(secret, self.digest, digest(b"pair", *(name.encode() for name in pair)))

    def own_seed(self, secret: bytes, name: str) -> bytes:
        """Of a client's own mask."""
        return derived(secret, self.digest, digest(b"own", name.encode()))

    def commitment(self, secret: bytes, name: str) -> bytes:
        """Pins a client's own secret without telling it, so that a bent share is found out."""
        return digest(b"commitment", self.digest, name.encode(), secret)

    def sign(self, one: str, other: str) -> int:
        """Whether ``one`` adds the mask that it shares with ``other``, or subtracts it."""
        return 1 if self.positions[one] < self.positions[other] else -1
