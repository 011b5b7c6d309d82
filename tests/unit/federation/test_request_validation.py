"""Requests that fit a job, and each way not to: other shapes, numbers without bounds, kinds that the method does not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.blend import SHARES
from ifedicl.core.coefficients import LARGEST_COEFFICIENT, Coefficients
from ifedicl.core.penalties import readout_count
from ifedicl.core.readout import TEMPERATURES, Readout
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import LARGEST_MEAN, Array32
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import (
    CompareRequest,
    ContextRequest,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientRequest,
    JobRequest,
    Reply,
    StatisticsRequest,
    StepRequest,
    UpdateRequest,
    VectorsRequest,
)
from ifedicl.federation.request_validation import RequestChecks
from tests.support import tiny
from tests.support.jobs import context_of, job_of, one_of_each
from tests.support.local_runs import real

NAN, INFINITE = float("nan"), float("inf")
MODEL = ModelShape("f" * 64, 3, 8)
SECTIONS: dict[str, Any] = {
    "injection": {"from_depth": 0.4},
    "subspace": {"rank": 2},
    "readout": {},
    "holdout": {"gate": 0.2},
    "rounds": {"rounds": 4},
}


def job(**changes: Any) -> Manifest:
    """A job of all kinds of steps on layers 1 and 2 of three; ``changes`` are other sections, None takes one out."""
    sections = {name: value for name, value in {**SECTIONS, **changes}.items() if value is not None}
    return job_of(tiny.method(**sections), MODEL)


JOB = job()
GRADIENTS = job(server={"update": "gradient"})
PLAIN = job(readout=None, holdout={"selection": 0.0}, rounds={"rounds": 4, "select_by": "last"})
NAME = "0" * 48
START = JOB.initial
LAYERS = JOB.method.pooled_layers(MODEL.layers)


def basis_of(layers: int = 2, rank: int = 2, width: int = 8) -> Array32:
    return subspace_basis(np.zeros((0, layers, 2, width)), rank, np.random.default_rng(0))


def context(layers: int = 2, rank: int = 2, width: int = 8, first: int = 1, value: float = 1.0) -> Context:
    """Vectors of one value and a basis; the usual ones fit."""
    vectors = np.full((layers, 2, width), value, dtype=np.float32)
    return Context(vectors, basis_of(layers, rank, width) if rank else None, first)


def with_one(array: Array32, value: float) -> Array32:
    """The array with another last number."""
    copy = array.copy()
    copy.flat[-1] = value
    return copy


def scales(value: float) -> Coefficients:
    return replace(START, scales=with_one(START.scales, value))


def core(value: float) -> Coefficients:
    assert START.core is not None
    return replace(START, core=with_one(START.core, value))


def shaped(layers: int = 2, rank: int = 2) -> Coefficients:
    """Coefficients of another shape."""
    form = replace(JOB.form, layers=layers, rank=rank)
    return Coefficients.identity(form)


BAD_COEFFICIENTS = {
    "a layer more": shaped(layers=3),
    "a layer less": shaped(layers=1),
    "another rank": shaped(rank=3),
    "no core": shaped(rank=0),
    "scales that are NaN": scales(NAN),
    "scales that are infinite": scales(-INFINITE),
    "scales beyond the bound": scales(1.01 * LARGEST_COEFFICIENT),
    "a core that is NaN": core(NAN),
    "a core beyond the bound": core(-1.01 * LARGEST_COEFFICIENT),
}
WEIGHTS = np.ones((2, MODEL.width * (1 + len(LAYERS)) + 3), dtype=np.float32)
READOUT = Readout(WEIGHTS, LAYERS)
OTHER_LAYER = Readout(WEIGHTS, (*LAYERS[:-1], MODEL.layers))
BAD_READOUTS = {
    "another width": replace(READOUT, weights=np.ones((2, WEIGHTS.shape[1] + 1), dtype=np.float32)),
    "a label more": replace(READOUT, weights=np.ones((3, WEIGHTS.shape[1] + 1), dtype=np.float32)),
    "another pooled layer": OTHER_LAYER,
    "NaN": replace(READOUT, weights=with_one(WEIGHTS, NAN)),
    "infinite": replace(READOUT, weights=with_one(WEIGHTS, INFINITE)),
    "beyond the bound": replace(READOUT, weights=with_one(WEIGHTS, -1.01e6)),
}


def trial(
    *readouts: Readout, temperatures: tuple[float, ...] = TEMPERATURES, shares: tuple[float, ...] = SHARES
) -> EvaluateRequest:
    return EvaluateRequest(NAME, START, readouts, temperatures, shares)


def install(held: Context, wire_dtype: str = "float32") -> ContextRequest:
    return ContextRequest(JOB.digest, held, wire_dtype)


FITTING: dict[str, tuple[Manifest, StepRequest]] = {
    "job": (JOB, JobRequest(JOB)),
    "first vectors": (JOB, VectorsRequest(JOB.digest, "")),
    "later vectors": (JOB, VectorsRequest(JOB.digest, f"999999999:{'0a' * 16}")),
    "context": (JOB, install(context())),
    "context at the bound": (JOB, install(context(value=-LARGEST_MEAN))),
    "context in float16": (
        job(vectors={"wire_dtype": "float16"}),
        install(context().rounded("float16"), "float16"),
    ),
    "context without a basis": (job(subspace=None), install(context(rank=0))),
    "first update": (JOB, UpdateRequest(NAME, 0, 0, 4, START)),
    "last update": (JOB, UpdateRequest(NAME, 3, 0, 4, START)),
    "update of a later schedule": (JOB, UpdateRequest(NAME, 3, 2, 2, START)),
    "update at the bound": (JOB, UpdateRequest(NAME, 0, 0, 4, scales(LARGEST_COEFFICIENT))),
    "gradient": (GRADIENTS, GradientRequest(NAME, 3, START)),
    "evaluate": (JOB, EvaluateRequest(NAME, START)),
    "evaluate the raw model": (JOB, EvaluateRequest(NAME, JOB.identity)),
    "evaluate readouts": (JOB, trial(*(READOUT,) * readout_count(len(LAYERS)))),
    "compare": (JOB, CompareRequest(NAME, START, None)),
    "compare a readout": (JOB, CompareRequest(NAME, START, READOUT)),
    "statistics": (JOB, StatisticsRequest(NAME, START)),
}


@pytest.mark.parametrize(("manifest", "request_"), FITTING.values(), ids=FITTING)
def test_a_request_of_the_job_fits(manifest: Manifest, request_: StepRequest) -> None:
    assert RequestChecks(manifest).fits(request_)


UNFIT: dict[str, tuple[Manifest, StepRequest]] = {
    "another job": (JOB, JobRequest(PLAIN)),
    "the job with more rounds": (JOB, JobRequest(Manifest.of(JOB.task, JOB.method, MODEL, rounds=9))),
    **{
        f"cursor {cursor!r}": (JOB, VectorsRequest(JOB.digest, cursor))
        for cursor in ("5", "x", ":", f"-1:{'0' * 32}", f":{'0' * 32}", f"{10**9}:{'0' * 32}", f"5:{'0' * 31}", f"5:{'G' * 32}")
    },
    "vectors of a layer more": (JOB, install(context(layers=3))),
    "vectors of a layer less": (JOB, install(context(layers=1))),
    "vectors of lower layers": (JOB, install(context(first=0))),
    "vectors of higher layers": (JOB, install(context(first=2))),
    "vectors of another width": (JOB, install(context(width=9))),
    "a basis of another rank": (JOB, install(context(rank=3))),
    "no basis": (JOB, install(context(rank=0))),
    "a basis that was not asked for": (job(subspace=None), install(context())),
    "vectors that are NaN": (JOB, install(context(value=NAN))),
    "vectors that are infinite": (JOB, install(context(value=INFINITE))),
    "vectors beyond the bound": (JOB, install(context(value=1.01 * LARGEST_MEAN))),
    "one number beyond the bound": (
        JOB,
        install(replace(context(), vectors=with_one(context().vectors, -1.01 * LARGEST_MEAN))),
    ),
    "a basis that is NaN": (JOB, install(replace(context(), basis=with_one(basis_of(), NAN)))),
    "a basis that is zero": (JOB, install(replace(context(), basis=np.zeros_like(basis_of())))),
    "a basis that is too long": (JOB, install(replace(context(), basis=basis_of() * np.float32(1.02)))),
    "a basis of one direction twice": (JOB, install(replace(context(), basis=np.repeat(basis_of()[:, :, :1], 2, axis=2)))),
    "a huge basis": (JOB, install(replace(context(), basis=basis_of() * np.float32(1e30)))),
    "vectors in another dtype": (JOB, install(context(), "float16")),
    "vectors in float64": (JOB, install(context(), "float64")),
    **{
        f"update {place}": (JOB, UpdateRequest(NAME, *place, START))
        for place in [(4, 0, 4), (-1, 0, 4), (-1, -1, 4), (0, 1, 3), (2, 0, 2), (0, 0, 0), (0, 0, 5), (3, 3, 2), (0, 0, 10**12)]
    },
    **{f"gradient of round {number}": (GRADIENTS, GradientRequest(NAME, number, START)) for number in (-1, 4, 10**12)},
    "update where gradients are summed": (GRADIENTS, UpdateRequest(NAME, 0, 0, 4, START)),
    "gradient where clients take steps": (JOB, GradientRequest(NAME, 0, START)),
    "figures without selection examples": (PLAIN, EvaluateRequest(NAME, START)),
    "a comparison without a gate": (PLAIN, CompareRequest(NAME, START, None)),
    "sums without a readout": (PLAIN, StatisticsRequest(NAME, START)),
    "figures of a readout without one": (job(readout=None), trial(READOUT)),
    "a comparison of a readout without one": (job(readout=None), CompareRequest(NAME, START, READOUT)),
    "more readouts than are tried": (JOB, trial(*(READOUT,) * (readout_count(len(LAYERS)) + 1))),
    "other temperatures": (JOB, trial(READOUT, temperatures=(1.0, 2.0, 4.0))),
    "fewer temperatures": (JOB, trial(READOUT, temperatures=TEMPERATURES[:1])),
    "temperatures without a readout": (JOB, trial()),
    "shares without a readout": (JOB, trial(temperatures=(1.0,))),
    "other shares": (JOB, trial(READOUT, shares=(0.0, 1.0))),
    "no share": (JOB, trial(READOUT, shares=())),
    "no temperature": (JOB, trial(temperatures=())),
    "a temperature that is NaN": (JOB, trial(READOUT, temperatures=(NAN, *TEMPERATURES[1:]))),
    **{f"figures of a readout: {name}": (JOB, trial(READOUT, readout)) for name, readout in BAD_READOUTS.items()},
    **{
        f"a comparison of a readout: {name}": (JOB, CompareRequest(NAME, START, readout))
        for name, readout in BAD_READOUTS.items()
    },
    **{f"update: {name}": (JOB, UpdateRequest(NAME, 0, 0, 4, values)) for name, values in BAD_COEFFICIENTS.items()},
    **{f"gradient: {name}": (GRADIENTS, GradientRequest(NAME, 0, values)) for name, values in BAD_COEFFICIENTS.items()},
    **{f"evaluate: {name}": (JOB, EvaluateRequest(NAME, values)) for name, values in BAD_COEFFICIENTS.items()},
    **{f"compare: {name}": (JOB, CompareRequest(NAME, values, None)) for name, values in BAD_COEFFICIENTS.items()},
    **{f"statistics: {name}": (JOB, StatisticsRequest(NAME, values)) for name, values in BAD_COEFFICIENTS.items()},
}


@pytest.mark.parametrize(("manifest", "request_"), UNFIT.values(), ids=UNFIT)
def test_a_request_that_does_not_fit_the_job_is_found(manifest: Manifest, request_: StepRequest) -> None:
    assert not RequestChecks(manifest).fits(request_)


def test_a_run_that_only_reads_words_reads_no_text_layer() -> None:
    manifest = job(readout={"pooled_depths": []})
    alone = Readout(np.ones((2, MODEL.width + 3), dtype=np.float32))
    assert RequestChecks(manifest).fits(CompareRequest(NAME, START, alone))
    assert not RequestChecks(manifest).fits(CompareRequest(NAME, START, Readout(WEIGHTS[:, -2 * MODEL.width - 3 :], (2,))))


# A client's checks: first the name, then the numbers


@pytest.fixture
def manifest(backbone: Backbone) -> Manifest:
    return job_of(tiny.method(readout={}, holdout={"gate": 0.3}), backbone)


@pytest.fixture
def held(backbone: Backbone) -> Context:
    return Context(np.zeros((backbone.layers, 2, backbone.width), dtype=np.float32))


def codes(replies: dict[str, Reply]) -> dict[str, FailureCode | None]:
    return {kind: reply.code if isinstance(reply, Failure) else None for kind, reply in replies.items()}


def test_a_client_without_the_job_or_the_vectors_says_so_and_computes_nothing(
    backbone: Backbone, manifest: Manifest, held: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = one_of_each(manifest, held, manifest.initial)
    client = real(backbone)[0]
    job_request = requests.pop("job")
    named_by_job = {"vectors", "context"}
    with monkeypatch.context() as patch:
        patch.setattr(type(backbone), "model", property(lambda self: pytest.fail("the model was used")), raising=False)
        replies = codes({kind: client.handle(request) for kind, request in requests.items()})
        assert replies == dict.fromkeys(requests, FailureCode.NO_CONTEXT)
    client.handle(job_request)
    others = {kind: request for kind, request in requests.items() if kind not in named_by_job}
    assert set(codes({kind: client.handle(request) for kind, request in others.items()}).values()) == {FailureCode.NO_CONTEXT}
    assert client.handle(VectorsRequest("b" * 64, "no cursor")) == Failure(FailureCode.NO_CONTEXT), "the name comes first"
    wrong = replace(context_of(manifest, held), job="b" * 64)
    assert client.handle(wrong) == Failure(FailureCode.NO_CONTEXT)


def test_a_client_that_holds_job_and_vectors_answers_what_fits_and_nothing_else(
    backbone: Backbone, manifest: Manifest, held: Context
) -> None:
    client = real(backbone)[0]
    found = codes({kind: client.handle(item) for kind, item in one_of_each(manifest, held, manifest.initial).items()})
    assert found == {**dict.fromkeys(found), "gradient": FailureCode.BAD_REQUEST}
    name = context_id(manifest.digest, held)
    far = Coefficients(np.full_like(manifest.initial.scales, 2 * LARGEST_COEFFICIENT))
    for request in (
        UpdateRequest(name, 0, 0, 2, far),
        EvaluateRequest(name, far),
        UpdateRequest(name, 2, 0, 3, manifest.initial),
    ):
        assert client.handle(request) == Failure(FailureCode.BAD_REQUEST)


def test_vectors_of_one_job_serve_no_other(backbone: Backbone, manifest: Manifest, held: Context) -> None:
    client = real(backbone)[0]
    for request in one_of_each(manifest, held, manifest.initial).values():
        client.handle(request)
    more = Manifest.of(manifest.task, manifest.method, manifest.model, rounds=9)
    assert client.handle(JobRequest(manifest)) == client.handle(JobRequest(more)), "taken"
    old = UpdateRequest(context_id(manifest.digest, held), 0, 0, 2, manifest.initial)
    assert client.handle(old) == Failure(FailureCode.NO_CONTEXT)
    assert client.handle(context_of(manifest, held)) == Failure(FailureCode.NO_CONTEXT)
    client.handle(context_of(more, held))
    assert client.handle(old) == Failure(FailureCode.NO_CONTEXT)
    assert not isinstance(client.handle(replace(old, context_id=context_id(more.digest, held))), Failure)
