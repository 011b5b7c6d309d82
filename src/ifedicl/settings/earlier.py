"""Settings as an adapter of an earlier version states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ifedicl.settings.method import Method
from ifedicl.settings.validation import section_in, validated

_RENAMED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("vectors", "weighting"): ("weighting",),
    ("robust", "updates"): ("robust", "rule"),
    ("privacy", "min_clients"): ("privacy", "min_survivors"),
    ("privacy", "drop_out"): ("privacy", "dropout"),
}
"""Settings of earlier versions that have another name now, with their sections."""


def method_of(provenance: Mapping[str, Any]) -> Method:
    """The method that an adapter's provenance states.

    Settings that have another name now are read under it. Settings that no longer exist are left out: the numbers that they
    decided are in the adapter.

    Raises:
        KeyError: it states none.
        ConfigError: the settings are wrong.
    """
    return validated(Method, _known(Method, _renamed(provenance["method"])), "provenance")


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for (section, name), path in _RENAMED.items():
        own = result.get(section)
        if isinstance(own, dict) and name in own:
            place = result.setdefault(path[0], {}) if len(path) > 1 else result
            place.setdefault(path[-1], own[name])
    return result


def _known(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    known = {}
    for name in values.keys() & section.model_fields.keys():
        value, inner = values[name], section_in(section.model_fields[name].annotation)
        known[name] = _known(inner, value) if inner is not None and isinstance(value, Mapping) else value
    return known
