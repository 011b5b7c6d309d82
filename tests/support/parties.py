"""Parties of secure sums, without a federation around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from secrets import token_bytes

import numpy as np
import numpy.typing as npt

from ifedicl.secagg.channels import Channels
from ifedicl.secagg.collector import Collector
from ifedicl.secagg.keys import Identity
from ifedicl.secagg.masks import Integers
from ifedicl.secagg.party import Party, Revealed
from ifedicl.secagg.roster import Deal, Roster


@dataclass
class Session:
    """One sum among parties, step by step, with all that crosses; a test may bend it on its way."""

    count: int
    threshold: int
    binding: bytes = field(default_factory=lambda: token_bytes(32))
    channels: dict[str, Channels] = field(default_factory=dict)
    parties: dict[str, Party] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    deals: dict[str, Deal] = field(default_factory=dict)
    masked: dict[str, Integers] = field(default_factory=dict)
    tags: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)
    bent: dict[str, dict[str, int]] = field(default_factory=dict)
    """By holder and owner: what is revealed in place of a share of the owner's own secret."""

    def __post_init__(self) -> None:
        self.channels = self.channels or met(self.count)
        self.keys = {name: own.introduction.key for name, own in self.channels.items()}
        self.parties = {name: Party(own, self.binding) for name, own in self.channels.items()}

    @property
    def roster(self) -> Roster:
        """The clients of this sum."""
        return Roster(self.binding, self.keys, self.threshold)

    def deal(self, *, without: frozenset[str] = frozenset()) -> None:
        """The first step; some clients' deals do not arrive."""
        dealt = {name: party.deal(self.keys, self.threshold) for name, party in self.parties.items()}
        self.deals = {name: deal for name, deal in dealt.items() if name not in without}

    def mask(self, numbers: Mapping[str, npt.NDArray[np.int64]], *, without: frozenset[str] = frozenset()) -> None:
        """The step that sends numbers, of those who dealt; some do not arrive."""
        sent = {name: self.parties[name].mask(numbers[name], self.deals) for name in self.deals}
        self.masked = {name: integers for name, integers in sent.items() if name not in without}

    def agree(self, *, without: frozenset[str] = frozenset()) -> None:
        """The step that confirms the lists; some clients' tags do not arrive."""
        self.tags = {name: self.parties[name].agree(self.masked) for name in self.masked if name not in without}

    def tags_for(self, name: str) -> dict[str, bytes]:
        """The others' tags for one client."""
        return {sender: tags[name] for sender, tags in self.tags.items() if name in tags}

    def reveal(self, *, without: frozenset[str] = frozenset()) -> None:
        """The step that shows secrets, and the one before it if it was not taken."""
        if not self.tags:
            self.agree()
        signers = [name for name in self.tags if name not in without]
        self.revealed = {name: self.parties[name].reveal(self.tags_for(name)) for name in signers}

    def total(self) -> Integers:
        """What the server makes of it; it asks for shares of own secrets that were not revealed."""
        collector = Collector(self.roster, self.deals, self.masked)
        missing = collector.unopened(self.revealed)
        shares = {
            name: self.parties[name].shares([owner for owner in missing if owner != name]) | self.bent.get(name, {})
            for name in self.revealed
            if missing
        }
        return collector.unmasked(self.masked, self.revealed, shares)


@cache
def met(count: int, job: str = "job") -> dict[str, Channels]:
    """The channels of clients that pinned each other and were introduced."""
    names = [f"c{number}" for number in range(count)]
    identities = {name: Identity(name.encode()) for name in names}
    pins = {name: identity.public for name, identity in identities.items()}
    channels = {name: Channels(name, identities[name], pins, job) for name in names}
    for own in channels.values():
        for other in channels.values():
            own.meet(other.introduction)
    return channels


def drawn(session: Session, size: int = 6, seed: int = 0) -> dict[str, npt.NDArray[np.int64]]:
    """Numbers of each client."""
    draw = np.random.default_rng(seed)
    return {name: draw.integers(-(2**30), 2**30, size) for name in session.parties}


# A server that may lie


NUMBERS = np.arange(5, dtype=np.int64) * 7 - 3
VICTIM = "c0"


def names_of(count: int) -> list[str]:
    """Names of clients; the victim is among them."""
    return [f"c{number}" for number in range(count)]


@dataclass
class Masked:
    """Parties that have sent masked numbers, and what the server has."""

    parties: dict[str, Party]
    channels: dict[str, Channels]
    roster: Roster
    deals: dict[str, Deal]
    masked: dict[str, Integers]

    def agree(self, lists: Mapping[str, Collection[str]]) -> dict[str, dict[str, bytes]]:
        """Tags by sender and receiver, where each is told its own list of survivors."""
        return {name: self.parties[name].agree(alive) for name, alive in lists.items()}

    def forged(self, content: bytes, sender: str) -> dict[str, bytes]:
        """A colluder's tags of any lists."""
        return {
            name: self.roster.tag(self.secret(sender, name), content, sender, name) for name in self.parties if name != sender
        }

    def secret(self, one: str, other: str) -> bytes:
        """What two clients share in this job."""
        secret = self.channels[one].secret(other, self.roster.keys[other])
        assert secret is not None
        return secret


def masked_parties(count: int, threshold: int, dealt: Mapping[str, list[str]]) -> Masked:
    """Each party is told its own list of dealers."""
    channels, binding = met.__wrapped__(count), token_bytes(32)
    keys = {name: own.introduction.key for name, own in channels.items()}
    parties = {name: Party(own, binding) for name, own in channels.items()}
    deals = {name: party.deal(keys, threshold) for name, party in parties.items()}
    masked = {
        name: party.mask(NUMBERS * (number + 1), dealt.get(name, list(parties)))
        for number, (name, party) in enumerate(parties.items())
    }
    return Masked(parties, channels, Roster(binding, keys, threshold), deals, masked)


def to(name: str, tags: Mapping[str, Mapping[str, bytes]]) -> dict[str, bytes]:
    """The tags for one client."""
    return {sender: own[name] for sender, own in tags.items() if name in own}
