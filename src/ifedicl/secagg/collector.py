"""The server's side of one secure sum: it removes the masks that the revealed shares reconstruct, and no others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.keys import agreed
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.roster import Roster

_log = logging.getLogger(__name__)


def unmasked(
    roster: Roster,
    commitments: Mapping[str, bytes],
    masked: Mapping[str, Integers],
    revealed: Mapping[str, Mapping[str, bytes]],
) -> Integers:
    """The total of the clients that sent masked numbers, modulo ``2^64``.

    Wrong shares are corrected: up to half of those beyond the threshold (Reed-Solomon decoding).

    Args:
        roster: who takes part.
        commitments: of all clients that dealt shares, by name.
        masked: the survivors' masked numbers, by name.
        revealed: by survivor: one share of each client that dealt, as :meth:`Party.reveal` returns them.

    Raises:
        SecureSumError: fewer shares than the threshold, or more wrong ones than can be corrected.
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
    for owner, commitment in commitments.items():
        if owner in masked:
            total -= mask(roster.own_seed(shares.own_secret(owner, commitment), owner), size)
        else:
            total -= _pairwise_masks(roster, owner, shares.mask_key(owner), masked)
    shares.name_culprits()
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
        quick = dict(sorted(own.items())[: roster.threshold])
        try:
            secret = shamir.join(quick)
            if fits(secret):
                return secret
        except SecureSumError:
            pass  # a share that is no element of the field is a wrong one, too
        secret, wrong = shamir.corrected(own, roster.threshold)
        if not fits(secret):
            most = (len(own) - roster.threshold) // 2
            raise SecureSumError(f"more shares of {owner}'s secret are wrong than can be corrected: up to {most} of {len(own)}")
        self._wrong += [_Wrong(owner, roster.names[position - 1]) for position in wrong]
        return secret


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
