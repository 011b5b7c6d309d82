"""The roster: who takes part in one sum, with which keys. Clients and server must see the same one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.keys import digest, keyed

COMMITMENT_SIZE = 16
"""Bytes of a commitment: a second secret that fits it takes ``2^128`` trials."""


def binding_of(session: bytes, rules: str, request: bytes) -> bytes:
    """Digest of session, rules and request: secrets of one sum are worthless in another."""
    return digest(b"ifedicl secure sum 2", session, rules.encode(), request)


@dataclass(frozen=True)
class Roster:
    """The clients of one sum.

    Attributes:
        binding: as :func:`binding_of` makes it.
        keys: the channel key of each client, by name, in the order of their positions.
        threshold: fewest survivors whose total may be revealed, and fewest shares that reconstruct a secret.
    """

    binding: bytes
    keys: Mapping[str, bytes]
    threshold: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the clients, in the order of their positions."""
        return tuple(self.keys)

    @cached_property
    def digest(self) -> bytes:
        """Identifies the sum and all its clients with their keys."""
        members = [part for name, key in self.keys.items() for part in (name.encode(), key)]
        return digest(b"roster", self.binding, self.threshold.to_bytes(4, "big"), *members)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Each client's evaluation point on the polynomials, from 1."""
        return {name: position for position, name in enumerate(self.keys, start=1)}

    @property
    def corrected(self) -> tuple[int, ...]:
        """The positions whose derived shares need a correction."""
        return tuple(range(self.threshold + 1, len(self.keys) + 1))

    def own_share(self, secret: bytes, owner: str, holder: str) -> int:
        """The holder's share of the owner's own secret, before correction, from the secret of the pair."""
        return self._element(secret, b"own share", owner, holder)

    def pair_secret(self, secret: bytes, one: str, other: str) -> int:
        """What the pairwise mask of two clients follows from. It is also each one's share of the other's pairwise secrets."""
        first, second = sorted((one, other), key=self.positions.__getitem__)
        return self._element(secret, b"pair", first, second)

    def tag(self, secret: bytes, agreement: bytes, sender: str, receiver: str) -> bytes:
        """Proves to the receiver that the sender was told these lists."""
        return keyed(secret, b"agreement", agreement, self._place(sender), self._place(receiver), size=TAG_SIZE)

    def own_seed(self, own_secret: int, name: str) -> bytes:
        """Seed of a client's own mask."""
        return keyed(self.digest, b"own mask", shamir.to_bytes(own_secret), self._place(name))

    def pair_seed(self, pair_secret: int, one: str, other: str) -> bytes:
        """Seed of the pairwise mask of two clients."""
        places = sorted((self._place(one), self._place(other)))
        return keyed(self.digest, b"pair mask", shamir.to_bytes(pair_secret), *places)

    def own_commitment(self, own_secret: int, name: str) -> bytes:
        """Commits to a client's own secret without revealing it, so that a wrong share is detected."""
        return keyed(self.digest, b"own", shamir.to_bytes(own_secret), self._place(name), size=COMMITMENT_SIZE)

    def check(self, pair_secret: int, one: str, other: str) -> bytes:
        """Both clients publish it before any number, so that neither can claim another secret of the pair later."""
        places = sorted((self._place(one), self._place(other)))
        return keyed(self.digest, b"check", shamir.to_bytes(pair_secret), *places, size=CHECK_SIZE)

    def agreement(self, dealt: Collection[str], survivors: Collection[str]) -> bytes:
        """What a client confirms before it reveals: who dealt, and who survived, in this sum."""
        lists = [b"".join(self._place(name) for name in self.names if name in group) for group in (dealt, survivors)]
        return digest(b"agreement", self.digest, *lists)

    def sign(self, one: str, other: str) -> int:
        """1 where ``one`` adds the pairwise mask with ``other``, -1 where it subtracts it."""
        return 1 if self.positions[one] < self.positions[other] else -1

    def _element(self, secret: bytes, purpose: bytes, one: str, other: str) -> int:
        return shamir.element(keyed(secret, purpose, self.digest, self._place(one), self._place(other), size=shamir.SIZE))

    def _place(self, name: str) -> bytes:
        return self.positions[name].to_bytes(4, "big")


CHECK_SIZE = 2
"""Bytes of a check: another secret fits it once in 65,536 times. It protects the total, not the secret."""
TAG_SIZE = 8
"""Bytes of a tag. Guessing it succeeds once in ``2^64`` times, and a client checks one set of tags in a sum."""


@dataclass(frozen=True)
class Deal:
    """What a client publishes before any number.

    Attributes:
        own: corrections of the shares of its own secret, at positions ``threshold + 1`` and up.
        pairs: the same of its pairwise secrets.
        commitment: to its own secret.
        checks: of its pairwise secrets, at all positions; zeros at its own.
    """

    own: tuple[int, ...]
    pairs: tuple[int, ...]
    commitment: bytes
    checks: bytes

    def to_bytes(self) -> bytes:
        """All of it, as it travels."""
        return b"".join(map(shamir.to_bytes, (*self.own, *self.pairs))) + self.commitment + self.checks

    @classmethod
    def from_bytes(cls, data: bytes, clients: int, threshold: int) -> Deal:
        """From :meth:`to_bytes`.

        Raises:
            SecureSumError: bytes of another size, or that are no elements of the field.
        """
        count = clients - threshold
        ends = 2 * count * shamir.SIZE
        if len(data) != deal_size(clients, threshold):
            raise SecureSumError(f"a deal of {len(data)} bytes for {clients} clients")
        elements = [shamir.from_bytes(data[start : start + shamir.SIZE]) for start in range(0, ends, shamir.SIZE)]
        commitment, checks = data[ends : ends + COMMITMENT_SIZE], data[ends + COMMITMENT_SIZE :]
        return cls(tuple(elements[:count]), tuple(elements[count:]), commitment, checks)

    def check(self, position: int) -> bytes:
        """The check at a position, from 1."""
        return self.checks[CHECK_SIZE * (position - 1) : CHECK_SIZE * position]


def deal_size(clients: int, threshold: int) -> int:
    """Bytes of a deal."""
    return 2 * (clients - threshold) * shamir.SIZE + COMMITMENT_SIZE + CHECK_SIZE * clients
