"""Labels as a scikit-learn caller has them (names, numbers or booleans), and the task's names that they stand for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.errors import InputError
from ifedicl.inputs import items_of
from ifedicl.kinds.classify import Task

_log = logging.getLogger(__name__)
_ALLOWED = "one label for each text: array-like (array or non-string sequence)"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Value: TypeAlias = str | bool | int | float


@dataclass(frozen=True)
class CallerLabels:
    """A caller's labels.

    Attributes:
        names: ``(N,)`` the task's name of each label.
        classes: ``(C,)`` the caller's value of each of the task's labels, sorted.
        sorted_names: ``(C,)`` the task's names in the order of ``classes``.
    """

    names: tuple[str, ...]
    classes: npt.NDArray[Any]
    sorted_names: tuple[str, ...]


def read_labels(given: object, task: Task) -> CallerLabels:
    """The task's labels that ``given`` stands for.

    Text is a label's name. Numbers and booleans stand for names that read like them: 1 for "1", True for "true", "True" or "1".
    If no name reads like a number, the integers 0 to C - 1 are positions in the sorted names, as ``LabelEncoder`` makes them
    and ``VotingClassifier`` and ``StackingClassifier`` pass them. Each of them must occur: otherwise the encoder may have
    counted fewer labels.

    Args:
        given: ``(N,)`` or ``(N, 1)`` labels of one kind.
        task: the labels that may occur.

    Raises:
        InputError: labels are missing, of several kinds, fractions, or not of the task.
    """
    if given is None:
        raise InputError(
            f"y: received None: requires y to be passed, but the target y is None; allowed: {_ALLOWED}. Give labels"
        )
    items = [_plain(item) for item in items_of(given, "y", _ALLOWED)]
    kind = _kind_of(items)
    values: Mapping[Any, str] = _values_of(kind, task)
    if len(values) < len(task.labels) or not values.keys() >= set(items):
        values = _positions(kind, items, task)
    order = sorted(values)
    names = tuple(values[item] for item in items)
    return CallerLabels(names, _array(order, given, kind), tuple(values[value] for value in order))


def _plain(item: object) -> object:
    """A numpy or pyarrow scalar as Python has it."""
    return item.item() if isinstance(item, np.generic) else item


def _kind_of(items: list[Any]) -> type:
    """The one type of all labels.

    Raises:
        InputError: there are none, or of several types.
    """
    kinds = {type(item) for item in items}
    for number, item in enumerate(items, start=1):
        if _is_missing(item):
            raise InputError(f"y: received NaN or None as number {number}; allowed: {_ALLOWED}. Fill it, or leave the row out")
    if len(kinds) != 1 or not issubclass(kind := kinds.pop(), str | bool | int | float):
        shown = ", ".join(sorted(item.__name__ for item in {type(item) for item in items})) or "no labels"
        raise InputError(f"y: received {shown}; allowed: text, integers or booleans, of one type. Convert them")
    if kind is float and any(not item.is_integer() for item in items):
        raise InputError(
            "y: Unknown label type: continuous: received fractions; allowed: text, integers or booleans. Give the labels' names"
        )
    return kind


def _is_missing(item: Any) -> bool:
    """Whether ``item`` stands for no value, in any library: None, NaN, NaT, NA."""
    if item is None or isinstance(item, str | int):
        return item is None
    try:
        return bool(item != item)
    except TypeError:  # nor does pandas' NA say whether it is
        return True
    except (ValueError, RuntimeError):  # an array or tensor of several
        return False


def _values_of(kind: type, task: Task) -> dict[Any, str]:
    """The caller's value of each label whose name reads like one."""
    values: dict[Any, str] = {}
    for name in task.labels:
        if issubclass(kind, str):
            values[name] = name
        elif kind is bool and name.lower() in _BOOLEANS:
            values[_BOOLEANS[name.lower()]] = name
        elif kind in (int, float) and _is_number(name):
            values[kind(name)] = name
    return values


def _is_number(name: str) -> bool:
    digits = name.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(digits)) == digits and name != "-0"


def _positions(kind: type, items: list[Any], task: Task) -> Mapping[Any, str]:
    """The labels in the order in which an encoder counts them.

    Raises:
        InputError: ``items`` are not all these positions, or the order is not known.
    """
    names, numbers = sorted(task.labels), _values_of(int, task)
    if kind is int and set(items) == set(range(len(names))):
        by_number = [numbers[number] for number in sorted(numbers)]
        if numbers and by_number != names:
            raise InputError(
                f"y: received 0 to {len(names) - 1}; allowed: {', '.join(map(repr, task.labels))}. If VotingClassifier or "
                "StackingClassifier counted the labels, the order is not known, because sorted as numbers and as text they have"
                " different orders: use the classifier alone, or a task with other label names"
            )
        if tuple(names) != task.labels:
            _log.warning(
                "y: integers are positions in the sorted labels, %s; give names for another order", dict(enumerate(names))
            )
        return dict(enumerate(names))
    values = _values_of(kind, task)
    strange = next((item for item in items if item not in values), None)
    if strange is None:
        others = ", ".join(repr(name) for name in task.labels if name not in values.values())
        raise InputError(
            f"y: received {kind.__name__}, and the task's labels {others} do not read like that; allowed: the labels' names as "
            "text. Convert y to text"
        )
    remedy = "Convert y to the labels' names"
    if kind is int:
        remedy += f", or give every position from 0 to {len(names) - 1} in the sorted names, as LabelEncoder does"
    raise InputError(f"y: {task.unknown(str(strange))}. {remedy}")


def _array(values: list[Any], given: object, kind: type) -> npt.NDArray[Any]:
    """``values`` in the dtype of ``given`` if that can hold them.

    An array of objects stays one for text only, because scikit-learn refuses other labels in one.
    """
    dtype = getattr(given, "dtype", None)
    is_kept = isinstance(dtype, np.dtype) and (dtype.kind in "biuf" or (dtype.kind == "O" and issubclass(kind, str)))
    try:
        return np.array(values, dtype=dtype if is_kept else None)
    except OverflowError:  # another of the task's labels is too large
        return np.array(values)
