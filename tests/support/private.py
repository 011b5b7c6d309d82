"""Methods and clients under differential privacy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifedicl import runs
from ifedicl.backbone.load import Backbone
from ifedicl.federation.client import Client
from ifedicl.federation.client_task import ExampleSums
from ifedicl.federation.dp_client import DPSums
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.public_text import PublicText
from ifedicl.federation.secure.quantised import STEPS
from ifedicl.kinds.classify import Example
from ifedicl.settings import Method, ModelSettings
from tests.support import tiny


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


STEP = STEPS["gradient"]
PUBLIC = tuple(example.text for example in tiny.examples(8, seed=9))


def dp_sums(manifest: Manifest, public: Sequence[str] = PUBLIC, **options: Any) -> DPSums:
    """The sums of a job with noise, with nothing spent yet; ``options`` override."""
    return DPSums(manifest, PublicText(public), **{"dtype": "float32", "steps": STEPS, "answered": {}} | options)


def private_client(backbone: Backbone, rows: Sequence[Example], name: str = "ward", **options: Any) -> Client:
    """A client that adds noise where a job promises it; ``options`` are of :func:`dp_sums`."""
    client = Client(name, rows, backbone, secret=name.encode())

    def sums_for(manifest: Manifest, reference: PublicText) -> ExampleSums:
        promised = manifest.method.promises_noise
        return dp_sums(manifest, **{"dtype": client.dtype} | options) if promised else ExampleSums(reference)

    return client.with_sums(sums_for)


def private_clients(backbone: Backbone, count: int = 3) -> list[Client]:
    """Clients of five examples each."""
    rows = tiny.examples(5 * count)
    return [private_client(backbone, rows[5 * n : 5 * n + 5], f"ward-{n}") for n in range(count)]


def sums_in(client: Client) -> DPSums:
    """The sums of the client's present job."""
    sums = client._in_job.sums
    assert isinstance(sums, DPSums)
    return sums


def private_run(backbone: Backbone, method: Method, folder: Path, *, each: int = 6, **options: Any) -> runs.Federated:
    """A run of four simulated clients with ``each`` examples; ledgers and checkpoint are in ``folder``."""
    rows = tiny.examples(4 * each)
    clients = runs.simulate(backbone, tiny.TASK, {f"ward-{n}": rows[each * n : each * (n + 1)] for n in range(4)})
    return runs.federate(
        clients,
        ModelSettings(source="tiny"),
        tiny.TASK,
        method,
        ledgers=folder / "ledgers",
        public=PUBLIC,
        options=runs.RunOptions(checkpoint=folder / "state.safetensors", **options),
    )
