"""Settings as an adapter of an earlier version states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ifedicl.settings.method import Method
from ifedicl.settings.validation import section_in, validated


def method_of(provenance: Mapping[str, Any]) -> Method:
    """The method that an adapter's provenance states.

    Settings that no longer exist are left out: the numbers that they decided are in the adapter.

    Raises:
        KeyError: it states none.
        ConfigError: the settings are wrong.
    """
    return validated(Method, _known(Method, provenance["method"]), "provenance")


def _known(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    known = {}
    for name in values.keys() & section.model_fields.keys():
        value, inner = values[name], section_in(section.model_fields[name].annotation)
        known[name] = _known(inner, value) if inner is not None and isinstance(value, Mapping) else value
    return known
