"""What a server may be asked at once, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        texts: in one request.
        characters: of one text; what the model's window does not hold of it is cut.
        body_bytes: of one request.
        waiting: texts that may wait or be under way, of all requests; more are answered 429. One that the raw model is asked
            about too counts twice.
        seconds: until a request that was not answered is given up, 503.
        arrival_seconds: for a request to arrive, first its head, then its body; 408.
        connections: open at once; more are answered 503.
        stop_seconds: for requests under way when the server stops.
        refresh_seconds: between two looks at folders, store and keys.
    """

    texts: int = 256
    characters: int = 32_768
    body_bytes: int = 1 << 20
    waiting: int = 512
    seconds: float = 30.0
    arrival_seconds: float = 10.0
    connections: int = 2_048
    stop_seconds: int = 30
    refresh_seconds: float = 5.0

    def texts_of(self, asked: int) -> int:
        """Texts that one request may hold: more would not fit into an idle server, and be told to come again for ever.

        Args:
            asked: how many are asked about each text: 1, or 2 with the raw model.
        """
        return min(self.texts, self.waiting // asked)
