"""Several threads over one model: every call gets what it gets alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl import Adapter, AdapterClassifier, pipeline
from ifedicl.backbone.load import Backbone, unfused_attention
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout, feature_count
from ifedicl.extract import context_vectors, example_writes
from ifedicl.serve.worker import Worker
from tests.support import tiny
from tests.support.placed import placed_of
from tests.support.serve import questions

TEXTS = list(tiny.SENTENCES)
Call = Callable[[], Any]


def _with_readout(adapter: Adapter, backbone: Backbone, *layers: int) -> Adapter:
    weights = np.random.default_rng(7).normal(size=(2, feature_count((1 + len(layers)) * backbone.width, 2) + 1))
    return replace(adapter, readout=Readout(weights.astype(np.float32), layers))


def _front_ends(backbone: Backbone) -> dict[str, Call]:
    """One call of each kind, with adapters that differ."""
    above = backbone.layers - 1
    first = _with_readout(tiny.drawn_adapter(backbone, rank=4), backbone, above)
    second = _with_readout(tiny.drawn_adapter(backbone, seed=4), backbone, 1, above)
    places = tiny.drawn_adapter(backbone, tiny.MANY_TOKENS, seed=5)
    shared, other, branching = (adapter.classifier(backbone) for adapter in (first, second, places))
    called = pipeline(second, backbone=backbone)
    fitted = AdapterClassifier(first, backbone=backbone).fit(TEXTS, ["good", "bad"] * 4)
    raw = Scorer(backbone, tiny.TASK)
    demonstrations = raw.encoded(tiny.examples(8))
    calibrated, turn = tiny.method(), ClientRound("a", 0, 0, 2)
    placed = placed_of(shared)

    def served() -> Any:
        worker = Worker(backbone, most_waiting=100, on_pass=lambda _rows, _seconds: None)
        try:
            return np.stack(worker.submit(placed, questions(TEXTS)).result(timeout=60).scores)
        finally:
            worker.stop()

    def steps() -> Any:
        start = Coefficients.identity(first.coefficients.form)
        return calibrate(raw, demonstrations, first.context, start, calibrated, turn).coefficients.scales

    return {
        "one adapter": lambda: shared.log_probabilities(TEXTS),
        "the same classifier again": lambda: shared.log_probabilities(TEXTS[:3]),
        "another adapter": lambda: other.log_probabilities(TEXTS),
        "label words of several tokens": lambda: branching.log_probabilities(TEXTS),
        "pipeline": lambda: [item["score"] for item in called(TEXTS)],
        "scikit-learn": lambda: fitted.predict_proba(TEXTS),
        "the raw model": lambda: raw.log_probabilities(raw.encoder.prompts(TEXTS)),
        "served": served,
        "a client's steps": steps,
        "context vectors": lambda: context_vectors(
            raw, demonstrations.prompts.tokens, demonstrations.labels, calibrated
        ).mean(),
    }


def _differing(calls: Mapping[str, Call], *, threads: int, times: int) -> list[str]:
    """Names of the calls that gave another value in company than alone."""
    alone = {name: np.asarray(call()) for name, call in calls.items()}
    begin = threading.Barrier(threads)

    def work(number: int) -> list[str]:
        names = list(calls)
        begin.wait()
        turns = [names[(number + turn) % len(names)] for turn in range(times)]
        return [name for name in turns if not np.allclose(np.asarray(calls[name]()), alone[name], rtol=1e-5, atol=1e-6)]

    with ThreadPoolExecutor(threads) as pool:
        return [name for names in pool.map(work, range(threads)) for name in names]


def test_four_threads_with_different_adapters_get_what_each_gets_alone(backbone: Backbone) -> None:
    assert _differing(_front_ends(backbone), threads=4, times=10) == []


@pytest.mark.soak
def test_eight_threads_get_the_right_values_for_a_long_time(backbone: Backbone) -> None:
    assert _differing(_front_ends(backbone), threads=8, times=150) == []


def test_a_half_read_generator_of_writes_does_not_keep_other_threads_waiting(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    scorer.budget = replace(scorer.budget, tokens=1)  # one pass for each demonstration
    encoded = scorer.encoded(tiny.examples(4))
    writes = example_writes(scorer, encoded.prompts.tokens, encoded.labels, tiny.method())
    next(writes)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: tiny.drawn_adapter(backbone).classifier(backbone).classify(TEXTS[:1])).result(timeout=30)
    assert len(list(writes)) == 3


def test_backbones_of_one_model_have_one_lock_and_those_of_two_models_two(backbone: Backbone) -> None:
    assert exclusive(backbone) is exclusive(replace(backbone, context_window=20))
    assert exclusive(backbone) is not exclusive(tiny.family_backbone("gpt2"))


def test_threads_that_call_a_new_adapter_load_its_model_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load(_settings: object) -> Backbone:
        loads.append(1)
        time.sleep(0.05)
        return backbone

    monkeypatch.setattr("ifedicl.backbone.load.load_backbone", load)
    adapter = tiny.drawn_adapter(backbone)
    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(lambda text: adapter.classify([text])[0].label, TEXTS[:4]))
    assert len(loads) == 1
    assert labels == [prediction.label for prediction in adapter.classify(TEXTS[:4])]


def test_one_thread_at_a_time_chooses_the_attention_of_the_process() -> None:
    """Two that overlap would put it back in the wrong order, and leave the process with plain attention for ever."""
    inside, leave, entered = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with unfused_attention():
            inside.set()
            leave.wait(20)

    def second() -> None:
        with unfused_attention():
            entered.set()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert inside.wait(20)
        other = pool.submit(second)
        assert not entered.wait(0.2)
        leave.set()
        one.result(20)
        other.result(20)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()
