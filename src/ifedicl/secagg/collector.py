"""The server's side of one secure sum: it removes the masks that the revealed shares reconstruct, and no others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ifedicl.errors import ObjectionError, SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.keys import agreed
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.roster import Roster

_MOST_CHOICES = 1000
"""Choices of shares that are tried for one secret: enough for 13 clients of whom 3 may be lost."""

_log = logging.getLogger(__name__)


def unmasked(
    roster: Roster,
    commitments: Mapping[str, bytes],
    masked: Mapping[str, Integers],
    revealed: Mapping[str, Mapping[str, bytes]],
) -> Integers:
    """The total of the clients that sent masked numbers, modulo ``2^64``.

    Wrong shares are corrected: up to half of those beyond the threshold (Reed-Solomon decoding); with few clients all of those
    beyond it, because a secret can be checked.

    Args:
        roster: who takes part.
        commitments: of all clients that dealt shares, by name.
        masked: the survivors' masked numbers, by name.
        revealed: by survivor: one share of each client that dealt, as :meth:`Party.reveal` returns them.

    Raises:
        SecureSumError: fewer shares than the threshold, or too many wrong ones to say whose they are.
        ObjectionError: more wrong shares of some clients' secrets than can be corrected.
    """
    if len(revealed) < roster.threshold:
        raise SecureSumError(f"{len(revealed)} clients revealed shares; {roster.threshold} are needed")
    sizes = {len(integers) for integers in masked.values()}
    if len(sizes) != 1:
        raise SecureSumError(f"the masked numbers have {len(sizes)} different lengths; all must have the same")
    (size,) = sizes
    shares = _Shares(roster, revealed)
    first, *rest = masked.values()
    total = first.copy()
    for integers in rest:
        total += integers
    bad: list[str] = []
    for owner, commitment in commitments.items():
        try:
            if owner in masked:
                total -= mask(roster.own_seed(shares.own_secret(owner, commitment), owner), size)
            else:
                total -= _pairwise_masks(roster, owner, shares.mask_key(owner), masked)
        except ObjectionError:
            bad.append(owner)
    shares.name_culprits()
    if len(bad) > len(commitments) - roster.threshold:
        raise SecureSumError(
            f"shares of {len(bad)} clients are wrong, too many to be corrected; who changed them cannot be told"
        )
    if bad:
        raise ObjectionError("too many of the revealed shares of their secrets are wrong to be corrected", bad)
    return total


@dataclass(frozen=True)
class _Wrong:
    """A share that does not lie on its owner's polynomial."""

    owner: str
    holder: str


class _Shares:
    """The shares that the survivors revealed, and the secrets that they reconstruct."""

    def __init__(self, roster: Roster, revealed: Mapping[str, Mapping[str, bytes]]) -> None:
        self._roster = roster
        self._revealed = revealed
        self._wrong: list[_Wrong] = []

    def own_secret(self, owner: str, commitment: bytes) -> bytes:
        """The secret from which a survivor's own mask follows.

        Raises:
            SecureSumError: too many of its shares are wrong.
        """
        return self._secret(owner, lambda secret: self._roster.commitment(secret, owner) == commitment)

    def mask_key(self, owner: str) -> X25519PrivateKey:
        """The mask key of a client that was lost.

        Raises:
            SecureSumError: too many of its shares are wrong.
        """
        advertised = self._roster.adverts[owner].mask_key

        def fits(secret: bytes) -> bool:
            return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == advertised

        return X25519PrivateKey.from_private_bytes(self._secret(owner, fits))

    def name_culprits(self) -> None:
        """Log who revealed or dealt wrong shares, where it can be told: one party alone explains two or more of them."""
        holders, owners = (Counter(getattr(item, side) for item in self._wrong) for side in ("holder", "owner"))
        for item in self._wrong:
            by_holder, by_owner = holders[item.holder], owners[item.owner]
            if by_holder == by_owner:
                _log.warning("a share of %s that %s revealed was wrong; one of the two changed it", item.owner, item.holder)
        for name in [name for name, count in holders.items() if count > 1]:
            _log.warning("%s revealed %d wrong shares of different clients; they were corrected", name, holders[name])
        for name in [name for name, count in owners.items() if count > 1]:
            _log.warning("%s dealt wrong shares to %d clients, or they changed them; they were corrected", name, owners[name])

    def _secret(self, owner: str, fits: Callable[[bytes], bool]) -> bytes:
        roster = self._roster
        own = {roster.positions[holder]: shares[owner] for holder, shares in self._revealed.items() if owner in shares}
        if len(own) < roster.threshold:
            raise SecureSumError(f"{len(own)} clients revealed a share of {owner}'s secret; {roster.threshold} are needed")
        if (secret := _joined(own, sorted(own)[: roster.threshold])) is not None and fits(secret):
            return secret
        try:
            secret, wrong = shamir.corrected(own, roster.threshold)
        except SecureSumError:
            secret = None  # more are wrong than a decoder corrects
        if secret is not None and fits(secret):
            self._wrong += [_Wrong(owner, roster.names[position - 1]) for position in wrong]
            return secret
        return self._tried(owner, own, fits)

    def _tried(self, owner: str, own: Mapping[int, bytes], fits: Callable[[bytes], bool]) -> bytes:
        """The secret from any threshold of shares, where there are few choices: the secret can be checked, so this is safe.

        It does not say who is wrong: holders that collude can choose shares that hide behind each other.

        Raises:
            ObjectionError: no choice fits.
        """
        threshold = self._roster.threshold
        choices = combinations(own, threshold) if comb(len(own), threshold) <= _MOST_CHOICES else ()
        for positions in choices:
            if (secret := _joined(own, positions)) is not None and fits(secret):
                _log.warning("shares of %s were wrong, more than can be told by name; the others gave its secret", owner)
                return secret
        raise ObjectionError("its secret cannot be reconstructed", [owner])


def _joined(own: Mapping[int, bytes], positions: Sequence[int]) -> bytes | None:
    """The secret that these shares give; None: one of them is no element of the field."""
    try:
        return shamir.join({position: own[position] for position in positions})
    except SecureSumError:
        return None


def _pairwise_masks(roster: Roster, dropped: str, key: X25519PrivateKey, masked: Mapping[str, Integers]) -> Integers:
    """The pairwise masks that survivors added and subtracted for a client that dropped out."""
    size = len(next(iter(masked.values())))
    total = np.zeros(size, dtype=np.uint64)
    for survivor in masked:
        secret = agreed(key, roster.adverts[survivor].mask_key)
        shared = mask(roster.pair_seed(secret, dropped, survivor), size)
        if roster.sign(survivor, dropped) > 0:
            total += shared
        else:
            total -= shared
    return total
