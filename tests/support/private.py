"""Methods and clients under differential privacy."""

from __future__ import annotations

from typing import Any

from ifedicl.backbone.load import Backbone
from ifedicl.dp.skellam import Crowd
from ifedicl.federation.client import Client
from ifedicl.federation.dp_client import DPClient, DPSums
from ifedicl.settings import Method, NoiseSettings
from tests.support import tiny
from tests.support.jobs import job_of


def method(**sections: Any) -> Method:
    """Gradient sums of whole examples, no held-out examples; sections override."""
    base: dict[str, dict[str, Any]] = {
        "holdout": {"selection": 0.0},
        "server": {"update": "gradient", "draw": 1.0},
        "rounds": {"rounds": 3, "select_by": "last"},
        "injection": {"from_depth": 0.4},
    }
    plain = {name: sections.pop(name) for name in ("weighting",) if name in sections}
    return tiny.method(**{name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}, **plain)


def private_method(**sections: Any) -> Method:
    """A private run of three rounds at ε 2; sections override."""
    base: dict[str, Any] = {
        "rounds": {"rounds": 3, "select_by": "last"},
        "privacy": {"mode": "private", "min_survivors": 3, "min_examples": 2, "noise": {"epsilon": 2.0}},
    }
    merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    return method(weighting="examples", **merged)


STEP = 2.0**-24
PUBLIC = tiny.examples(8, seed=9)


def private_clients(backbone: Backbone, settings: NoiseSettings, run: Method, count: int = 3) -> list[DPClient]:
    """Clients of five examples each, with a budget for three survivors."""
    rows = tiny.examples(5 * count)
    return [
        DPClient(
            Client(f"ward-{n}", rows[5 * n : 5 * n + 5], backbone, secret=f"ward-{n}".encode()),
            DPSums(settings, Crowd(3, 1), run, PUBLIC, step=STEP),
            job_of(run, backbone).run,
        )
        for n in range(count)
    ]
