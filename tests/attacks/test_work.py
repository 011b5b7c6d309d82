"""Work and disk without end: steps, rounds, refusals, contexts, frames."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as safetensors_load

from ifedicl.backbone.load import Backbone
from ifedicl.core.subspace import Context
from ifedicl.errors import ConfigError
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import (
    Envelope,
    EvaluateRequest,
    FailureCode,
    JobRequest,
    UpdateRequest,
    encode,
    frames,
    pack,
    unpack,
)
from ifedicl.ledger.ledger import read
from tests.support import tiny
from tests.support.attacker import TRAINED, Overheard, code, default_rules, job, ones, owner, place_of, unchecked
from tests.support.jobs import context_of


def stated(victim: Overheard, frame: bytes) -> bytes:
    """The bytes of a request with the head that the victim's ledger knows."""
    assert victim.head is not None
    head = victim.head.entries.to_bytes(8, "little") + bytes.fromhex(victim.head.digest)
    return b"IFCL\x03\x01" + head + frame


def test_a_job_of_endless_steps_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    endless = job(backbone, unchecked(TRAINED, local_steps=10**9))
    with pytest.raises(ConfigError, match="local_steps"):
        Manifest.from_json(json.loads(json.dumps(endless.to_json())))
    many = job(backbone, tiny.method(calibration={"batch_size": 4, "local_steps": 2000}))
    assert code(owner(backbone, tmp_path).begin(many)) is FailureCode.REFUSED
    lenient = owner(backbone, tmp_path, name="lenient", policy=default_rules(work={"steps": 10_000}))
    assert code(lenient.begin(many)) is None


def test_a_request_that_takes_too_long_is_ended(backbone: Backbone, tmp_path: Path) -> None:
    long = job(backbone, tiny.method(calibration={"batch_size": 4, "local_steps": 1000}))
    victim = owner(backbone, tmp_path, seconds=1.0)
    assert code(victim.begin(long)) is None
    assert code(victim.handle(UpdateRequest(place_of(long), 0, 0, 2, long.identity))) is FailureCode.REFUSED
    assert code(victim.handle(EvaluateRequest(place_of(long), long.identity))) is None  # and it goes on


@pytest.mark.parametrize(
    ("round_number", "start", "rounds"),
    [(-1, 0, 3), (0, -1, 3), (3, 0, 3), (10**30, 0, 10**31), (0, 0, 4), (1, 2, 1), (0, 0, 0)],
)
@pytest.mark.parametrize("over_flare", [False, True])
def test_rounds_outside_of_the_job_are_refused(
    backbone: Backbone, tmp_path: Path, round_number: int, start: int, rounds: int, over_flare: bool
) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path, over_flare=over_flare)
    assert code(victim.begin(manifest)) is None
    request = UpdateRequest(place_of(manifest), round_number, start, rounds, manifest.identity)
    assert code(victim.handle(request)) is FailureCode.BAD_REQUEST
    assert code(victim.handle(UpdateRequest(place_of(manifest), 2, 0, 3, manifest.identity))) is None


def test_refusals_do_not_fill_the_ledger(backbone: Backbone, tmp_path: Path) -> None:
    def lines(name: str, seconds: float) -> int:
        victim = owner(backbone, tmp_path, name=name, policy=default_rules(work={"refusal_seconds": seconds}))
        manifest = job(backbone)
        assert code(victim.begin(manifest)) is None
        for _ in range(50):
            assert code(victim.handle(EvaluateRequest("0" * 48, manifest.identity))) is FailureCode.NO_CONTEXT
        return len(read(tmp_path / f"{name}.jsonl")[0])

    assert lines("undefended", 0.0) == 3 + 50  # without the defence: a line for each
    assert lines("clinic", 3600.0) == 3 + 1
    entries = read(tmp_path / "undefended.jsonl")[0]
    assert {entry.event for entry in entries[3:]} == {"refused"}


def test_a_count_of_refusals_is_not_lost_when_a_reply_follows(backbone: Backbone, tmp_path: Path) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path)
    assert code(victim.begin(manifest)) is None
    for _ in range(20):
        victim.handle(EvaluateRequest("0" * 48, manifest.identity))
    assert code(victim.handle(EvaluateRequest(place_of(manifest), manifest.identity))) is None
    refused = [entry.facts["codes"] for entry in read(tmp_path / "clinic.jsonl")[0] if entry.event == "refused"]
    assert sum(codes["no_context"] for codes in refused) == 20


def test_global_vectors_are_counted_and_only_the_last_are_kept(backbone: Backbone, tmp_path: Path) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path)
    assert code(victim.handle(JobRequest(manifest))) is None
    codes = []
    for number in range(manifest.limits.contexts + 2):
        context = Context(ones(manifest).vectors * np.float32(number + 2))
        codes.append(code(victim.handle(context_of(manifest, context))))
    assert codes == [None] * manifest.limits.contexts + [FailureCode.SPENT] * 2
    old = EvaluateRequest(place_of(manifest), manifest.identity)
    assert code(victim.handle(old)) is FailureCode.NO_CONTEXT


def test_arrays_that_nobody_asked_for_are_not_decoded(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path, over_flare=True)
    assert code(victim.begin(manifest)) is None
    kind, header, arrays = unpack(encode(EvaluateRequest(place_of(manifest), manifest.identity)))
    hostile = pack(kind, header, {**arrays, "ballast": np.zeros(10_000_000, dtype=np.float32)})
    decoded: list[int] = []

    def load(data: bytes) -> dict[str, Any]:
        decoded.append(len(data))
        return safetensors_load(data)

    monkeypatch.setattr(frames, "load_arrays", load)
    assert code(victim.send(stated(victim, hostile))) is FailureCode.BAD_REQUEST
    assert len(hostile) not in decoded
    unpack(hostile)  # without the defence
    assert len(hostile) in decoded


def test_a_frame_that_is_too_large_is_not_read(backbone: Backbone, tmp_path: Path) -> None:
    victim = owner(backbone, tmp_path, policy=default_rules(work={"frame_bytes": 5000}), over_flare=True)
    manifest = job(backbone)
    assert len(Envelope.of(JobRequest(manifest)).to_bytes()) < 5000
    assert code(victim.begin(manifest)) is None
    wide = EvaluateRequest(place_of(manifest), manifest.identity)
    kind, header, arrays = unpack(encode(wide))
    large = pack(kind, {**header, "temperatures": [1.0] * 3000}, arrays)
    assert code(victim.send(stated(victim, large))) is FailureCode.BAD_REQUEST


def test_requests_that_count_against_no_limit_end_too(backbone: Backbone, tmp_path: Path) -> None:
    """The same figure again and again is one figure, but not one piece of work."""
    manifest, victim = job(backbone), owner(backbone, tmp_path)
    assert code(victim.begin(manifest)) is None
    request = EvaluateRequest(place_of(manifest), manifest.identity)
    most = 10 * sum(manifest.limits.model_dump().values())
    codes = [code(victim.handle(request)) for _ in range(most)]
    assert codes[:100] == [None] * 100
    assert codes[-1] is FailureCode.SPENT
    assert code(victim.begin(manifest)) is FailureCode.SPENT


def test_an_owner_with_too_few_examples_computes_nothing(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path, examples=tiny.examples(7))
    assert code(victim.begin(manifest)) is None
    monkeypatch.setattr("ifedicl.federation.client.calibrate", lambda *_: pytest.fail("it computes"))
    request = UpdateRequest(place_of(manifest), 0, 0, 3, manifest.identity)
    assert code(victim.handle(request)) is FailureCode.TOO_FEW


@pytest.mark.parametrize("labels", [[1] * 10_001, ["x"] * 10_001, ["x" * 501, "y"], [[[]]] * 5000])
def test_a_manifest_of_many_faults_is_refused_at_once(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: list[Any]
) -> None:
    kind, header, _ = unpack(encode(JobRequest(job(backbone))))
    header["manifest"]["task"]["labels"] = labels
    victim, start = owner(backbone, tmp_path, over_flare=True), time.perf_counter()
    assert code(victim.send(b"IFCL\x03\x00" + pack(kind, header, {}))) is FailureCode.BAD_REQUEST
    assert time.perf_counter() - start < 2.0  # it took hours when each fault was compared with each
    assert max(len(record.getMessage()) for record in caplog.records) < 1000


def test_a_huge_header_is_not_parsed(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, header, _ = unpack(encode(JobRequest(job(backbone))))
    bomb = pack(kind, {**header, "ballast": [{}] * 400_000}, {})
    victim = owner(backbone, tmp_path, over_flare=True)
    parsed: list[int] = []
    loads = json.loads

    def counting(text: str) -> Any:
        parsed.append(len(text))
        return loads(text)

    monkeypatch.setattr(json, "loads", counting)
    assert code(victim.send(b"IFCL\x03\x00" + bomb)) is FailureCode.BAD_REQUEST
    assert max(parsed, default=0) < 1000


@pytest.mark.parametrize("shape", [(3, 2, 0, 0), (0,), (7, 0), (3, 2, 1, 0)])
def test_an_empty_array_is_no_array_of_the_job(backbone: Backbone, tmp_path: Path, shape: tuple[int, ...]) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path, over_flare=True)
    assert code(victim.begin(manifest)) is None
    kind, header, arrays = unpack(encode(EvaluateRequest(place_of(manifest), manifest.identity)))
    hostile = pack(kind, header, {**arrays, "core": np.zeros(shape, dtype=np.float32)})
    assert code(victim.send(stated(victim, hostile))) is FailureCode.BAD_REQUEST


def test_a_coefficient_out_of_bounds_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path)
    assert code(victim.begin(manifest)) is None
    for value in (1e5, -1e5, np.nan, np.inf):
        values = manifest.identity
        values.scales[0, 0, 0] = value
        assert code(victim.handle(EvaluateRequest(place_of(manifest), values))) is FailureCode.BAD_REQUEST
