"""Choices: texts with options of their own, how a file's rows have them, and figures of what is chosen."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ifedicl.confidence import Confidence
from ifedicl.errors import DataError, InputError
from ifedicl.inputs import described
from ifedicl.kinds.examples import HitsEvaluation, check_strings
from ifedicl.kinds.row_cells import check_filled, check_text, text_in, texts_in
from ifedicl.rows import kind_of

LETTERS = string.ascii_uppercase
MOST_OPTIONS = len(LETTERS)
OPTIONS_COLUMN = "options"
OPTION_COLUMNS = tuple(f"option_{letter}" for letter in string.ascii_lowercase)


@dataclass(frozen=True)
class Choice:
    """A text with its own options.

    Attributes:
        text: the question, with what it is about.
        options: 2 to 26.
        which: the position of the right one; 0 where nobody knows it.

    Raises:
        InputError: a field is of another type or out of its range.
    """

    text: str
    options: tuple[str, ...]
    which: int = 0

    def __post_init__(self) -> None:
        check_strings("a choice", [("text", self.text), *(("an option", option) for option in self.options)])
        if fault := _fault_of(self.options):
            raise InputError(f"options of a choice: {fault}")
        if not isinstance(self.which, int) or isinstance(self.which, bool) or not 0 <= self.which < len(self.options):
            raise InputError(
                f"which: received {described(self.which)} with {len(self.options)} options; allowed: a position from 0"
            )

    @property
    def key(self) -> str:
        """Hex SHA-256 of text, options and answer."""
        return hashlib.sha256("\x1f".join((str(self.which), self.text, *self.options)).encode()).hexdigest()

    @property
    def stratum(self) -> str:
        """How many options it has: the position of the right one says nothing."""
        return f"{len(self.options)} options"


@dataclass(frozen=True)
class Options:
    """An example's options in tokens, and the position of the right one."""

    words: tuple[tuple[int, ...], ...]
    which: int
    group: int


@dataclass(frozen=True)
class ChoiceEvaluation(HitsEvaluation):
    """Chosen options against the right ones.

    Attributes:
        truth: ``(N,)`` positions.
        predicted: ``(N,)`` positions.
        counts: ``(N,)`` how many options each example has.
        loss: mean ``-log P(option)`` among an example's options, in nats.
        confidence: how sure the answers are, beside how often they are right.
    """

    labels: ClassVar[tuple[str, ...]] = ()  # each example has other answers
    by_label: ClassVar[Sequence[tuple[int, int]]] = ()
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    loss: float
    confidence: Confidence

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the right option is chosen, else 0."""
        hits: npt.NDArray[np.float64] = (self.truth == self.predicted).astype(np.float64)
        return hits

    @property
    def figures(self) -> dict[str, float]:
        """The accuracy of a random choice."""
        return {"by chance": float((1 / self.counts).mean())}

    def summary(self) -> dict[str, Any]:
        """All figures as JSON."""
        return {
            "examples": self.examples,
            "accuracy": self.accuracy,
            "interval": self.interval,
            "by_chance": self.figures["by chance"],
            "loss": self.loss,
            **self.confidence.summary(),
        }


def question_in(row: Mapping[str, Any], text: str) -> Choice:
    """Text and options of a row.

    Raises:
        DataError: as :meth:`AnyTask.example_of`.
    """
    (shown,) = texts_in(row, (text,))
    options = _options_in(row)
    if fault := _fault_of(options):
        raise DataError(f"options: {fault}")
    return Choice(text_in(shown), options)


def _options_in(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of a row: a list in one column, as such or as JSON, or one column each.

    Raises:
        DataError: neither is there, or it is something else.
    """
    cell = row.get(OPTIONS_COLUMN)
    if cell is None:
        named = [row[column] for column in OPTION_COLUMNS if row.get(column) not in (None, "")]
        if not named:
            raise DataError(
                f"no column {OPTIONS_COLUMN!r} with a list, and none from {OPTION_COLUMNS[0]!r} on; allowed: one of both"
            )
        for column in OPTION_COLUMNS:
            if row.get(column) not in (None, ""):
                check_text(row[column], column)
        return tuple(map(str, named))
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise DataError(
                f'column {OPTIONS_COLUMN!r}: received text that is no JSON list; write it as ["one", "two"]'
            ) from None
    if not isinstance(cell, list):
        raise DataError(f"column {OPTIONS_COLUMN!r}: received {kind_of(cell)}; allowed: a list of texts")
    for option in cell:
        check_text(option, OPTIONS_COLUMN)
    return tuple(map(str, cell))


def position_in(row: Mapping[str, Any], label: str, options: Sequence[str]) -> int:
    """The position of the right option: its number from 0, its letter, or the option itself."""
    check_filled(row, label)
    check_text(row[label], label)
    given = str(row[label]).strip()
    if given in options:
        return list(options).index(given)
    number = given.removesuffix(".0")  # tables with gaps write whole numbers so
    if number.isdecimal() and int(number) < len(options):
        return int(number)
    if len(given) == 1 and given.upper() in LETTERS[: len(options)]:
        return LETTERS.index(given.upper())
    raise DataError(
        f"column {label!r}: received {given[:20]!r}; allowed: a number from 0 to {len(options) - 1}, a letter from A to "
        f"{LETTERS[len(options) - 1]}, or one of the row's options"
    )


def _fault_of(options: Sequence[str]) -> str | None:
    """What is wrong with the options of an example; None: nothing."""
    if not 2 <= len(options) <= MOST_OPTIONS:
        return f"received {len(options)}; allowed: 2 to {MOST_OPTIONS} for each text"
    if not all(option.strip() for option in options):
        return "received an empty one; allowed: at least one character in each"
    return None
