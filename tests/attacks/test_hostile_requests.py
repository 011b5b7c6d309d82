"""Requests that are drawn at random: whatever leaves is a function of the approved job and of arrays that the job allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifedicl.backbone.load import Backbone
from ifedicl.errors import MessageError
from ifedicl.federation.messages import Envelope, Failure, Frame, JobRequest, Request, decode_request, encode, pack, unpack
from ifedicl.owner.policy import open_policy
from tests.support import tiny
from tests.support.attacker import Overheard, client_behind, job, ones, owner
from tests.support.jobs import context_of, one_of_each

METHOD = tiny.method(
    calibration={"batch_size": 4, "local_steps": 2}, holdout={"selection": 0.2, "gate": 0.2}, readout={}, rounds={"rounds": 3}
)
OTHER = tiny.method(calibration={"batch_size": 4, "local_steps": 9}, holdout={"selection": 0.2, "gate": 0.2}, seed=3)
KINDS = ("vectors", "context", "update", "gradient", "evaluate", "statistics", "products", "compare", "job")
_NUMBERS: tuple[Any, ...] = (0, 1, -1, 2, 3, 10**9, 10**30, 0.5, 1e300, True, None, "", "train", "0" * 48, [], [1.0, 4.0], {})


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A kind of request, fields to set, and arrays to change."""
    kind = draw(st.sampled_from(KINDS))
    names = ("context_id", "job", "round", "phase_start", "phase_rounds", "cursor", "temperatures", "pooled_layers", "role")
    fields = draw(
        st.dictionaries(st.sampled_from((*names, "shares", "first_layer", "manifest")), st.sampled_from(_NUMBERS), max_size=2)
    )
    arrays = draw(
        st.dictionaries(
            st.sampled_from(("scales", "core", "vectors", "basis", "readout", "readouts", "extra")),
            st.tuples(
                st.sampled_from(("scale", "nan", "shape", "dtype", "drop", "new")), st.floats(-1e8, 1e8, allow_nan=False)
            ),
            max_size=2,
        )
    )
    return kind, fields, arrays


def changed(request: Request, fields: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """The frame of a request with these changes."""
    kind, header, present = unpack(encode(request))
    present = {name: array.copy() for name, array in present.items()}
    for name, (how, number) in arrays.items():
        array = present.get(name)
        if how == "new" or array is None:
            present[name] = np.full((3, 2, 2), number, dtype=np.float32)
        elif how == "scale":
            present[name] = (array * np.float32(number)).astype(array.dtype)
        elif how == "nan":
            array.ravel()[:1] = np.nan
        elif how == "shape":
            present[name] = array[:-1]
        elif how == "dtype":
            present[name] = array.astype(np.float64)
        else:
            del present[name]
    return pack(kind, {**header, **fields}, present)


class Pair:
    """An owner whom an attacker has asked all that came before, and what a fresh client of the approved job would reply."""

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        self.manifest = job(backbone, METHOD)
        self.context = ones(self.manifest)
        self.requests = one_of_each(self.manifest, self.context, self.manifest.identity)
        policy = open_policy().model_copy(update={"allow": open_policy().allow.model_copy(update={"tasks": (), "models": ()})})
        self.attacked = owner(backbone, folder, policy=policy)
        # The owner approved this job alone.
        approved = {self.manifest.digest}
        guard = self.attacked.endpoint.outermost._inner  # type: ignore[attr-defined]
        guard._approved = lambda: approved
        self.fresh = owner(backbone, folder / "fresh", policy=open_policy())

    def begin(self) -> None:
        """Each try begins with all attempts left: the test is about what leaves, not about how much."""
        for victim in (self.attacked, self.fresh):
            guard = victim.endpoint.outermost._inner  # type: ignore[attr-defined]
            guard._attempts.clear()
            for request in (self.requests["job"], self.requests["context"]):
                assert not isinstance(victim.handle(request), Failure)

    def wire(self, victim: Overheard, frame: bytes) -> bytes:
        return Envelope(victim.head, Frame(frame)).to_bytes()


@pytest.fixture(scope="module")
def pair(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(backbone, tmp_path_factory.mktemp("hostile"))


@given(sequence=st.lists(changes(), min_size=1, max_size=4))
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_leaves_is_a_function_of_the_approved_job_and_the_allowed_arrays(pair: Pair, sequence: list[Any]) -> None:
    pair.begin()
    other = JobRequest(job(client_behind(pair.attacked).backbone, OTHER))
    assert isinstance(pair.attacked.handle(other), Failure)  # a job that the owner did not approve changes nothing
    for kind, fields, arrays in sequence:
        frame = changed(pair.requests[kind], fields, arrays)
        try:
            reply = pair.attacked.send(pair.wire(pair.attacked, frame))
        except MessageError:
            continue  # over FLARE a code leaves in its place
        if isinstance(reply, Failure):
            continue
        # It was answered, so it is a request of this job; a client that heard nothing else says the same.
        request = decode_request(frame)
        if kind == "context":
            assert request == context_of(pair.manifest, request.context)  # type: ignore[union-attr]
        expected = pair.fresh.send(pair.wire(pair.fresh, frame))
        assert encode(reply) == encode(expected)
