"""What a client of secure sums remembers: the job that it holds, the sum that is under way, and what it adds to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ifedicl.core.vectors import Array64
from ifedicl.errors import SecureSumError
from ifedicl.federation import messages
from ifedicl.federation.secure.quantised import Form
from ifedicl.secagg.channels import Channels, Introduction
from ifedicl.secagg.party import Party
from ifedicl.settings import CalibrationSettings, PrivacySettings


@dataclass
class Summand:
    """What this client adds to a sum. It is kept for one more try, until its masked numbers have left.

    Attributes:
        asked: the bytes of the request and the sealed cursor that it answers.
        kind: of the request.
        numbers: to add.
        form: of the numbers.
        layout: of the numbers.
        cursor: of a vectors reply, sealed; else empty.
        is_sent: whether its masked numbers have left. The server may have a total with them then, whatever the client sees.
        tries: sums that it was in.
    """

    asked: tuple[bytes, str]
    kind: str
    numbers: Array64
    form: Form
    layout: messages.Layout
    cursor: str
    is_sent: bool = False
    tries: int = 0


@dataclass
class HeldJob:
    """The job that this client holds.

    Attributes:
        rules: of its sums.
        calibration: says how far an update can go; None: noise is added to the numbers as they are.
        channels: this client's secrets with its peers.
        members: name and channel key of each client that was introduced, by the server's number.
    """

    rules: PrivacySettings
    calibration: CalibrationSettings | None
    channels: Channels
    members: dict[int, tuple[str, bytes]] = field(default_factory=dict)

    def meet(self, introductions: Iterable[tuple[int, str, bytes, bytes]]) -> None:
        """Take note of clients; wrong keys are found when they are on a roster."""
        for number, name, key, signature in introductions:
            self.members[number] = name, key
            self.channels.meet(Introduction(name, key, signature))

    def keys(self, roster: tuple[int, ...]) -> dict[str, bytes]:
        """Channel keys by name, in the order of the roster.

        Raises:
            SecureSumError: a number of no client, or of the same client twice.
        """
        if unknown := [number for number in roster if number not in self.members]:
            raise SecureSumError(f"roster: client {unknown[0]} was not introduced")
        keys = dict(self.members[number] for number in roster)
        if len(keys) < len(roster):
            raise SecureSumError("roster: a client is on it twice")
        return keys


@dataclass
class Session:
    """The sum that this client takes part in now."""

    name: bytes
    party: Party
    summand: Summand
    rules: PrivacySettings
    roster: tuple[str, ...] = ()
