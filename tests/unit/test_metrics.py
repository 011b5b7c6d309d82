"""The gate's second question: do the adapter's answers have to do with the labels?"""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from ifedicl.metrics import Comparison


@pytest.fixture
def draw() -> np.random.Generator:
    """Of one test alone: what it draws does not depend on which tests ran before."""
    return np.random.default_rng(0)


def _logs(scores: np.ndarray) -> np.ndarray:
    logs: np.ndarray = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return logs


def _known(draw: np.random.Generator, truth: np.ndarray, strength: float, classes: int) -> np.ndarray:
    return _logs(draw.normal(size=(len(truth), classes)) + strength * np.eye(classes)[truth])


def test_parts_add_up_to_the_whole(draw: np.random.Generator) -> None:
    truth = draw.integers(0, 3, 60)
    ours, raw = _known(draw, truth, 1.0, 3), _known(draw, truth, 0.0, 3)
    parts = [Comparison.of(ours[rows], raw[rows], truth[rows].tolist()) for rows in np.array_split(np.arange(60), 4)]
    whole, summed = Comparison.of(ours, raw, truth.tolist()), reduce(Comparison.__add__, parts, Comparison())
    assert (summed.truth, summed.answers) == (whole.truth, whole.answers)
    assert summed.beats_chance is whole.beats_chance


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_answer_is_that_of_many_random_deals(draw: np.random.Generator, strength: float) -> None:
    """Where the share of random deals that do as well is not near 1%."""
    for _ in range(10):
        truth = draw.choice(4, size=40, p=[0.55, 0.25, 0.15, 0.05])
        logs = _known(draw, truth, strength, 4)
        answers = logs.argmax(axis=1)
        deals = (draw.permuted(np.tile(answers, (4_000, 1)), axis=1) == truth).sum(axis=1)
        share = float((deals >= (answers == truth).sum()).mean())
        if not 0.003 < share < 0.03:
            assert Comparison.of(logs, logs, truth.tolist()).beats_chance is (share < 0.01)


def test_doubting_everything_beats_a_sure_model_on_labels_that_mean_nothing_and_is_not_used(draw: np.random.Generator) -> None:
    """Labels drawn at random: the gate stays closed in nearly all draws, where better losses alone would open it."""
    opened, better = 0, 0
    for _ in range(200):
        truth = draw.integers(0, 5, 50)
        sure, doubting = _logs(3 * draw.normal(size=(50, 5))), _logs(0.1 * draw.normal(size=(50, 5)))
        comparison = Comparison.of(doubting, sure, truth.tolist())
        opened, better = opened + comparison.is_open, better + comparison.is_better
    assert better > 150
    assert opened <= 8


def test_always_the_same_answer_is_chance_however_often_it_is_right() -> None:
    truth = np.array([0] * 45 + [1] * 5)
    constant = _logs(np.tile([2.0, 0.0], (50, 1)))
    assert not Comparison.of(constant, constant, truth.tolist()).beats_chance
