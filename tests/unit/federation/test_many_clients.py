"""A client costs the coordinator the same among few and among many, early and late: counted in calls and bytes, not seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone import base_scorer, encoding, layer_cache, scoring
from ifedicl.backbone.load import Backbone
from ifedicl.federation import checkpoint
from ifedicl.federation.checkpoint_tables import Tables
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.events import Event, RoundDone
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import ContextReply, Envelope, EvaluateReply, JobReply, Reply, UpdateReply
from ifedicl.federation.state import RoundRecord, State, Traffic
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Tally
from ifedicl.owner.endpoint import simulated_endpoints
from ifedicl.runs import simulate
from tests.support import tiny
from tests.support.scripted import SHAPE, scales, scripted_method, vectors_reply

METHOD = scripted_method(rounds={"rounds": 6}, weighting="examples")


class Canned:
    """A client with fixed replies and a ledger."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lines = 0

    def handle(self, envelope: Envelope, /) -> Envelope:
        replies: dict[str, Reply] = {
            "job": JobReply(),
            "vectors": vectors_reply(1.0, 8),
            "context": ContextReply(),
            "update": UpdateReply(scales(0.5), 8, 0.5),
            "evaluate": EvaluateReply((Tally(4, 3, 2.0),)),
        }
        self._lines += 1
        return Envelope.of(replies[envelope.frame.request.kind], Head(self._lines, "0" * 64))


def work(clients: int, folder: Path) -> tuple[list[int], int]:
    """Calls within each round, those of C functions too, and the bytes of the last checkpoint."""
    file, calls, until = folder / f"{clients}", [0], list[int]()

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        calls[0] += event in ("call", "c_call")

    def observe(event: Event) -> None:
        if isinstance(event, RoundDone):
            until.append(calls[0])

    engine = LocalEngine([Canned(f"client-{number:04d}") for number in range(clients)])
    coordinator = Coordinator(engine, tiny.TASK, METHOD, SHAPE, checkpoint_file=file, observer=observe)
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        coordinator.run()
    finally:
        sys.setprofile(before)
    return [ended - begun for begun, ended in pairwise(until)], file.stat().st_size


def test_the_coordinators_work_for_a_client_grows_with_neither_clients_nor_rounds(tmp_path: Path) -> None:
    (few, few_bytes), (some, some_bytes), (many, many_bytes) = (work(clients, tmp_path) for clients in (10, 20, 40))
    assert (many[1] - some[1]) / 20 <= 1.02 * (some[1] - few[1]) / 10
    assert (many_bytes - some_bytes) / 20 <= 1.02 * (some_bytes - few_bytes) / 10
    assert many[-1] <= 1.02 * many[1], "the last round, after four more"


def after(rounds: int, clients: int) -> State:
    """The state after so many rounds of so many clients."""
    names = [f"client-{number}" for number in range(clients)]
    traffic = [Traffic(name, step, at, 9, 9, 0.5) for at in range(rounds) for step in ("update", "evaluate") for name in names]
    tallies = dict.fromkeys(names, Tally(4, 3, 2.0))
    history = tuple(RoundRecord(at + 1, tuple(names), 0.5, tallies) for at in range(rounds))
    heads = {name: Head(2, "0" * 64) for name in names}
    return State("0" * 64, rounds, 0, rounds, scales(0.1), scales(0.1), traffic=tuple(traffic), history=history, heads=heads)


def test_the_header_of_a_checkpoint_which_has_a_largest_size_grows_with_neither_clients_nor_rounds(tmp_path: Path) -> None:
    def header(state: State) -> int:
        checkpoint.save(state, tmp_path / "state")
        return int.from_bytes((tmp_path / "state").read_bytes()[:8], "little")

    assert header(after(20, 30)) <= header(after(1, 1)) + 300  # digits of places in the file


def test_what_an_earlier_checkpoint_had_is_not_converted_again() -> None:
    converted = list[object]()

    class Noting(Tables):
        def _traffic_row(self, item: Traffic) -> Iterator[tuple[Any, ...]]:
            converted.append(item)
            return super()._traffic_row(item)

        def _tally_rows(self, record: RoundRecord) -> Iterator[tuple[Any, ...]]:
            converted.append(record)
            return super()._tally_rows(record)

    state, added, tables = after(5, 4), Traffic("new", "update", 5, 1, 2, 0.1, "late"), Noting()
    tables.of(state)
    converted.clear()
    later = replace(state, traffic=(*state.traffic, added))
    _, arrays = tables.of(later)
    assert converted == [added]
    for name, array in Tables().of(later)[1].items():
        assert array.shape == arrays[name].shape
        if array.dtype.kind == "f":
            np.testing.assert_array_equal(array, arrays[name])
    # A state that does not go on from the one before is converted as a whole.
    other = after(5, 4)
    _, arrays = tables.of(other)
    assert len(arrays["traffic.round"]) == len(other.traffic)


def test_simulated_clients_share_what_is_the_same_for_all(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()

    class Encoder(encoding.Encoder):
        def __init__(self, *arguments: Any) -> None:
            made.append("encoder")
            super().__init__(*arguments)

    class UpperLayers(layer_cache.UpperLayers):
        def __init__(self, *arguments: Any) -> None:
            made.append("kept states")
            super().__init__(*arguments)

    monkeypatch.setattr(scoring, "Encoder", Encoder)
    monkeypatch.setattr(base_scorer, "UpperLayers", UpperLayers)
    manifest = Manifest.of(tiny.TASK, tiny.method(injection={"from_depth": 0.5}), backbone.shape)
    clients = simulate(backbone, tiny.TASK, {f"c{number}": tiny.examples(4, seed=number) for number in range(5)})
    for endpoint in simulated_endpoints(clients, manifest, None, ()):
        endpoint.client.prepare(manifest)
    assert sorted(made) == ["encoder", "kept states"]
