"""The server's side of one secure sum: it removes the masks that the survivors revealed, and no others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from ifedicl.errors import ObjectionError, SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.party import Revealed
from ifedicl.secagg.roster import Deal, Roster

_MOST_CHOICES = 1000
"""Choices of shares that are tried for one secret: enough for 13 clients of whom 3 may be lost."""

_log = logging.getLogger(__name__)


def disagreeing(roster: Roster, deals: Mapping[str, Deal]) -> list[tuple[str, str]]:
    """Pairs of clients that published different checks of the secret that they share: one of the two is wrong."""
    dealt = [name for name in roster.names if name in deals]
    at = [roster.positions[name] - 1 for name in dealt]
    checks = np.array([np.frombuffer(deals[name].checks, dtype="<u2")[at] for name in dealt])
    return [(dealt[one], dealt[other]) for one, other in np.argwhere(checks != checks.T) if one < other]


class Collector:
    """Reconstructs the masks of one sum.

    Wrong shares are corrected: up to half of those beyond the threshold (Reed-Solomon decoding); with few clients all of those
    beyond it, because a secret can be checked.
    """

    def __init__(self, roster: Roster, deals: Mapping[str, Deal], survivors: Collection[str]) -> None:
        """Take the lists that the clients confirmed.

        Args:
            roster: who takes part.
            deals: of all clients that dealt, by name.
            survivors: names of those that sent masked numbers.
        """
        self._roster = roster
        self._deals = deals
        self._survivors = [name for name in roster.names if name in set(survivors)]
        self._wrong: list[_Wrong] = []

    def unopened(self, revealed: Mapping[str, Revealed]) -> list[str]:
        """Survivors that did not reveal the own secret to which they committed: the others' shares of it are needed."""
        for name, own in revealed.items():
            if not self._fits(name, own.own):
                _log.warning("%s revealed another own secret than it committed to; the others' shares of it are used", name)
        return [name for name in self._survivors if name not in revealed or not self._fits(name, revealed[name].own)]

    def unmasked(
        self, masked: Mapping[str, Integers], revealed: Mapping[str, Revealed], shares: Mapping[str, Mapping[str, int]]
    ) -> Integers:
        """The total of the survivors, modulo ``2^64``.

        Args:
            masked: the survivors' masked numbers, by name.
            revealed: by survivor: what it revealed.
            shares: by survivor: its shares of the own secrets of :meth:`unopened`.

        Raises:
            SecureSumError: fewer revealed than the threshold, or too many shares are wrong to say whose they are.
            ObjectionError: some clients' secrets cannot be reconstructed, and it can only be they who are wrong.
        """
        if len(revealed) < self._roster.threshold:
            raise SecureSumError(f"{len(revealed)} clients revealed; {self._roster.threshold} are needed")
        sizes = {len(integers) for integers in masked.values()}
        if len(sizes) != 1:
            raise SecureSumError(f"the masked numbers have {len(sizes)} different lengths; all must have the same")
        (size,) = sizes
        total = np.zeros(size, dtype=np.uint64)
        for integers in masked.values():
            total += integers
        unopened = set(self.unopened(revealed))
        bad: dict[str, None] = {}
        for owner in self._deals:
            try:
                if owner not in masked:
                    total -= self._pairwise_masks(owner, revealed, size)
                elif owner in unopened:
                    total -= mask(self._roster.own_seed(self._own_secret(owner, shares), owner), size)
                else:
                    total -= mask(self._roster.own_seed(revealed[owner].own, owner), size)
            except ObjectionError as error:
                bad |= dict.fromkeys(error.names)
        self._name_culprits()
        if len(bad) > len(self._deals) - self._roster.threshold:
            raise SecureSumError(
                f"shares of {len(bad)} clients are wrong, too many to be corrected; who changed them cannot be told"
            )
        if bad:
            raise ObjectionError("too many of the revealed shares of their secrets are wrong to be corrected", list(bad))
        return total

    def _fits(self, owner: str, own: int) -> bool:
        return self._roster.own_commitment(own, owner) == self._deals[owner].commitment

    def _own_secret(self, owner: str, shares: Mapping[str, Mapping[str, int]]) -> int:
        """A survivor's own secret, from the others' shares.

        Raises:
            ObjectionError: too few shares, or too many wrong ones.
        """
        threshold, names = self._roster.threshold, self._roster.names
        points = self._points(self._deals[owner].own, {name: own[owner] for name, own in shares.items() if owner in own})
        if len(points) < threshold:
            raise ObjectionError(f"{len(points)} shares of its secret are there; {threshold} are needed", [owner])

        def joined(chosen: Sequence[int]) -> int:
            return shamir.interpolated({position: points[position] for position in chosen}, (0,))[0]

        if self._fits(owner, secret := joined(tuple(points)[:threshold])):
            return secret
        try:
            wrong = shamir.wrong_positions(points, threshold)
        except SecureSumError:
            pass  # more are wrong than a decoder corrects
        else:
            if self._fits(owner, secret := joined([position for position in points if position not in wrong][:threshold])):
                self._wrong += [_Wrong(owner, names[position - 1]) for position in wrong]
                return secret
        # Any threshold of shares, where there are few choices: the secret can be checked, so this is safe. It does not say who
        # is wrong: holders that collude can choose shares that hide behind each other.
        choices = combinations(points, threshold) if comb(len(points), threshold) <= _MOST_CHOICES else ()
        for chosen in choices:
            if self._fits(owner, secret := joined(chosen)):
                _log.warning("shares of %s were wrong, more than can be told by name; the others gave its secret", owner)
                return secret
        raise ObjectionError("its secret cannot be reconstructed", [owner])

    def _pairwise_masks(self, lost: str, revealed: Mapping[str, Revealed], size: int) -> Integers:
        """The pairwise masks that survivors added and subtracted for a client that was lost."""
        roster = self._roster
        total = np.zeros(size, dtype=np.uint64)
        for survivor, secret in self._pair_secrets(lost, revealed).items():
            shared = mask(roster.pair_seed(secret, lost, survivor), size)
            if roster.sign(survivor, lost) > 0:
                total += shared
            else:
                total -= shared
        return total

    def _pair_secrets(self, lost: str, revealed: Mapping[str, Revealed]) -> dict[str, int]:
        """The secrets that a lost client shares with the survivors. Those that nobody revealed follow from the others.

        Raises:
            ObjectionError: too few survivors revealed secrets that pass the check, or the lost client dealt wrongly.
        """
        roster, deal = self._roster, self._deals[lost]
        told = {name: own.pairs[lost] for name, own in revealed.items() if lost in own.pairs}
        found = {name: secret for name, secret in told.items() if self._passes(lost, name, secret)}
        for name in sorted(told.keys() - found.keys()):
            _log.warning("%s revealed a wrong secret of its mask with %s; the others' secrets give it", name, lost)
        missing = [name for name in self._survivors if name not in found]
        if not missing:
            return found
        if len(found) < roster.threshold:
            raise ObjectionError("they revealed wrong secrets of masks", sorted(told.keys() - found.keys()))
        points = self._points(deal.pairs, found)
        first = dict(list(points.items())[: roster.threshold])
        at = [roster.positions[name] for name in missing]
        on = shamir.interpolated(first, [*at, *points])
        derived = {
            name: (value + self._correction(deal.pairs, position)) % shamir.PRIME
            for name, position, value in zip(missing, at, on, strict=False)
        }
        is_sound = on[len(at) :] == list(points.values())
        if not is_sound or not all(self._passes(lost, name, secret) for name, secret in derived.items()):
            raise ObjectionError("it dealt wrongly", [lost])  # the points have passed the checks of both sides
        return found | derived

    def _passes(self, lost: str, survivor: str, secret: int) -> bool:
        """Whether a secret is the one of which both clients published the check."""
        return self._roster.check(secret, lost, survivor) == self._deals[lost].check(self._roster.positions[survivor])

    def _points(self, corrections: Sequence[int], held: Mapping[str, int]) -> dict[int, int]:
        """The points on the owner's polynomial, from the holders' values."""
        return {
            position: (held[name] - self._correction(corrections, position)) % shamir.PRIME
            for position, name in enumerate(self._roster.names, start=1)
            if name in held
        }

    def _correction(self, corrections: Sequence[int], position: int) -> int:
        past = position - self._roster.threshold
        return corrections[past - 1] if past > 0 else 0

    def _name_culprits(self) -> None:
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


@dataclass(frozen=True)
class _Wrong:
    """A share that does not lie on its owner's polynomial."""

    owner: str
    holder: str
