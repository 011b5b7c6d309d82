"""Bounds of one server: sizes, queue and times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        texts: in one request, counted by :meth:`AnyTask.work_of`.
        characters: of one text or option. A text longer than the model's window is cut at its end.
        body_bytes: of one request.
        waiting: texts of all requests that are queued or in work, counted in the same way; more get status 429. With
            ``zero_shot`` a text counts twice.
        seconds: until a request without an answer is given up, status 503.
        arrival_seconds: for a request to arrive, first its head, then its body; status 408.
        connections: open at once; more get status 503.
        per_address: connections of one address (of IPv6: one network of 64 bits); more are closed, so that nobody takes all.
        held_bytes: of the bodies of all requests that arrive or are answered; more get status 503.
        stop_seconds: for requests in work when the server stops.
        refresh_seconds: between two reads of folders, store and keys.
    """

    texts: int = 256
    characters: int = 32_768
    body_bytes: int = 1 << 20
    waiting: int = 512
    seconds: float = 30.0
    arrival_seconds: float = 10.0
    connections: int = 2_048
    per_address: int = 512
    held_bytes: int = 64 << 20
    stop_seconds: int = 30
    refresh_seconds: float = 5.0

    def texts_of(self, models: int) -> int:
        """Texts that one request may hold, so that it fits into an idle server. ``models``: 1, or 2 with the raw model."""
        return min(self.texts, self.waiting // models)
