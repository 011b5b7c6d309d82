"""Checks texts and numbers that a Python caller passes: a value of another kind is an error, not a strange answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from numbers import Integral, Real
from typing import Any

import numpy as np

from ifedicl.errors import InputError

_ALLOWED = "a list, an array or one column of strings"


def texts_of(given: object, field: str) -> list[str]:
    """The texts in a list, an array, a series, or a data frame of one column.

    Args:
        given: ``(N,)`` or ``(N, 1)`` strings. A data frame of any library is known by its columns.
        field: the argument's name, for the error.

    Raises:
        InputError: it is a single string, has several columns, or holds something else than strings.
    """
    texts = items_of(given, field, _ALLOWED)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(
                f"{field}: received {described(text)} as number {number}; allowed: {_ALLOWED}. Convert it, or leave it out"
            )
    return texts


def items_of(given: object, field: str, allowed: str) -> list[Any]:
    """The items of a list, an array, a series, or a data frame of one column.

    Raises:
        InputError: it is a single string or number, a mapping, a set, or has several columns.
    """
    if isinstance(given, str | bytes):
        raise InputError(f"{field}: received a single string; allowed: {allowed}. Put it in a list: [{field}]")
    column = _only_column(given, field)
    if not isinstance(column, Iterable) and hasattr(column, "__array__"):
        column = np.asarray(column)
    if isinstance(column, Mapping | Set) or not isinstance(column, Iterable):
        raise InputError(f"{field}: received {described(column)}; allowed: {allowed}. Put the values in a list, in order")
    shape = getattr(column, "shape", (0,))
    if not isinstance(shape, tuple) or not shape or shape[1:] not in ((), (1,)):
        raise InputError(
            f"{field}: received an array of shape {shape}; allowed: {allowed}. Choose one column, as in {field}[:, 0]"
        )
    flat = column.ravel() if shape[1:] and hasattr(column, "ravel") else column
    return list(flat.to_pylist() if hasattr(flat, "to_pylist") else flat)


def _only_column(given: object, field: str) -> object:
    """The column of a data frame; anything else is returned as it is."""
    if isinstance(given, Mapping) or not hasattr(given, "shape"):
        return given
    names = getattr(given, "column_names", None) or getattr(given, "columns", None)
    if names is None:
        return given
    named = [str(name) for name in names]
    if len(named) != 1:
        raise InputError(
            f"{field}: received a table with the columns {', '.join(map(repr, named))}; allowed: one column. Choose it, as in "
            f"{field}[{named[0] if named else 'NAME'!r}]"
        )
    column: object = given[names[0]]  # type: ignore[index]
    return column


def whole_number(given: object, field: str, *, least: int, remedy: str) -> int:
    """A whole number that is at least ``least``.

    Raises:
        InputError: it is another kind of value, or smaller.
    """
    if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
        raise InputError(f"{field}: received {given!r}; allowed: a whole number, {least} or more. {remedy}")
    return int(given)


def fraction(given: object, field: str, *, remedy: str) -> float:
    """A number in (0, 1).

    Raises:
        InputError: it is another kind of value, or outside.
    """
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 < float(given) < 1:
        raise InputError(f"{field}: received {given!r}; allowed: a number between 0 and 1. {remedy}")
    return float(given)


def probability(given: object, field: str, *, remedy: str) -> float:
    """A number in [0, 1].

    Raises:
        InputError: it is another kind of value, or outside.
    """
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) <= 1:
        raise InputError(f"{field}: received {given!r}; allowed: a number from 0 to 1. {remedy}")
    return float(given)


def described(value: object) -> str:
    """The kind of a value, with its article and without its content."""
    name = type(value).__name__
    return "nothing (None)" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
