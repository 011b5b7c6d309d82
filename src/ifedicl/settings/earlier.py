"""Reads the settings that an adapter of an earlier version states."""

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
"""Settings of earlier versions, and their present paths."""


def method_of(provenance: Mapping[str, Any]) -> Method:
    """The method that an adapter's provenance states.

    Renamed settings are read under their present names. Removed settings are left out: the adapter has the numbers that they
    decided.

    Raises:
        KeyError: it states no method.
        ConfigError: the settings are wrong.
    """
    return validated(Method, _known(Method, _renamed(provenance["method"])), "provenance")


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for (section, name), path in _RENAMED.items():
        earlier = result.get(section)
        if isinstance(earlier, dict) and name in earlier:
            target = result.setdefault(path[0], {}) if len(path) > 1 else result
            target.setdefault(path[-1], earlier[name])
    privacy = result.get("privacy")
    if isinstance(privacy, dict) and "colluders" not in privacy:
        told = (privacy.get("noise") or {}).get("colluders", 1)
        privacy["colluders"] = max(0, min(told, privacy.get("min_survivors", 3) - 2))  # earlier versions allowed more
    return result


def _known(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    known = {}
    for name in values.keys() & section.model_fields.keys():
        value, inner = values[name], section_in(section.model_fields[name].annotation)
        known[name] = _known(inner, value) if inner is not None and isinstance(value, Mapping) else value
    return known
