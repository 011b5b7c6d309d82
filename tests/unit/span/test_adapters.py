"""Adapters of some layers: their files, folds, cache, audit and pictures."""

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

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.audit.suite import Evidence, run_attacks
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Asked, mixed_log_probabilities
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.warm_start import warm_start
from ifedicl.errors import AdapterError
from ifedicl.federation.coordinator import Starter
from ifedicl.kinds.classify import Task
from ifedicl.personal import personalise
from ifedicl.report import plots
from ifedicl.settings import Method, ModelSettings
from ifedicl.store import open_store, requests
from ifedicl.store.protocol import Store
from ifedicl.store.records import TaskKey
from ifedicl.store.requests import Answer
from ifedicl.store.signature import reference, signature
from tests.support import tiny
from tests.support.placed import placed_of
from tests.support.span import LAYERS, SPANS, cut, each_span, everywhere, method


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
    assert replace(half, readout=Readout(weights, (LAYERS,))).classifier(four)
    with pytest.raises(AdapterError, match="beyond the model's 4"):
        replace(half, readout=Readout(weights, (LAYERS + 1,))).classifier(four)


@each_span
def test_an_adapter_written_before_says_the_same(
    four: Backbone, tmp_path: Path, injection: dict[str, Any], layers: range
) -> None:
    """It had all layers, identity where nothing is injected, and no first layer."""
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
    prompt = classifiers[0].scorer.encoder.prompts(["bread on the table"]).tokens[0]
    mixed = mixed_log_probabilities(four, [Asked(placed_of(each)[0], prompt) for each in classifiers])
    for own, classifier in zip(mixed, classifiers, strict=True):
        np.testing.assert_allclose(own, classifier.log_probabilities(["bread on the table"])[0], atol=1e-5)


def test_signatures_compare_the_same_layers_and_differ_by_scope(four: Backbone) -> None:
    centre = reference(four, "label")
    assert centre.shape == (LAYERS, 2, four.width)
    vectors = np.random.default_rng(0).normal(size=centre.shape).astype(np.float32)
    half = signature(Context(vectors[2:], first_layer=2), centre)
    only_there = centre.copy()
    only_there[2:] = vectors[2:]
    # The layers below, which are not sent, count as the reference does; each layer has directions of its own.
    np.testing.assert_allclose(half, signature(Context(only_there), centre), atol=1e-6)
    assert abs(float(half @ signature(Context(vectors[:2]), centre))) < 0.5
    with pytest.raises(ValueError, match="the reference has"):
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
    tables = run_attacks(half, four, trials=20, seed=0, epsilons=(1.0,))
    where = {str(row["where"]) for row in tables["words"] if row["attacker"] == "nearest token"}
    assert where <= {f"layer {layer}{below}" for layer in (3, 4) for below in ("", " and all below")}


def test_pictures_number_the_layers_as_the_model_does(four: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, float]] = []

    def kept(figure: Figure) -> str:
        shown.extend(axes.get_xlim() for axes in figure.axes)
        return ""

    monkeypatch.setattr(plots, "svg", kept)
    for layers in (range(4), range(2, 4)):
        plots.coefficient_pictures(cut(tiny.drawn_adapter(four), layers))
    assert shown == [(-0.5, 3.5)] * 2 + [(1.5, 3.5)] * 2
