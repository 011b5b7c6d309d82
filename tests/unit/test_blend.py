"""The blend of readouts and label words, by held-out loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ifedicl.core.blend import SHARES, blended, mixes
from ifedicl.core.readout import TEMPERATURES, Readout, log_softmax

HIDDEN, CLASSES = 5, 3
STATES = np.random.default_rng(1).normal(size=(40, HIDDEN))
LOGS = log_softmax(2 * np.random.default_rng(2).normal(size=(40, CLASSES)))
READOUTS = tuple(
    Readout(np.random.default_rng(seed).normal(size=(CLASSES, HIDDEN + CLASSES + 1)).astype(np.float32), (1,))
    for seed in (3, 4)
)
COUNT = 1 + len(READOUTS) * len(TEMPERATURES) * len(SHARES)


def _losses(labels: npt.NDArray[np.int64]) -> list[float]:
    """Of the label words and each mix, summed over all rows."""
    tried: list[npt.NDArray[Any]] = [LOGS, *(mix.log_probabilities(STATES, LOGS) for mix in mixes(READOUTS))]
    return [float(-logs[np.arange(len(labels)), labels].sum()) for logs in tried]


def test_a_mix_adds_the_label_words_to_a_readout() -> None:
    readout, share = READOUTS[0], 0.5
    scores = 4.0 * readout.log_probabilities(STATES, LOGS).astype(np.float64) + share * LOGS
    np.testing.assert_allclose(readout.mixed(4.0, share).log_probabilities(STATES, LOGS), log_softmax(scores), atol=1e-4)
    np.testing.assert_allclose(readout.mixed(0.0, 1.0).log_probabilities(STATES, LOGS), LOGS, atol=1e-5)


def test_without_evidence_half_of_the_weight_is_on_the_label_words() -> None:
    blend = blended(READOUTS, [0.0] * COUNT)
    assert blend is not None
    assert blend.pooled_layers == (1,)
    words = READOUTS[0].mixed(0.0, 1.0).weights
    caution = np.array([1 / temperature for _ in READOUTS for temperature in TEMPERATURES for _ in SHARES])
    rest = sum(weight * mix.weights for weight, mix in zip(caution / caution.sum(), mixes(READOUTS), strict=True))
    np.testing.assert_allclose(blend.weights, words / 2 + rest / 2, atol=1e-5)


def test_evidence_moves_the_blend_to_the_best_mix_without_a_jump() -> None:
    best = mixes(READOUTS)[13]
    distances = []
    for nats in np.linspace(0.0, 30.0, 31):
        blend = blended(READOUTS, [0.0 if place == 14 else nats for place in range(COUNT)])
        assert blend is not None
        distances.append(float(np.abs(blend.weights - best.weights).max()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 * distances[0]
    assert -np.diff(distances).min() > 0
    assert np.abs(np.diff(distances)).max() < 0.3 * distances[0], "one nat of evidence is no cliff"


def test_label_words_that_are_better_beyond_doubt_are_used_alone() -> None:
    assert blended(READOUTS, [0.0, *[20.0] * (COUNT - 1)]) is None
    assert blended(READOUTS, [0.0, *[2.0] * (COUNT - 1)]) is not None


def test_huge_losses_are_no_overflow() -> None:
    blend = blended(READOUTS, [1e9, *[1e9 + 5.0] * (COUNT - 1)])
    assert blend is not None
    assert np.isfinite(blend.weights).all()


def test_the_blend_loses_little_more_than_the_best_of_all_on_the_examples_that_chose_it() -> None:
    for seed in range(20):
        labels = np.random.default_rng(seed).integers(0, CLASSES, size=40)
        losses = _losses(labels)
        blend = blended(READOUTS, losses)
        logs = LOGS if blend is None else blend.log_probabilities(STATES, LOGS)
        own = float(-logs[np.arange(40), labels].sum())
        assert own <= min(losses) + np.log(2 * COUNT * TEMPERATURES[-1])


@pytest.mark.parametrize("count", [0, COUNT - 1, COUNT + 1])
def test_another_number_of_losses_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"received {count}; allowed: {COUNT}"):
        blended(READOUTS, [0.0] * count)
