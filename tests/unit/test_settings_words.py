"""Faults of files are in the words of people who write files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ifedicl.errors import ConfigError
from ifedicl.owner.policy import ClientSettings
from ifedicl.settings import RunSettings, validated
from ifedicl.settings.validation import section_in

_JARGON = ("Input should", "should have", "should match", "valid ", "Value error", "type=", "instance of", "unable to")


def _sections(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a file, through its sections."""
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        if inner is None:
            yield (*path, name)
        else:
            yield from _sections(inner, (*path, name))


@pytest.mark.parametrize("value", [-1, 10**9, 0.5, math.nan, "", "x", "y" * 3000, True, [], ["a"], [1], {}, {"a": 1}, None])
def test_no_fault_speaks_the_language_of_the_library_that_finds_it(value: object) -> None:
    for model in (RunSettings, ClientSettings):
        for path in _sections(model):
            values: dict[str, Any] = {path[-1]: value}
            for name in reversed(path[:-1]):
                values = {name: values}
            with contextlib.suppress(ConfigError):
                validated(model, values, "t")
                continue
            with pytest.raises(ConfigError) as caught:
                validated(model, values, "t")
            assert [word for word in _JARGON if word in str(caught.value)] == [], (path, str(caught.value))
