"""Only injected layers are read, sent, kept and stored; the numbers are those of a run that holds all layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

from ifedicl import report, runs, seeds
from ifedicl.adapter import Adapter
from ifedicl.audit.suite import Evidence, attacked
from ifedicl.backbone.encoding import EncodedExamples
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Asked, mixed_log_probabilities
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate, gradient_sum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import WRITES, Array32, ContextVectors, uniform_mean
from ifedicl.core.warm_start import warm_start
from ifedicl.data import Role
from ifedicl.errors import AdapterError
from ifedicl.extract import context_vectors
from ifedicl.federation import checkpoint
from ifedicl.federation.assignment import Assignment
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Starter
from ifedicl.federation.messages import (
    ContextReply,
    ContextRequest,
    Failure,
    FailureCode,
    GradientReply,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.reply_validation import Checks
from ifedicl.inspection import expected_bytes, what_leaves
from ifedicl.personal import personalise
from ifedicl.settings import Method, ModelSettings, RunSettings
from ifedicl.store import open_store, requests
from ifedicl.store.protocol import Store
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer
from ifedicl.store.signature import reference, signature
from ifedicl.task import Task
from tests.support import tiny
from tests.support.local_runs import HANDS, real, run_real, shape_of

LAYERS = 4
SPANS: dict[str, tuple[dict[str, Any], range]] = {
    "upper half": ({"from_depth": 0.5}, range(2, 4)),
    "upper quarter": ({"from_depth": 0.75}, range(3, 4)),
    "all": ({}, range(4)),
}
each_span = pytest.mark.parametrize(("injection", "layers"), SPANS.values(), ids=SPANS)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny Llama of four layers."""
    return tiny.load(tiny.save_model(tmp_path_factory.mktemp("four"), num_hidden_layers=LAYERS))


def method(injection: dict[str, Any], **sections: Any) -> Method:
    base = {"subspace": {"rank": 2}, "rounds": {"rounds": 2}, "calibration": {"learning_rate": 0.2}}
    return tiny.method(injection=injection, **{**base, **sections})


def embedded(values: Array32, layers: range, fill: float = 0.0) -> Array32:
    """The same numbers in an array of all layers, as it was before."""
    whole = np.full((LAYERS, *values.shape[1:]), fill, dtype=np.float32)
    whole[layers.start : layers.stop] = values
    return whole


def everywhere(context: Context, coefficients: Coefficients) -> tuple[Context, Coefficients]:
    """Both in arrays of all layers; nothing is injected where they had none."""
    layers = context.layers
    whole = Coefficients.identity(Form(LAYERS, context.rank))
    for name, array in coefficients.arrays.items():
        whole.arrays[name][layers.start : layers.stop] = array
    basis = None if context.basis is None else embedded(context.basis, layers)
    return Context(embedded(context.vectors, layers), basis), whole


def cut(adapter: Adapter, layers: range) -> Adapter:
    """Of an adapter of all layers, those."""
    rows, context, values = slice(layers.start, layers.stop), adapter.context, adapter.coefficients
    basis, core = (None if array is None else array[rows] for array in (context.basis, values.core))
    own = Context(context.vectors[rows], basis, layers.start)
    return replace(adapter, context=own, coefficients=Coefficients(values.scales[rows], core))


def turn(number: int) -> ClientRound:
    return ClientRound("a", number, 0, 2)


def parts(backbone: Backbone, settings: Method) -> tuple[Scorer, Any, list[int]]:
    first = settings.injection.active_layers(backbone.layers).start
    scorer, rows = Scorer(backbone, tiny.TASK, first_layer=first), tiny.examples(9)
    return scorer, scorer.encoder.prompts([row.text for row in rows]), [tiny.TASK.index(row.label) for row in rows]


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
        reply = client.handle(VectorsRequest(tiny.TASK, every, four.fingerprint, ""))
        assert isinstance(reply, VectorsReply)
        sent.append(ContextVectors.from_wire(reply.vectors.means, reply.vectors.counts))
    means = ContextVectors.combine(ContextVectors.combine(sent[0], sent[1]), sent[2]).present_means
    basis = subspace_basis(means, 2, seeds.generator(settings.seed, "basis"))
    vectors = uniform_mean([each.merged() for each in sent])
    rows = slice(layers.start, layers.stop)
    np.testing.assert_array_equal(outcome.context.vectors, vectors[rows])
    assert outcome.context.basis is not None
    np.testing.assert_array_equal(outcome.context.basis, basis[rows])
    assignment = Assignment(tiny.TASK, settings, shape_of(four))
    now = everywhere(outcome.context, assignment.initial)[1]
    for number in range(2):
        moved = []
        for name in HANDS:
            train = clients[name]._task_of(tiny.TASK, settings).part(Role.TRAIN)
            scorer = clients[name]._task_of(tiny.TASK, settings).scorer
            own = Context(vectors, basis)
            update = calibrate(scorer, train, own, now, settings, ClientRound(name, number, 0, 2))
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
        assignment = Assignment(tiny.TASK, settings, shape_of(four))
        sent = client.handle(VectorsRequest(tiny.TASK, settings, four.fingerprint, ""))
        assert isinstance(sent, VectorsReply)
        vectors = sent.vectors.mean().astype(np.float32)
        basis = np.zeros((len(vectors), len(WRITES), 2, four.width), dtype=np.float32)
        install = ContextRequest(tiny.TASK, settings, four.fingerprint, Context(vectors, basis, assignment.layers.start), "c")
        assert client.handle(install) == ContextReply()
        update = client.handle(UpdateRequest("c", 0, 0, 2, assignment.initial))
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


def test_the_bytes_that_are_told_are_the_bytes_that_are_sent(four: Backbone) -> None:
    sections = {"injection": {"from_depth": 0.5}, "subspace": {"rank": 2}, "holdout": {"selection": 0.25}}
    settings = RunSettings.model_validate(
        {"task": tiny.TASK, "model": {"source": "tiny", "dtype": "float32"}, "data": {"clients": {"a": "a.jsonl"}}, **sections}
    )
    whole = settings.model_copy(update={"injection": method({}).injection})
    told, all_told = (expected_bytes(each, four.shape, ("a",)) for each in (settings, whole))
    reply = real(four)[0].handle(VectorsRequest(tiny.TASK, settings.method, four.fingerprint, ""))
    assert abs(told["vectors_reply_up"] - len(encode(reply))) < 130  # the head of a ledger
    assert all_told["vectors_reply_up"] - told["vectors_reply_up"] == 2 * 2 * 2 * four.width * 4
    assert all_told["update_reply_up"] - told["update_reply_up"] == 2 * 2 * (2 * 4 + 4 * 2)
    assert any("layers above 0.5 of its depth" in line for line in what_leaves(settings.method))


@each_span
def test_the_coordinator_takes_the_injected_layers_and_no_others(
    injection: dict[str, Any], layers: range, four: Backbone
) -> None:
    checks = Checks(Assignment(tiny.TASK, method(injection), shape_of(four)))
    for held in range(1, LAYERS + 2):
        means = np.ones((2, held, 2, four.width), dtype=np.float32)
        values = Coefficients.identity(Form(held, 2))
        vectors = VectorsReply(ContextVectors(means, np.ones(2, dtype=np.int64)), "", True, "float32", "float32")
        gradient = GradientReply(gradient_of(values))
        assert checks.is_usable_vectors(vectors) is (held == len(layers))
        assert checks.is_usable_update(UpdateReply(values, 3, 1.0)) is (held == len(layers))
        assert checks.is_usable_gradient(gradient) is (held == len(layers))


def test_the_coordinator_takes_no_coefficients_that_the_wire_cannot_hold(four: Backbone) -> None:
    checks = Checks(Assignment(tiny.TASK, method({}), shape_of(four)))
    values = Coefficients.identity(Form(LAYERS, 2))
    assert values.core is not None
    assert checks.is_usable_update(UpdateReply(values, 3, 1.0))
    assert not checks.is_usable_update(UpdateReply(replace(values, core=np.full_like(values.core, 1e30)), 3, 1.0))


def gradient_of(values: Coefficients) -> Any:
    from ifedicl.core.aggregation import GradientSum

    return GradientSum(values.arrays, 3, 1.0)


@pytest.mark.parametrize("held", [range(4), range(1, 3), range(3, 4), range(2)], ids=str)
def test_a_client_takes_no_context_of_other_layers(four: Backbone, held: range) -> None:
    settings, client = method({"from_depth": 0.5}), real(four)[0]
    assert isinstance(client, Client)

    def install(layers: range) -> Any:
        vectors = np.ones((len(layers), 2, four.width), dtype=np.float32)
        context = Context(vectors, np.zeros((len(layers), 2, 2, four.width), dtype=np.float32), layers.start)
        return client.handle(ContextRequest(tiny.TASK, settings, four.fingerprint, context, "c"))

    assert install(range(2, 4)) == ContextReply()
    refused = client.handle(UpdateRequest("c", 0, 0, 2, Coefficients.identity(Form(len(held) + (len(held) == 2), 2))))
    assert refused == Failure(FailureCode.BAD_REQUEST)
    assert install(held) == Failure(FailureCode.BAD_REQUEST)


def test_a_context_says_where_it_begins_on_its_way() -> None:
    context = Context(np.ones((2, 2, 4), dtype=np.float32), first_layer=3)
    request = ContextRequest(tiny.TASK, tiny.method(), "f" * 64, context, "c")
    again = ContextRequest.from_wire(*request.to_wire())
    assert again.context.layers == context.rounded("float16").layers == range(3, 5)
    for wrong in (-1, "3", None, 1.0):
        with pytest.raises(ValueError, match="first_layer: received"):
            replace(context, first_layer=wrong)  # type: ignore[arg-type]


def test_what_is_written_says_where_it_begins_and_is_as_before_where_that_is_the_first(four: Backbone, tmp_path: Path) -> None:
    adapter = tiny.drawn_adapter(four, rank=2)
    half = cut(adapter, range(2, 4))
    header, _ = adapter.header_and_tensors()
    assert header["format_version"] == 1
    assert "first_layer" not in header
    half.save(tmp_path / "half")
    written = json.loads((tmp_path / "half" / "adapter.json").read_text())
    assert (written["format_version"], written["first_layer"]) == (2, 2)
    again = Adapter.load(tmp_path / "half")
    assert again.context.layers == range(2, 4)
    assert again.context.digest == half.context.digest
    assert "2 layers × 2 writes × 32, from layer 2 on" in (tmp_path / "half" / "README.md").read_text()


@pytest.mark.parametrize("first_layer", [None, -1, "2", 2.0])
def test_a_format_that_begins_nowhere_is_refused(four: Backbone, first_layer: object) -> None:
    header, tensors = cut(tiny.drawn_adapter(four), range(2, 4)).header_and_tensors()
    with pytest.raises(AdapterError, match="do not fit each other"):
        Adapter.unpacked({**header, "first_layer": first_layer}, tensors, source="here")


def test_layers_that_the_model_does_not_have_are_refused(four: Backbone) -> None:
    half = cut(tiny.drawn_adapter(four), range(2, 4))
    beyond = replace(half, context=replace(half.context, first_layer=3))
    with pytest.raises(AdapterError, match="beyond the model's 4"):
        beyond.classifier(four)
    weights = np.zeros((2, 2 * four.width + 3), dtype=np.float32)
    assert replace(half, readout=Readout(weights, LAYERS)).classifier(four)
    with pytest.raises(AdapterError, match="beyond the model's 4"):
        replace(half, readout=Readout(weights, LAYERS + 1)).classifier(four)


@each_span
def test_an_adapter_written_before_says_the_same(
    four: Backbone, tmp_path: Path, injection: dict[str, Any], layers: range
) -> None:
    """It held all layers, identity where nothing is injected, and no word of where it begins."""
    half = cut(tiny.drawn_adapter(four, rank=2), layers)
    half = replace(half, provenance={"method": method(injection).model_dump(mode="json")})
    context, coefficients = everywhere(half.context, half.coefficients)
    replace(half, context=context, coefficients=coefficients).save(tmp_path / "before")
    before = Adapter.load(tmp_path / "before")
    assert before.context.layers == range(LAYERS)
    texts = [row.text for row in tiny.examples(9)]
    ours, theirs = (each.classifier(four).log_probabilities(texts) for each in (half, before))
    np.testing.assert_array_equal(ours, theirs)
    own, other = (personalise(each, tiny.examples(20, seed=5), four, steps=8) for each in (half, before))
    assert own.comparison == other.comparison


@each_span
@pytest.mark.parametrize("rank", [0, 2])
def test_the_fold_of_some_layers_is_exact(
    four: Backbone, tmp_path: Path, injection: dict[str, Any], layers: range, rank: int
) -> None:
    assert injection is not None
    adapter = cut(tiny.drawn_adapter(four, rank=rank), layers)
    row = torch.tensor([[5, 17, 250, 33, 61]])
    with torch.no_grad(), applied(four, adapter.context, adapter.coefficients):
        expected = four.model(input_ids=row).logits.log_softmax(dim=-1)
    adapter.export(tmp_path / "out", four)
    with torch.no_grad():
        folded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        torch.testing.assert_close(folded(input_ids=row).logits.log_softmax(dim=-1), expected, rtol=1e-4, atol=1e-4)
        plain = four.model(input_ids=row).logits.log_softmax(dim=-1)
    assert (expected - plain).abs().max() > 1e-2


def test_adapters_of_other_layers_share_a_pass(four: Backbone) -> None:
    spans = (range(2, 4), range(2), range(1, 3), range(4))  # earlier versions wrote adapters that end below the top
    adapters = [cut(tiny.drawn_adapter(four, rank=rank, seed=rank), layers) for rank, layers in enumerate(spans)]
    classifiers = [adapter.classifier(four) for adapter in adapters]
    prompt = classifiers[0]._scorer.encoder.prompts(["bread on the table"]).tokens[0]
    mixed = mixed_log_probabilities(four, [Asked(each.placed()[0], prompt) for each in classifiers])
    for own, classifier in zip(mixed, classifiers, strict=True):
        np.testing.assert_allclose(own, classifier.log_probabilities(["bread on the table"])[0], atol=1e-5)


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


def test_signatures_compare_the_same_layers_and_are_told_apart_by_scope(four: Backbone) -> None:
    centre = reference(four, "label")
    assert centre.shape == (LAYERS, 2, four.width)
    vectors = np.random.default_rng(0).normal(size=centre.shape).astype(np.float32)
    half = signature(Context(vectors[2:], first_layer=2), centre)
    only_there = centre.copy()
    only_there[2:] = vectors[2:]
    # The layers below, which are not sent, count as the reference does; each layer has directions of its own.
    np.testing.assert_allclose(half, signature(Context(only_there), centre), atol=1e-6)
    assert abs(float(half @ signature(Context(vectors[:2]), centre))) < 0.5
    with pytest.raises(ValueError, match="not of one model"):
        signature(Context(vectors, first_layer=2), centre)

    def key(injection: dict[str, Any]) -> TaskKey:
        return TaskKey.of("clinics", "f" * 64, tiny.TASK, method(injection))

    keys = [key(injection) for injection, _ in SPANS.values()]
    assert len({own.digest for own in keys}) == len({own.scope for own in keys}) == len(SPANS)
    assert key({"context_scale": 0.2}) == key({})


def test_a_start_from_other_layers_is_none(four: Backbone) -> None:
    old, new = (cut(tiny.drawn_adapter(four, rank=2), layers) for layers in (range(2), range(2, 4)))
    with pytest.raises(ValueError, match="layers: received"):
        warm_start(old.coefficients, old.context, new.coefficients, new.context, 2)


def ask(store: Store, backbone: Backbone, settings: Method, task: Task = tiny.TASK) -> Answer:
    """A request with two clients."""

    def calibrated(starter: Starter) -> runs.Federated:
        examples = {"a": tiny.examples(12, task=task), "b": tiny.examples(12, task=task, seed=1)}
        clients = runs.simulate(backbone, task, examples)
        return runs.federate(clients, ModelSettings(source="tiny"), task, settings, options=runs.RunOptions(starter=starter))

    key = TaskKey.of("clinics", backbone.fingerprint, task, settings)
    return requests.request(store, key, settings, calibrated, lambda: reference(backbone, "label"))[0]


def test_the_cache_answers_with_the_same_layers_only(four: Backbone, tmp_path: Path) -> None:
    related = tiny.TASK.model_copy(update={"name": "weather", "template": "Text: {text}\n\nMood:"})
    whole, half = method({}), method({"from_depth": 0.5})
    store = open_store(str(tmp_path / "tasks.sqlite"))
    assert ask(store, four, whole).found.kind == "miss"
    assert ask(store, four, half).found.kind == "miss"
    found = ask(store, four, half)
    assert found.found.kind == "exact"
    assert found.adapter.context.layers == range(2, 4)
    near = ask(store, four, half, related)
    assert near.found.neighbour is not None
    assert near.found.neighbour.entry.id == found.entry.id
    # One from before, brought in by hand: all layers in its arrays, the same depths in its settings.
    context, coefficients = everywhere(found.adapter.context, found.adapter.coefficients)
    before = replace(found.adapter, context=context, coefficients=coefficients)
    key = TaskKey.of_adapter("banks", before)
    store.put(key, before, signature(context, reference(four, "label")))
    other = replace(TaskKey.of("banks", four.fingerprint, related, half))
    search = requests._Search(store, other, half, lambda: reference(four, "label"))
    assert search.start(near.adapter.context, near.adapter.coefficients) is None
    assert search.found.kind == "miss"
    store.close()


def test_an_audit_attacks_what_would_be_sent(four: Backbone) -> None:
    scorer, rows, settings = Scorer(four, tiny.TASK), tiny.examples(70), method({"from_depth": 0.5})
    half = Evidence.of(scorer, rows[:35], rows[35:], settings, updates=20)
    whole = Evidence.of(scorer, rows[:35], rows[35:], method({}), updates=20)
    np.testing.assert_array_equal(half.private.vectors, whole.private.vectors[:, 2:])
    assert half.private_updates.shape == (20, 2 * 2 * 2)
    tables = attacked(half, four, trials=20, seed=0, epsilons=(1.0,))
    where = {str(row["where"]) for row in tables["words"] if row["attacker"] == "nearest token"}
    assert where <= {f"layer {layer}{below}" for layer in (3, 4) for below in ("", " and all below")}


def test_pictures_number_the_layers_as_the_model_does(four: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, float]] = []

    def kept(figure: Figure) -> str:
        shown.extend(axes.get_xlim() for axes in figure.axes if axes.get_title(loc="left"))
        return ""

    monkeypatch.setattr(report, "svg", kept)
    for layers in (range(4), range(2, 4)):
        report._coefficients_picture(cut(tiny.drawn_adapter(four), layers))
    assert shown == [(-0.5, 3.5)] * 2 + [(1.5, 3.5)] * 2
