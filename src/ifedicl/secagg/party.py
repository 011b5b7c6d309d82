"""A client's side of one secure sum: its steps, in order, each once.

The protocol of Bonawitz et al. 2017, figure 4, with the consistency round against a server that lies: before a client reveals
anything it has seen that the threshold of clients was told the same two lists, of those who dealt and of those who survived.
The secrets of a sum are derived from those of a job, so that few bytes travel; docs/secure-sum.md has the argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from hmac import compare_digest

import numpy as np
import numpy.typing as npt

from ifedicl.errors import ObjectionError, SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.channels import Channels
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.roster import CHECK_SIZE, Deal, Roster


class Step(IntEnum):
    """The step that a party takes next."""

    DEAL = 0
    MASK = 1
    AGREE = 2
    REVEAL = 3
    SHARES = 4
    NOTHING = 5


@dataclass(frozen=True)
class Revealed:
    """What a survivor reveals.

    Attributes:
        own: its own secret.
        pairs: of each client that was lost after it dealt, by name: the secret of the mask that the two share.
    """

    own: int
    pairs: Mapping[str, int]


class Party:
    """One client in one sum. An error ends it: no step can be repeated with other numbers or other clients."""

    def __init__(self, channels: Channels, binding: bytes) -> None:
        """Begin.

        Args:
            channels: this client's secrets of the job.
            binding: digest of session, rules and request.
        """
        self._channels = channels
        self._name = channels.introduction.name
        self._binding = binding
        self._next = Step.DEAL
        self._deals = 0
        self._roster: Roster | None = None
        self._secrets: dict[str, bytes] = {}  # by peer: of the pair
        self._own = 0
        self._dealt: frozenset[str] = frozenset()
        self._survivors: frozenset[str] = frozenset()

    def deal(self, keys: Mapping[str, bytes], threshold: int) -> Deal:
        """Step 1: what lets others reconstruct this client's secrets. It may be taken once more before step 2.

        The server learns who is ready after the clients dealt for those that it expected. Each roster has secrets of its own.

        Args:
            keys: the channel key of each client on the roster, by name, in the order of their positions.
            threshold: of survivors and of shares.

        Raises:
            ObjectionError: the roster names clients with which this one shares no secret.
            SecureSumError: out of order, or the roster does not hold this client's own key.
        """
        self._take(Step.DEAL)
        self._deals += 1
        own_key = self._channels.introduction.key
        if keys.get(self._name) != own_key:
            raise SecureSumError("the roster does not hold the key that this client made for this job")
        found = {name: self._channels.secret(name, key) for name, key in keys.items() if name != self._name}
        if bad := [name for name, secret in found.items() if secret is None]:
            raise ObjectionError("their keys are not pinned here, not signed for this job, or invalid", bad)
        self._secrets = {name: secret for name, secret in found.items() if secret is not None}
        self._roster = roster = Roster(self._binding, keys, threshold)
        own_shares, pairs, checks = [], [], []
        for name in roster.names:
            if name == self._name:  # any value does: nobody else knows it
                own_share, pair, check = shamir.drawn(), shamir.drawn(), bytes(CHECK_SIZE)
            else:
                own_share = roster.own_share(self._secrets[name], self._name, name)
                pair = roster.pair_secret(self._secrets[name], self._name, name)
                check = roster.check(pair, self._name, name)
            own_shares.append(own_share)
            pairs.append(pair)
            checks.append(check)
        (self._own,) = shamir.interpolated(dict(enumerate(own_shares[:threshold], start=1)), (0,))
        self._next = Step.MASK
        return Deal(
            tuple(shamir.corrections(own_shares, threshold)),
            tuple(shamir.corrections(pairs, threshold)),
            roster.own_commitment(self._own, self._name),
            b"".join(checks),
        )

    def mask(self, integers: npt.NDArray[np.int64], dealt: Collection[str]) -> Integers:
        """Step 2: this client's integers plus its own mask and the pairwise masks with every client that dealt.

        Args:
            integers: this client's contribution to the total.
            dealt: names of the clients that dealt; this one is among them.

        Raises:
            SecureSumError: out of order, too few clients dealt, or one that is not on the roster.
        """
        self._take(Step.MASK)
        roster = self._known_roster()
        self._dealt = frozenset(dealt)
        if len(self._dealt) < roster.threshold or self._name not in self._dealt or not self._dealt <= set(roster.names):
            raise SecureSumError(
                f"{len(self._dealt)} clients dealt; {roster.threshold} or more of the roster must, this client among them"
            )
        total: Integers = integers.astype(np.uint64)
        total += mask(roster.own_seed(self._own, self._name), len(integers))
        for name in self._dealt - {self._name}:
            shared = mask(roster.pair_seed(self._pair_secret(name), self._name, name), len(integers))
            if roster.sign(self._name, name) > 0:
                total += shared
            else:
                total -= shared
        self._next = Step.AGREE
        return total

    def agree(self, survivors: Collection[str]) -> dict[str, bytes]:
        """Step 3: for each other survivor a tag of both lists, of those who dealt and who survived, as told to this client.

        Raises:
            SecureSumError: out of order, too few survivors, survivors that did not deal, or this client is not among them.
        """
        self._take(Step.AGREE)
        roster, alive = self._known_roster(), frozenset(survivors)
        if len(alive) < roster.threshold or not alive <= self._dealt or self._name not in alive:
            raise SecureSumError(
                f"{len(alive)} survivors named; {roster.threshold} are needed, all of whom dealt, this client among them"
            )
        self._survivors = alive
        self._next = Step.REVEAL
        content = roster.agreement(self._dealt, alive)
        others = [name for name in roster.names if name in alive and name != self._name]
        return {name: roster.tag(self._secrets[name], content, self._name, name) for name in others}

    def reveal(self, tags: Mapping[str, bytes]) -> Revealed:
        """Step 4: this client's own secret, and of each lost client the secret of the mask that the two share.

        Only if the threshold of survivors, this client among them, was told the same lists. As each honest client confirms one
        pair of lists only, no other pair can reach the threshold, if ``2 * threshold > clients + colluders``.

        Args:
            tags: of other survivors, by name; those that do not verify are left out.

        Raises:
            SecureSumError: out of order, or too few confirmed the same lists.
        """
        self._take(Step.REVEAL)
        roster = self._known_roster()
        content = roster.agreement(self._dealt, self._survivors)
        agreeing = 1 + sum(self._confirms(name, tag, content) for name, tag in tags.items())
        if agreeing < roster.threshold:
            raise SecureSumError(
                f"{agreeing} survivors confirmed the lists that this client was told; {roster.threshold} are needed. Others "
                "were told another list, or their tags are wrong"
            )
        self._next = Step.SHARES
        lost = [name for name in roster.names if name in self._dealt - self._survivors]
        return Revealed(self._own, {name: self._pair_secret(name) for name in lost})

    def shares(self, owners: Collection[str]) -> dict[str, int]:
        """Step 5, if it is needed: shares of the own secrets of other survivors, which did not reveal them.

        Never of a lost client: the lists are those of the step before.

        Raises:
            SecureSumError: out of order, or an owner is not another survivor.
        """
        self._take(Step.SHARES)
        if not set(owners) <= self._survivors - {self._name}:
            raise SecureSumError("shares of others than the survivors are asked for")
        roster = self._known_roster()
        return {owner: roster.own_share(self._secrets[owner], owner, self._name) for owner in owners}

    def _confirms(self, name: str, tag: bytes, content: bytes) -> bool:
        if name == self._name or name not in self._survivors:
            return False
        return compare_digest(tag, self._known_roster().tag(self._secrets[name], content, name, self._name))

    def _pair_secret(self, name: str) -> int:
        return self._known_roster().pair_secret(self._secrets[name], self._name, name)

    def _take(self, step: Step) -> None:
        expected, self._next = self._next, Step.NOTHING  # until the step has succeeded
        is_second_deal = step is Step.DEAL and expected is Step.MASK and self._deals == 1
        if expected is not step and not is_second_deal:
            raise SecureSumError(
                f"a message of step {step.name.lower()} came, expected was {expected.name.lower()}: replayed or out of order"
            )

    def _known_roster(self) -> Roster:
        assert self._roster is not None
        return self._roster
