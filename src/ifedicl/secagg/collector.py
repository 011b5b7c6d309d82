"""The server's side of one secure sum: it removes the masks that the revealed shares reconstruct, and no others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ifedicl.errors import SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.roster import Roster


def unmasked(
    roster: Roster,
    commitments: Mapping[str, bytes],
    masked: Mapping[str, Integers],
    revealed: Mapping[str, Mapping[str, bytes]],
) -> Integers:
    """The total of the clients that sent masked numbers, modulo ``2^64``.

    Args:
        roster: who takes part.
        commitments: of all clients that dealt shares, by name.
        masked: the survivors' masked numbers, by name.
        revealed: by survivor: one share of each client that dealt, as :meth:`Party.reveal` returns them.

    Raises:
        SecureSumError: fewer shares than the threshold, or shares that do not reconstruct the committed secret.
    """
    if len(revealed) < roster.threshold:
        raise SecureSumError(f"{len(revealed)} clients revealed shares; {roster.threshold} are needed")
    holders = sorted(revealed, key=lambda name: roster.positions[name])[: roster.threshold]
    sizes = {len(integers) for integers in masked.values()}
    if len(sizes) != 1:
        raise SecureSumError(f"the masked numbers have {len(sizes)} different lengths; all must have the same")
    (size,) = sizes
    first, *rest = masked.values()
    total = first.copy()
    for integers in rest:
        total += integers
    for owner, commitment in commitments.items():
        try:
            secret = shamir.join({roster.positions[holder]: revealed[holder][owner] for holder in holders})
        except KeyError as error:
            raise SecureSumError("a client revealed fewer shares than it holds") from error
        if owner in masked:
            if roster.commitment(secret, owner) != commitment:
                raise SecureSumError(f"the shares of {owner}'s own mask do not match its commitment: one of them is wrong")
            total -= mask(roster.own_seed(secret, owner), size)
        else:
            total -= _pairwise_masks(roster, owner, secret, masked)
    return total


def _pairwise_masks(roster: Roster, dropped: str, secret: bytes, masked: Mapping[str, Integers]) -> Integers:
    """The pairwise masks that survivors added and subtracted for a client that dropped out."""
    key = X25519PrivateKey.from_private_bytes(secret)
    if key.public_key().public_bytes_raw() != roster.adverts[dropped].mask_key:
        raise SecureSumError(f"the shares of {dropped}'s mask key do not match its public key: one of them is wrong")
    size = len(next(iter(masked.values())))
    total = np.zeros(size, dtype=np.uint64)
    for survivor in masked:
        shared = mask(roster.pair_seed(key, dropped, survivor), size)
        if roster.sign(survivor, dropped) > 0:
            total += shared
        else:
            total -= shared
    return total
