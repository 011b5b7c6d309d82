"""A client's side of one secure sum: five steps, in order, each once.

Bonawitz et al. 2017, figure 4, with the consistency round against a server that lies: before a client reveals a share it has
seen that the threshold of clients signed the same two lists, of those who dealt and of those who survived.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ifedicl.errors import ObjectionError, SecureSumError
from ifedicl.secagg import shamir
from ifedicl.secagg.keys import SEAL_SIZE, Identity, agreed, check_signature, derived, digest, seal, unseal
from ifedicl.secagg.masks import Integers, mask
from ifedicl.secagg.roster import Advert, Roster

SEALED_SIZE = 2 * shamir.SIZE + SEAL_SIZE
"""Bytes of the two sealed shares that a client sends to each other client."""


class Step(IntEnum):
    """The step that a party takes next."""

    ADVERTISE = 0
    DEAL = 1
    MASK = 2
    AGREE = 3
    REVEAL = 4
    NOTHING = 5


@dataclass(frozen=True)
class Deal:
    """What a client sends before any number.

    Attributes:
        sealed: by receiver: shares of its private mask key and of its own secret, sealed so that the server cannot read them.
        commitment: to its own secret.
    """

    sealed: Mapping[str, bytes]
    commitment: bytes


class Party:
    """One client in one sum. An error ends it: no step can be repeated with other numbers or other clients."""

    def __init__(self, name: str, identity: Identity, peers: Mapping[str, bytes], binding: bytes) -> None:
        """Draw fresh keys.

        Args:
            name: of this client.
            identity: signs the keys.
            peers: the signing keys of all clients that may take part, by name, as this client pins them.
            binding: digest of session, rules and request of this sum.
        """
        self._name = name
        self._identity = identity
        self._peers = peers
        self._binding = binding
        self._next = Step.ADVERTISE
        self._mask_key = _drawn_key()
        self._channel_key = X25519PrivateKey.generate()
        self._secret = shamir.drawn()
        self._roster: Roster | None = None
        self._held: dict[str, tuple[bytes, bytes]] = {}  # by owner: shares of its mask key and of its own secret
        self._survivors: frozenset[str] = frozenset()
        self._secrets: dict[str, tuple[bytes, bytes]] = {}  # by peer: what both mask keys, and both channel keys, agree on

    def advertise(self) -> Advert:
        """Step 1: this sum's public keys, signed."""
        self._take(Step.ADVERTISE)
        mask_key, channel_key = (key.public_key().public_bytes_raw() for key in (self._mask_key, self._channel_key))
        unsigned = Advert(mask_key, channel_key, b"")
        self._advert = replace(unsigned, signature=self._identity.sign(unsigned.content(self._binding, self._name)))
        self._next = Step.DEAL
        return self._advert

    def deal(self, adverts: Mapping[str, Advert], threshold: int) -> Deal:
        """Step 2: shares of both secrets, sealed for each other client.

        Raises:
            ObjectionError: the roster names clients that are not pinned, did not sign their keys, or have invalid ones.
            SecureSumError: out of order, or the roster does not hold this client's own keys.
        """
        self._take(Step.DEAL)
        if adverts.get(self._name) != self._advert:
            raise SecureSumError("the roster does not hold the keys that this client advertised")
        if bad := [name for name, advert in adverts.items() if name != self._name and not self._is_sound(name, advert)]:
            raise ObjectionError("their keys are not pinned here, not signed, or invalid", bad)
        if len({advert.mask_key for advert in adverts.values()}) < len(adverts):
            raise SecureSumError("the roster holds the same key for two clients")
        self._roster = roster = Roster(self._binding, adverts, threshold)
        pairs = zip(
            shamir.split(self._mask_key.private_bytes_raw(), threshold, len(adverts)),
            shamir.split(self._secret, threshold, len(adverts)),
            strict=True,
        )
        shares = dict(zip(roster.names, pairs, strict=True))
        self._held[self._name] = shares.pop(self._name)
        sealed = {name: seal(self._channel(self._name, name), b"".join(pair), roster.digest) for name, pair in shares.items()}
        self._next = Step.MASK
        return Deal(sealed, roster.commitment(self._secret, self._name))

    def mask(self, integers: npt.NDArray[np.int64], sealed: Mapping[str, bytes]) -> Integers:
        """Step 3: this client's integers plus its own mask and the pairwise masks with every client that dealt.

        Args:
            integers: this client's contribution to the total.
            sealed: the shares that the others dealt to it, by sender.

        Raises:
            ObjectionError: the seals of some clients do not open.
            SecureSumError: out of order, or too few clients dealt.
        """
        self._take(Step.MASK)
        roster = self._known_roster()
        if len(sealed) + 1 < roster.threshold or self._name in sealed or not set(sealed) <= set(roster.names):
            raise SecureSumError(f"{len(sealed)} other clients dealt shares; {roster.threshold - 1} or more of the roster must")
        bad = []
        for name, text in sealed.items():
            try:
                pair = unseal(self._channel(name, self._name), text, roster.digest)
            except SecureSumError:
                bad.append(name)
            else:
                self._held[name] = pair[: shamir.SIZE], pair[shamir.SIZE :]
        if bad:
            raise ObjectionError("the shares that they sealed do not open", bad)
        total: Integers = integers.astype(np.uint64) + mask(roster.own_seed(self._secret, self._name), len(integers))
        for name in sealed:
            shared = mask(roster.pair_seed(self._secrets[name][0], self._name, name), len(integers))
            total = total + shared if roster.sign(self._name, name) > 0 else total - shared
        self._next = Step.AGREE
        return total

    def agree(self, survivors: Collection[str]) -> bytes:
        """Step 4: sign the list of clients that dealt and the list of survivors, as this client was told them.

        Raises:
            SecureSumError: out of order, too few survivors, survivors that did not deal, or this client is not among them.
        """
        self._take(Step.AGREE)
        roster, alive = self._known_roster(), frozenset(survivors)
        if len(alive) < roster.threshold or not alive <= set(self._held) or self._name not in alive:
            raise SecureSumError(
                f"{len(alive)} survivors named; {roster.threshold} are needed, all of whom dealt, this client among them"
            )
        self._survivors = alive
        self._next = Step.REVEAL
        return self._identity.sign(roster.agreement(self._held, alive))

    def reveal(self, signatures: Mapping[str, bytes]) -> dict[str, bytes]:
        """Step 5, the last: one share of each client that dealt, of its own secret if it survived, else of its mask key.

        Never both of one client: the step is taken once. And only if the threshold of survivors signed the same lists as this
        client. As each honest client signs one pair of lists only, no other pair can have the threshold of signatures, if
        ``2 * threshold > clients + colluders``.

        Args:
            signatures: of survivors, by name; those that do not verify are left out.

        Raises:
            SecureSumError: out of order, or too few signed the same lists.
        """
        self._take(Step.REVEAL)
        roster = self._known_roster()
        content = roster.agreement(self._held, self._survivors)
        signers = {name for name in self._survivors & signatures.keys() if self._signed(name, signatures[name], content)}
        if len(signers) < roster.threshold:
            raise SecureSumError(
                f"{len(signers)} survivors signed the lists that this client was told; {roster.threshold} are needed. Others "
                "were told another list, or their signatures are wrong"
            )
        return {name: own if name in self._survivors else mask_key for name, (mask_key, own) in self._held.items()}

    def _is_sound(self, name: str, advert: Advert) -> bool:
        """Whether a peer is pinned, signed its keys, and both are keys."""
        try:
            self._secrets[name] = agreed(self._mask_key, advert.mask_key), agreed(self._channel_key, advert.channel_key)
        except SecureSumError:
            return False
        return self._signed(name, advert.signature, advert.content(self._binding, name))

    def _signed(self, name: str, signature: bytes, content: bytes) -> bool:
        try:
            check_signature(self._peers.get(name, b""), signature, content)
        except SecureSumError:
            return False
        return True

    def _take(self, step: Step) -> None:
        expected, self._next = self._next, Step.NOTHING  # until the step has succeeded
        if expected is not step:
            raise SecureSumError(
                f"a message of step {step.name.lower()} came, expected was {expected.name.lower()}: replayed or out of order"
            )

    def _known_roster(self) -> Roster:
        assert self._roster is not None
        return self._roster

    def _channel(self, sender: str, receiver: str) -> bytes:
        """The sealing key of one direction between this client and another."""
        _, secret = self._secrets[receiver if sender == self._name else sender]
        return derived(secret, self._known_roster().digest, digest(b"share", sender.encode(), receiver.encode()))


def _drawn_key() -> X25519PrivateKey:
    """A private key that is an element of Shamir's field, so that it can be shared."""
    return X25519PrivateKey.from_private_bytes(shamir.drawn())
