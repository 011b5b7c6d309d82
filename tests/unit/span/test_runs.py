"""Only injected layers are read, sent and kept; the numbers are those of a run that holds all layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl import seeds
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate, gradient_sum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import WRITES, Array32, ContextVectors, uniform_mean
from ifedicl.data import Role
from ifedicl.extract import context_vectors
from ifedicl.federation import checkpoint
from ifedicl.federation.client import Client
from ifedicl.federation.messages import (
    ContextReply,
    ContextRequest,
    Failure,
    FailureCode,
    GradientReply,
    JobReply,
    JobRequest,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.reply_validation import ReplyChecks
from ifedicl.inspection import expected_bytes
from ifedicl.settings import Method, RunSettings
from ifedicl.settings.describe import what_leaves
from tests.support import tiny
from tests.support.jobs import context_of, job_of
from tests.support.local_runs import HANDS, real, run_real
from tests.support.span import LAYERS, cut, each_span, embedded, everywhere, method


def turn(number: int) -> ClientRound:
    return ClientRound("a", number, 0, 2)


def parts(backbone: Backbone, settings: Method) -> tuple[Scorer, Any, list[int]]:
    first = settings.injection.active_layers(backbone.layers).start
    scorer, rows = Scorer(backbone, tiny.TASK, first_layer=first), tiny.examples(9)
    return scorer, scorer.encoder.prompts([row.text for row in rows]), [tiny.TASK.index(row.label) for row in rows]


def vectors_of(client: Client, settings: Method) -> VectorsReply:
    """The reply to the first vectors request of a job."""
    manifest = job_of(settings, client.backbone)
    assert client.handle(JobRequest(manifest)) == JobReply()
    reply = client.handle(VectorsRequest(manifest.digest, ""))
    assert isinstance(reply, VectorsReply)
    return reply


def some_basis(layers: int, width: int) -> Array32:
    """``(layers, 2, 2, width)``: the first two directions everywhere."""
    return np.broadcast_to(np.eye(2, width, dtype=np.float32), (layers, len(WRITES), 2, width)).copy()


@each_span
def test_vectors_are_those_layers_of_all(four: Backbone, injection: dict[str, Any], layers: range) -> None:
    settings, every = method(injection), method({})
    scorer, prompts, labels = parts(four, settings)
    own, whole = (context_vectors(scorer, prompts.tokens, labels, each) for each in (settings, every))
    np.testing.assert_array_equal(own.means, whole.means[:, layers.start : layers.stop])
    assert own.means.shape == (2, len(layers), len(WRITES), four.width)


def test_nothing_of_the_other_layers_is_even_read(four: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked: list[torch.nn.Module] = []
    own = torch.nn.Module.register_forward_hook

    def noted(self: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        hooked.append(self)
        return own(self, *rest, **named)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", noted)
    scorer, prompts, labels = parts(four, method({"from_depth": 0.5}))
    context_vectors(scorer, prompts.tokens, labels, method({"from_depth": 0.5}))
    assert {id(module) for module in hooked} == {id(module) for pair in four.writes[2:] for module in pair}


@each_span
def test_a_clients_turn_is_that_of_arrays_of_all_layers(four: Backbone, injection: dict[str, Any], layers: range) -> None:
    settings = method(injection, calibration={"learning_rate": 0.2})
    scorer, prompts, labels = parts(four, settings)
    adapter = cut(tiny.drawn_adapter(four, rank=2), layers)
    context, start = adapter.context, adapter.coefficients
    whole_context, whole_start = everywhere(context, start)
    ours = calibrate(scorer, EncodedExamples(prompts, tuple(labels)), context, start, settings, turn(0))
    whole = calibrate(scorer, EncodedExamples(prompts, tuple(labels)), whole_context, whole_start, settings, turn(0))
    assert ours.loss == whole.loss
    for name, array in everywhere(context, ours.coefficients)[1].arrays.items():
        np.testing.assert_array_equal(array, whole.coefficients.arrays[name])
        assert not np.array_equal(array, whole_start.arrays[name])
    rows = range(len(labels))
    sums = gradient_sum(scorer, EncodedExamples(prompts, tuple(labels)), context, start, settings, rows)
    everything = gradient_sum(scorer, EncodedExamples(prompts, tuple(labels)), whole_context, whole_start, settings, rows)
    for name, gradient in sums.arrays.items():
        np.testing.assert_array_equal(embedded(gradient, layers), everything.arrays[name])


@each_span
def test_a_whole_run_gives_the_numbers_of_one_that_holds_all_layers(
    four: Backbone, injection: dict[str, Any], layers: range
) -> None:
    """Stage 1, basis, and every client's turn, again with arrays of all layers."""
    settings = method(injection, holdout={"selection": 0.0}, rounds={"rounds": 2, "select_by": "last"})
    outcome = run_real(four, settings)
    assert outcome.context.layers == layers
    clients = {client.name: client for client in real(four)}
    every = settings.model_copy(update={"injection": method({}).injection})
    sent = []
    for client in clients.values():
        reply = vectors_of(client, every)
        sent.append(ContextVectors.from_wire(reply.vectors.means, reply.vectors.counts))
    means = ContextVectors.combine(ContextVectors.combine(sent[0], sent[1]), sent[2]).present_means
    basis = subspace_basis(means, 2, seeds.generator(settings.seed, "basis"))
    vectors = uniform_mean([each.merged() for each in sent])
    rows = slice(layers.start, layers.stop)
    np.testing.assert_array_equal(outcome.context.vectors, vectors[rows])
    assert outcome.context.basis is not None
    np.testing.assert_array_equal(outcome.context.basis, basis[rows])
    manifest = job_of(settings, four)
    now = everywhere(outcome.context, manifest.initial)[1]
    for client in clients.values():
        client.prepare(manifest)
    for number in range(2):
        moved = []
        for name in HANDS:
            task = clients[name]._task
            assert task is not None
            own = Context(vectors, basis)
            update = calibrate(task.scorer, task.part(Role.TRAIN), own, now, settings, ClientRound(name, number, 0, 2))
            moved.append(update.coefficients.arrays)
        now = Coefficients.of(
            {key: np.mean([each[key] for each in moved], axis=0, dtype=np.float64).astype("f4") for key in now.arrays}
        )
    for name, array in outcome.coefficients.arrays.items():
        np.testing.assert_allclose(array, now.arrays[name][rows], atol=1e-3)  # Γ travels as float16


def test_half_of_the_layers_are_half_of_the_bytes(four: Backbone) -> None:
    sizes: dict[str, list[int]] = {"vectors": [], "context": [], "update": []}
    for injection in ({}, {"from_depth": 0.5}):
        settings, client = method(injection), real(four)[0]
        manifest, sent = job_of(settings, four), vectors_of(client, settings)
        vectors = sent.vectors.mean().astype(np.float32)
        context = Context(vectors, some_basis(len(vectors), four.width), manifest.layers.start)
        install = context_of(manifest, context)
        assert client.handle(install) == ContextReply()
        update = client.handle(UpdateRequest(install.context_id, 0, 0, 2, manifest.initial))
        assert isinstance(update, UpdateReply)
        messages: dict[str, Request | Reply] = {"vectors": sent, "context": install, "update": update}
        for name, message in messages.items():
            sizes[name].append(len(encode(message)))
    groups, writes, width, float32, float16 = 2, LAYERS // 2 * 2, four.width, 4, 2
    saved = {"vectors": groups * writes * width * float32, "context": writes * (width + 2 * width) * float32}
    saved["update"] = writes * (2 * float32 + 2 * 2 * float16)
    for name, (whole, half) in sizes.items():
        assert abs(whole - half - saved[name]) <= 4, name  # a digit of a shape, or of a loss, more or less
        assert half - (whole - 2 * saved[name]) == pytest.approx(saved[name], abs=4)


def test_the_expected_bytes_are_the_bytes_that_are_sent(four: Backbone) -> None:
    sections = {"injection": {"from_depth": 0.5}, "subspace": {"rank": 2}, "holdout": {"selection": 0.25}}
    settings = RunSettings.model_validate(
        {"task": tiny.TASK, "model": {"source": "tiny", "dtype": "float32"}, "data": {"clients": {"a": "a.jsonl"}}, **sections}
    )
    whole = settings.model_copy(update={"injection": method({}).injection})
    sizes, whole_sizes = (expected_bytes(each, four.shape, ("a",)) for each in (settings, whole))
    reply = vectors_of(real(four)[0], settings.method)
    assert abs(sizes["vectors_reply_up"] - len(encode(reply))) < 130  # the head of a ledger
    assert whole_sizes["vectors_reply_up"] - sizes["vectors_reply_up"] == 2 * 2 * 2 * four.width * 4
    more = whole_sizes["update_reply_up"] - sizes["update_reply_up"]
    assert more - 2 * 2 * (2 * 4 + 4 * 2) in (0, 8)  # offsets in the frame's header get longer, and it is padded to 8 bytes
    assert any("layers above 0.5 of its depth" in line for line in what_leaves(settings.method))


@each_span
def test_the_coordinator_takes_the_injected_layers_and_no_others(
    injection: dict[str, Any], layers: range, four: Backbone
) -> None:
    checks = ReplyChecks(job_of(method(injection), four))
    for count in range(1, LAYERS + 2):
        means = np.ones((2, count, 2, four.width), dtype=np.float32)
        values = Coefficients.identity(Form(count, 2))
        vectors = VectorsReply(ContextVectors(means, np.ones(2, dtype=np.int64)), "", True, "float32", "float32")
        gradient = GradientReply(gradient_of(values))
        assert checks.is_usable_vectors(vectors) is (count == len(layers))
        assert checks.is_usable_update(UpdateReply(values, 3, 1.0)) is (count == len(layers))
        assert checks.is_usable_gradient(gradient) is (count == len(layers))


def test_the_coordinator_takes_no_coefficients_that_the_wire_cannot_hold(four: Backbone) -> None:
    checks = ReplyChecks(job_of(method({}), four))
    values = Coefficients.identity(Form(LAYERS, 2))
    assert values.core is not None
    assert checks.is_usable_update(UpdateReply(values, 3, 1.0))
    assert not checks.is_usable_update(UpdateReply(replace(values, core=np.full_like(values.core, 1e30)), 3, 1.0))


def gradient_of(values: Coefficients) -> Any:
    from ifedicl.core.aggregation import GradientSum

    return GradientSum(values.arrays, 3, 1.0)


@pytest.mark.parametrize("received", [range(4), range(1, 3), range(3, 4), range(2)], ids=str)
def test_a_client_takes_no_context_of_other_layers(four: Backbone, received: range) -> None:
    manifest, client = job_of(method({"from_depth": 0.5}), four), real(four)[0]
    assert client.handle(JobRequest(manifest)) == JobReply()

    def install(layers: range) -> ContextRequest:
        vectors = np.ones((len(layers), 2, four.width), dtype=np.float32)
        return context_of(manifest, Context(vectors, some_basis(len(layers), four.width), layers.start))

    held = install(range(2, 4))
    assert client.handle(held) == ContextReply()
    wrong = Coefficients.identity(Form(len(received) + (len(received) == 2), 2))
    assert client.handle(UpdateRequest(held.context_id, 0, 0, 2, wrong)) == Failure(FailureCode.BAD_REQUEST)
    assert client.handle(install(received)) == Failure(FailureCode.BAD_REQUEST)
    right = Coefficients.identity(Form(2, 2))
    assert isinstance(client.handle(UpdateRequest(held.context_id, 0, 0, 2, right)), UpdateReply), "it holds the first ones"


def test_a_context_says_where_it_begins_on_its_way() -> None:
    context = Context(np.ones((2, 2, 4), dtype=np.float32), first_layer=3)
    request = ContextRequest("a" * 64, context, "float32")
    again = ContextRequest.from_wire(*request.to_wire())
    assert again.context_id == request.context_id
    assert again.context.layers == context.rounded("float16").layers == range(3, 5)
    for wrong in (-1, "3", None, 1.0):
        with pytest.raises(ValueError, match="first_layer: received"):
            replace(context, first_layer=wrong)  # type: ignore[arg-type]


def test_a_run_of_some_layers_is_resumed(four: Backbone, tmp_path: Path) -> None:
    settings = method({"from_depth": 0.5})
    whole = run_real(four, settings)
    run_real(four, method({"from_depth": 0.5}), checkpoint=tmp_path / "state")
    stored = checkpoint.load(tmp_path / "state")
    assert stored is not None
    assert stored.context is not None
    assert stored.context.layers == range(2, 4)
    again = run_real(four, settings, checkpoint=tmp_path / "state", resume=True)
    assert again.context.layers == range(2, 4)
    np.testing.assert_array_equal(again.coefficients.scales, whole.coefficients.scales)
