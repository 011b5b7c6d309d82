"""Rows of several adapters in one pass say what they say apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ifedicl.adapter import Classifier
from ifedicl.backbone.hooks import Injection, injected_by_row
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Asked, Placed, mixed_batches, mixed_log_probabilities
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from tests.support import tiny
from tests.support.placed import placed_of

TEXTS = [f"{sentence} {' and so on' * (number % 4)}" for number, sentence in enumerate(tiny.SENTENCES)]


def mixed(backbone: Backbone, rows: list[Asked]) -> list[np.ndarray]:
    """The log-probabilities of all rows, batch after batch, in the order given."""
    result: list[np.ndarray] = [np.empty(0)] * len(rows)
    for batch in mixed_batches(rows):
        for position, logs in zip(batch, mixed_log_probabilities(backbone, [rows[p] for p in batch]), strict=True):
            result[position] = logs
    return result


def interleaved(placed: list[tuple[Classifier, Placed]]) -> list[Asked]:
    """Each text asked of one after another, in turn."""
    rows = []
    for number, text in enumerate(TEXTS * len(placed)):
        classifier, own = placed[number % len(placed)]
        rows.append(Asked(own, classifier.scorer.encoder.prompts([text]).tokens[0]))
    return rows


@pytest.mark.parametrize("case", ["llama", "opt", "gpt2", "gemma2", "bloom"])
def test_adapters_mixed_in_one_batch_say_what_they_say_apart(case: str) -> None:
    backbone = tiny.family_backbone(case)
    draws = np.random.default_rng(5)
    readout = Readout(draws.normal(size=(2, backbone.width + 3)).astype(np.float32))
    adapters = [
        tiny.drawn_adapter(backbone, tiny.TASK, seed=1),
        tiny.drawn_adapter(backbone, tiny.TASK, rank=4, seed=2),
        tiny.drawn_adapter(backbone, tiny.MANY_TOKENS, rank=2, seed=3),
        replace(tiny.drawn_adapter(backbone, tiny.TASK, seed=4), readout=readout),
    ]
    classifiers = [adapter.classifier(backbone) for adapter in adapters]
    rows = interleaved([(classifier, placed_of(classifier)[0]) for classifier in classifiers])
    together = mixed(backbone, rows)
    texts = TEXTS * len(adapters)
    for number, classifier in enumerate(classifiers):
        apart = classifier.log_probabilities(texts[number :: len(adapters)])
        own = np.stack(together[number :: len(adapters)])
        np.testing.assert_allclose(own, apart, atol=1e-4)
        assert (own.argmax(axis=1) == apart.argmax(axis=1)).all()
    first, second = (np.stack(together[number :: len(adapters)]) for number in (0, 1))
    assert np.abs(first - second).max() > 1e-2


def test_the_raw_model_and_its_adapter_share_a_pass(backbone: Backbone) -> None:
    adapter = tiny.drawn_adapter(backbone, tiny.TASK, rank=4)
    classifier = adapter.classifier(backbone)
    adapted, raw = placed_of(classifier)
    together = mixed(backbone, interleaved([(classifier, adapted), (classifier, raw)]))
    identity = replace(adapter, coefficients=Coefficients.identity(adapter.coefficients.form))
    expected = identity.classifier(backbone).log_probabilities((TEXTS * 2)[1::2])
    np.testing.assert_allclose(np.stack(together[1::2]), expected, atol=1e-5)


def test_rows_that_nothing_is_injected_into_are_untouched_to_the_bit(backbone: Backbone) -> None:
    adapter = tiny.drawn_adapter(backbone, tiny.TASK, rank=4)
    tokens = torch.arange(12).view(3, 4)
    injection = Injection.of(backbone, adapter.context, adapter.coefficients)
    with torch.inference_mode():
        plain = backbone.hidden_states(tokens)
        with injected_by_row(backbone, [(None, 1), (injection, 2)]):
            states = backbone.hidden_states(tokens)
        after = backbone.hidden_states(tokens)
    torch.testing.assert_close(states[0], plain[0], rtol=0, atol=0)
    assert (states[1:] - plain[1:]).abs().max() > 1e-2
    torch.testing.assert_close(after, plain, rtol=0, atol=0)  # and the hooks are gone


def test_batches_hold_every_row_once_with_one_adapters_rows_together(backbone: Backbone) -> None:
    classifiers = [
        tiny.drawn_adapter(backbone, task, seed=seed).classifier(backbone)
        for seed, task in enumerate((tiny.TASK, tiny.MANY_TOKENS))
    ]
    placed = [(classifier, place) for classifier in classifiers for place in placed_of(classifier)]
    rows = interleaved(placed)
    batches = mixed_batches(rows)
    assert sorted(position for batch in batches for position in batch) == list(range(len(rows)))
    for batch in batches:
        owners = [id(rows[position].placed) for position in batch]
        assert sum(mine != theirs for mine, theirs in pairwise(owners)) == len(set(owners)) - 1
