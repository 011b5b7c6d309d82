"""The gate's second question: does a classifier know more than the labels' shares?"""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from scipy import stats

from ifedicl.metrics import Comparison, LabelLosses

DRAW = np.random.default_rng(0)


def _logs(scores: np.ndarray) -> np.ndarray:
    logs: np.ndarray = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return logs


def test_sums_over_parts_are_those_of_the_whole_and_give_the_bound_of_a_paired_test() -> None:
    truth = DRAW.integers(0, 3, 60)
    logs = _logs(DRAW.normal(size=(60, 3)) + 1.2 * np.eye(3)[truth])
    parts = [LabelLosses.of(logs[rows], truth[rows]) for rows in np.array_split(np.arange(60), 4)]
    whole, summed = LabelLosses.of(logs, truth), reduce(LabelLosses.__add__, parts, LabelLosses())
    assert summed.counts == whole.counts
    np.testing.assert_allclose(summed.sums, whole.sums)
    guesses = -np.log(np.bincount(truth) / 60)[truth]
    test = stats.ttest_rel(guesses, -logs[np.arange(60), truth], alternative="greater")
    assert whole.beat_guessing is bool(test.pvalue < 0.05)


@pytest.mark.parametrize("strength", [0.0, 0.4, 0.8, 1.6])
def test_the_answer_is_that_of_the_library(strength: float) -> None:
    for _ in range(20):
        truth = DRAW.integers(0, 4, 40)
        logs = _logs(DRAW.normal(size=(40, 4)) + strength * np.eye(4)[truth])
        guesses = -np.log(np.maximum(np.bincount(truth, minlength=4), 1) / 40)[truth]
        test = stats.ttest_rel(guesses, -logs[np.arange(40), truth], alternative="greater")
        assert LabelLosses.of(logs, truth).beat_guessing is bool(test.pvalue < 0.05)


def test_doubting_everything_beats_a_sure_model_on_labels_that_mean_nothing_and_is_not_used() -> None:
    """Labels drawn at random: the gate stays shut in nearly all draws, where better losses alone would open it."""
    opened, better = 0, 0
    for _ in range(200):
        truth = DRAW.integers(0, 5, 50)
        sure, doubting = _logs(3 * DRAW.normal(size=(50, 5))), _logs(0.1 * DRAW.normal(size=(50, 5)))
        comparison = Comparison.of(doubting, sure, list(truth))
        opened, better = opened + comparison.is_open, better + comparison.is_better
    assert better > 150
    assert opened <= 20


@pytest.mark.parametrize("truth", [[], [1], [1, 1, 1]])
def test_too_little_to_tell_is_not_better_than_guessing(truth: list[int]) -> None:
    assert not LabelLosses.of(_logs(np.zeros((len(truth), 2))), truth).beat_guessing
