"""Methods that a promise of noise allows."""

from __future__ import annotations

from typing import Any

from ifedicl.settings import Method
from tests.support import tiny


def method(**sections: Any) -> Method:
    """Gradient sums of whole examples, and nothing held out; sections override."""
    base: dict[str, dict[str, Any]] = {
        "holdout": {"selection": 0.0},
        "server": {"update": "gradient", "draw": 1.0},
        "rounds": {"rounds": 3, "select_by": "last"},
        "injection": {"from_depth": 0.4},
    }
    return tiny.method(**{name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


def private_method(**sections: Any) -> Method:
    """A private run of three rounds at ε 2; sections override."""
    base: dict[str, Any] = {
        "vectors": {"weighting": "examples"},
        "rounds": {"rounds": 3, "select_by": "last", "weighting": "examples"},
        "privacy": {"mode": "private", "min_clients": 3, "min_examples": 2, "noise": {"epsilon": 2.0, "colluders": 1}},
    }
    return method(**{name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})
