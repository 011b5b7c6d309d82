"""Calibration error, Brier score and withheld answers, against figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ifedicl.confidence import Answered, Bin, Confidence
from ifedicl.metrics import Evaluation

# Three examples: sure and right, sure and wrong, unsure and right.
LOGS = np.log(np.array([[0.95, 0.03, 0.02], [0.91, 0.05, 0.04], [0.2, 0.5, 0.3]]))
TRUTH = [0, 1, 1]


def test_bins_hold_mean_confidence_and_accuracy() -> None:
    low, high = Confidence.of(LOGS, TRUTH).bins
    assert [(each.examples, each.accuracy) for each in (low, high)] == [(1, 1.0), (2, 0.5)]
    assert [low.confidence, high.confidence] == pytest.approx([0.5, 0.93])


def test_the_calibration_error_weighs_bins_by_examples() -> None:
    assert Confidence.of(LOGS, TRUTH).calibration_error == pytest.approx((1 * 0.5 + 2 * 0.43) / 3)


def test_the_brier_score_is_the_squared_distance_from_the_truth() -> None:
    expected = np.mean([0.05**2 + 0.03**2 + 0.02**2, 0.91**2 + 0.95**2 + 0.04**2, 0.2**2 + 0.5**2 + 0.3**2])
    assert Confidence.of(LOGS, TRUTH).brier == pytest.approx(expected)


def test_answers_that_are_as_often_right_as_they_are_sure_have_no_error() -> None:
    hits = np.arange(100) < 70
    assert Confidence(np.full(100, 0.7), hits, 0.4).calibration_error == pytest.approx(0.0, abs=1e-12)
    assert Confidence(np.full(100, 1.0), hits, 0.6).bins == [Bin(100, 1.0, 0.7)], "1 is in the last bin"


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.0, Answered(0.0, 3, 1.0, 2 / 3)),
        (0.5, Answered(0.5, 3, 1.0, 2 / 3)),
        (0.6, Answered(0.6, 2, 2 / 3, 0.5)),
        (0.93, Answered(0.93, 1, 1 / 3, 1.0)),
        (0.99, Answered(0.99, 0, 0.0, None)),
    ],
)
def test_unsure_answers_are_withheld(least: float, expected: Answered) -> None:
    given = Confidence.of(LOGS, TRUTH).answered(least - 1e-9)
    assert (given.examples, given.coverage, given.accuracy) == (expected.examples, expected.coverage, expected.accuracy)


def test_an_evaluation_states_both_figures() -> None:
    summary = Evaluation.of(("a", "b", "c"), LOGS, TRUTH).summary()
    assert summary["calibration_error"] == pytest.approx((0.5 + 0.86) / 3)
    assert summary["brier"] == pytest.approx(Confidence.of(LOGS, TRUTH).brier)


def test_no_example_has_no_figure() -> None:
    none = Confidence.of(np.zeros((0, 3)), [])
    assert none.bins == []
    assert np.isnan(none.brier)
    assert none.answered(0.5).accuracy is None
