"""What grows with clients and rounds in a checkpoint: rows of numbers, with every name written once.

A run of 1,000 clients has tens of thousands of exchanges. Columns take fewer bytes than JSON, and only the rows that came since
the last checkpoint are converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ifedicl.federation.messages import Arrays
from ifedicl.federation.state import RoundRecord, State, Traffic
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Tally

T = TypeVar("T")
Rows = npt.NDArray[np.void]

_TRAFFIC = np.dtype(
    [
        ("client", "<i4"),
        ("step", "<i4"),
        ("round", "<i4"),
        ("bytes_down", "<i8"),
        ("bytes_up", "<i8"),
        ("seconds", "<f8"),
        ("failure", "<i4"),
        ("carrier_bytes", "<i8"),
    ]
)
_CLIENTS = np.dtype([("round", "<i4"), ("client", "<i4")])
_TALLIES = np.dtype([("round", "<i4"), ("client", "<i4"), ("examples", "<i8"), ("correct", "<i8"), ("loss_sum", "<f8")])
_HEADS = np.dtype([("client", "<i4"), ("entries", "<i8"), ("digest", "u1", (32,))])
_NONE = -1
"""The number of no word."""


class Words:
    """A number for each client, step and code, in the order in which they come."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        """Begin with ``words``, numbered from 0."""
        self._numbers = {word: number for number, word in enumerate(words)}

    def number(self, word: str | None) -> int:
        """The number of a word; a new one if it is new."""
        return _NONE if word is None else self._numbers.setdefault(word, len(self._numbers))

    @property
    def listed(self) -> list[str]:
        """All words, by number."""
        return list(self._numbers)


class _Grown(Generic[T]):
    """The rows of a sequence to which items are only added: each item is converted once."""

    def __init__(self, dtype: np.dtype[np.void], rows_of: Callable[[T], Iterator[tuple[Any, ...]]]) -> None:
        self._rows_of = rows_of
        self._rows: Rows = np.empty(0, dtype)
        self._items: Sequence[T] = ()

    def rows(self, items: Sequence[T]) -> Rows:
        """All rows of ``items``."""
        known = len(self._items)
        if known > len(items) or (known and self._items[-1] is not items[known - 1]):  # another run's, or an earlier state
            known = 0
        added = np.array([row for item in items[known:] for row in self._rows_of(item)], dtype=self._rows.dtype)
        self._rows = np.concatenate([self._rows, added]) if known else added
        self._items = items
        return self._rows


class Tables:
    """Converts the states of one run, one after another."""

    def __init__(self) -> None:
        self._words = Words()
        self._traffic = _Grown(_TRAFFIC, self._traffic_row)
        self._clients = _Grown(_CLIENTS, self._client_rows)
        self._tallies = _Grown(_TALLIES, self._tally_rows)

    def of(self, state: State) -> tuple[list[str], Arrays]:
        """The words, and the arrays of ``state.traffic``, ``history`` and ``heads``."""
        number = self._words.number
        heads = [(number(name), head.entries, list(bytes.fromhex(head.digest))) for name, head in state.heads.items()]
        tables = {
            "traffic": self._traffic.rows(state.traffic),
            "clients": self._clients.rows(state.history),
            "tallies": self._tallies.rows(state.history),
            "heads": np.array(heads, dtype=_HEADS),
        }
        arrays = {f"{table}.{field}": rows[field] for table, rows in tables.items() for field in rows.dtype.names or ()}
        return self._words.listed, arrays

    def _traffic_row(self, item: Traffic) -> Iterator[tuple[Any, ...]]:
        number = self._words.number
        sizes = item.bytes_down, item.bytes_up, item.seconds
        yield number(item.client), number(item.step), item.round, *sizes, number(item.failure), item.carrier_bytes

    def _client_rows(self, record: RoundRecord) -> Iterator[tuple[Any, ...]]:
        return ((record.round, self._words.number(name)) for name in record.clients)

    def _tally_rows(self, record: RoundRecord) -> Iterator[tuple[Any, ...]]:
        for name, tally in record.by_client.items():
            yield record.round, self._words.number(name), tally.examples, tally.correct, tally.loss_sum


class StoredTables:
    """Reads the arrays of :meth:`Tables.of`."""

    def __init__(self, words: Sequence[str], arrays: Arrays) -> None:
        """Take the words and all arrays of a checkpoint."""
        self._words = dict(enumerate(words))
        self._arrays = arrays

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """Every exchange."""
        word = self._words
        return tuple(
            Traffic(word[client], word[step], at, down, up, seconds, word.get(failure), carrier)
            for client, step, at, down, up, seconds, failure, carrier in self._rows("traffic", _TRAFFIC)
        )

    @property
    def heads(self) -> dict[str, Head]:
        """The head of each client's ledger."""
        return {
            self._words[client]: Head(entries, bytes(digest).hex()) for client, entries, digest in self._rows("heads", _HEADS)
        }

    def history(self, losses: Sequence[tuple[int, float | None]]) -> tuple[RoundRecord, ...]:
        """One record a round; ``losses`` has each round's number and training loss."""
        clients: dict[int, list[str]] = {at: [] for at, _ in losses}
        by_client: dict[int, dict[str, Tally]] = {at: {} for at, _ in losses}
        for at, client in self._rows("clients", _CLIENTS):
            clients[at].append(self._words[client])
        for at, client, *tally in self._rows("tallies", _TALLIES):
            by_client[at][self._words[client]] = Tally(*tally)
        return tuple(RoundRecord(at, tuple(clients[at]), loss, by_client[at]) for at, loss in losses)

    def _rows(self, table: str, dtype: np.dtype[np.void]) -> Iterator[tuple[Any, ...]]:
        columns: Mapping[str, Any] = {field: self._arrays[f"{table}.{field}"].tolist() for field in dtype.names or ()}
        return zip(*columns.values(), strict=True)
