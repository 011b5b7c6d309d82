"""The roster: who takes part in one sum, with which keys. Clients and server must see the same one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from ifedicl.secagg.keys import derived, digest


def binding_of(session: str, rules: str, request: bytes) -> bytes:
    """Digest of session, rules and request: keys, signatures and seals of one sum are worthless in another."""
    return digest(b"ifedicl secure sum 1", session.encode(), rules.encode(), request)


@dataclass(frozen=True)
class Advert:
    """A client's public keys for one sum.

    Attributes:
        mask_key: X25519; derives the pairwise masks. The server learns its private half if the client drops out.
        channel_key: X25519; seals the shares. Its private half never leaves the client.
        signature: Ed25519 over both keys and the binding of this sum.
    """

    mask_key: bytes
    channel_key: bytes
    signature: bytes

    def content(self, binding: bytes, name: str) -> bytes:
        """The bytes that the signature covers."""
        return digest(b"advert", binding, name.encode(), self.mask_key, self.channel_key)


@dataclass(frozen=True)
class Roster:
    """The clients of one sum.

    Attributes:
        binding: digest of session, rules and request, as :func:`binding_of` makes it.
        adverts: by name, in the order of their positions.
        threshold: fewest survivors whose total may be revealed, and fewest shares that reconstruct a secret.
    """

    binding: bytes
    adverts: Mapping[str, Advert]
    threshold: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the clients, in the order of their positions."""
        return tuple(self.adverts)

    @cached_property
    def digest(self) -> bytes:
        """Identifies the sum and all its clients with their keys."""
        keys = [part for name, own in self.adverts.items() for part in (name.encode(), own.mask_key, own.channel_key)]
        return digest(b"roster", self.binding, self.threshold.to_bytes(4, "big"), *keys)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Each client's evaluation point on the polynomials, from 1."""
        return {name: position for position, name in enumerate(self.adverts, start=1)}

    def pair_seed(self, secret: bytes, one: str, other: str) -> bytes:
        """Seed of the pairwise mask of two clients, from the secret on which their mask keys agree."""
        pair = sorted((one, other), key=lambda name: self.positions[name])
        return derived(secret, self.digest, digest(b"pair", *(name.encode() for name in pair)))

    def own_seed(self, secret: bytes, name: str) -> bytes:
        """Seed of a client's own mask."""
        return derived(secret, self.digest, digest(b"own", name.encode()))

    def commitment(self, secret: bytes, name: str) -> bytes:
        """Commits to a client's own secret without revealing it, so that a wrong share is detected."""
        return digest(b"commitment", self.digest, name.encode(), secret)

    def agreement(self, dealt: Collection[str], survivors: Collection[str]) -> bytes:
        """What a client signs before it reveals: who dealt, and who survived, in this sum."""
        lists = [
            b"".join(self.positions[name].to_bytes(4, "big") for name in self.names if name in group)
            for group in (dealt, survivors)
        ]
        return digest(b"agreement", self.digest, *lists)

    def sign(self, one: str, other: str) -> int:
        """1 where ``one`` adds the pairwise mask with ``other``, -1 where it subtracts it."""
        return 1 if self.positions[one] < self.positions[other] else -1
