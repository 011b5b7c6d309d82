"""The server's list of channel keys: who has which, and who was told of it. Each key crosses once to each client of a job."""

from __future__ import annotations

from collections.abc import Collection

from ifedicl.secagg.keys import KEY_SIZE, SIGNATURE_SIZE

CHANNEL_SIZE = KEY_SIZE + SIGNATURE_SIZE
"""Bytes in which a client introduces itself."""


class ChannelBook:
    """Keys and signatures of the clients that hold the job, under running numbers."""

    def __init__(self) -> None:
        """Begin without any."""
        self._next = 0
        self._entries: dict[str, tuple[int, bytes, bytes]] = {}  # by name: number, key, signature
        self._told: dict[str, set[int]] = {}

    def forget(self, names: Collection[str]) -> None:
        """These clients take the job, perhaps again: they make new keys, and know of no others."""
        for name in names:
            self._entries.pop(name, None)
            self._told.pop(name, None)

    def lacks(self, name: str) -> bool:
        """Whether this client must introduce itself."""
        return name not in self._entries

    def enter(self, name: str, channel: bytes) -> None:
        """Note what a client says of itself."""
        self._entries[name] = self._next, channel[:KEY_SIZE], channel[KEY_SIZE:]
        self._told[name] = set()
        self._next += 1

    def keys(self, names: Collection[str]) -> dict[str, bytes]:
        """The channel keys of these clients, in the order in which rosters have them."""
        numbers = {self._entries[name][0]: name for name in names}
        return {numbers[number]: self._entries[numbers[number]][1] for number in sorted(numbers)}

    def numbers(self, names: Collection[str]) -> tuple[int, ...]:
        """A roster of these clients."""
        return tuple(sorted(self._entries[name][0] for name in names))

    def untold(self, name: str, roster: Collection[str]) -> tuple[tuple[int, str, bytes, bytes], ...]:
        """The clients of a roster that this client was not told of, itself among them: the content of introductions."""
        told = self._told[name]
        found = [(number, other, key, signature) for other in roster for number, key, signature in (self._entries[other],)]
        return tuple(sorted(entry for entry in found if entry[0] not in told))

    def told(self, replied: Collection[str], roster: Collection[str]) -> None:
        """These clients answered a request with the introductions of this roster."""
        numbers = self.numbers(roster)
        for name in replied:
            self._told[name].update(numbers)

    def can_deal_at_once(self, names: Collection[str]) -> bool:
        """Whether all of these clients were told of each other."""
        if any(self.lacks(name) for name in names):
            return False
        numbers = set(self.numbers(names))
        return all(numbers <= self._told[name] for name in names)
