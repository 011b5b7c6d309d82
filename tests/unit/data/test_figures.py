"""Figures against known values."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from ifedicl.confidence import Confidence
from ifedicl.metrics import Evaluation, Tally, mean_hits, paired_p, wilson


def _evaluation(truth: list[int], predicted: list[int], labels: tuple[str, ...] = ("a", "b", "c")) -> Evaluation:
    hits = np.array(truth) == np.array(predicted)
    return Evaluation(labels, np.array(truth), np.array(predicted), 0.5, Confidence(np.full(len(truth), 0.5), hits, 0.5))


def test_confusion_counts_true_labels_by_row() -> None:
    evaluation = _evaluation([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2])
    assert evaluation.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert evaluation.accuracy == pytest.approx(4 / 6)
    assert evaluation.hits.tolist() == [1, 1, 0, 1, 0, 1]


def test_macro_f1_by_hand() -> None:
    # a: precision 1, recall 2/3, F1 0.8; b: 1/2, 1/2, F1 0.5; c: 1/2, 1, F1 2/3.
    assert _evaluation([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]).macro_f1 == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_macro_f1_leaves_out_a_label_that_occurs_nowhere_and_counts_one_never_hit() -> None:
    assert _evaluation([0, 1, 0, 1], [0, 1, 0, 1]).macro_f1 == 1.0  # c occurs nowhere
    assert _evaluation([0, 0], [2, 2]).macro_f1 == 0.0
    assert _evaluation([0, 0, 1], [0, 0, 2]).macro_f1 == pytest.approx(1 / 3)


def test_wilson_intervals_are_those_of_the_formula() -> None:
    def formula(successes: int, trials: int) -> tuple[float, float]:
        z, share = 1.959963984540054, successes / trials
        middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
        return middle - half, middle + half

    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    for successes, trials in ((1, 3), (50, 100), (999, 1_000)):
        assert wilson(successes, trials) == pytest.approx(formula(successes, trials), abs=1e-9)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert _evaluation([0] * 10, [0] * 8 + [1] * 2).interval == wilson(8, 10)


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided: the chance of a difference at least this large under random signs."""
    total = wins + losses
    return sum(comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= abs(wins - losses)) / 2.0**total


@pytest.mark.parametrize(("wins", "losses", "ties"), [(5, 0, 0), (6, 1, 3), (0, 4, 1), (3, 3, 2), (8, 1, 1)])
def test_the_p_value_of_hits_is_that_of_the_exact_sign_test(wins: int, losses: int, ties: int) -> None:
    first = [1] * wins + [0] * losses + [1] * ties
    second = [0] * wins + [1] * losses + [1] * ties
    assert paired_p(first, second) == pytest.approx(_sign_test(wins, losses), abs=1e-9)
    assert paired_p(second, first) == pytest.approx(_sign_test(wins, losses), abs=1e-9)


def test_the_p_value_of_many_examples_is_close_and_repeatable() -> None:
    first, second = np.array([1] * 30 + [0] * 14 + [1] * 60), np.array([0] * 30 + [1] * 14 + [1] * 60)
    value = paired_p(first, second)
    assert value == pytest.approx(_sign_test(30, 14), abs=0.006)
    assert value == paired_p(first, second)


def test_two_methods_that_agree_everywhere_do_not_differ() -> None:
    assert paired_p([1, 0, 1], [1, 0, 1]) == 1.0


def test_tallies_add_up_and_an_empty_one_has_no_figure() -> None:
    total = Tally(3, 2, 1.5) + Tally(1, 0, 0.5) + Tally()
    assert total == Tally(4, 2, 2.0)
    assert (total.accuracy, total.loss) == (0.5, 0.5)
    assert np.isnan(Tally().accuracy)
    assert np.isnan(Tally().loss)


def test_mean_hits_are_per_example() -> None:
    first, second = _evaluation([0, 1, 2, 0], [0, 1, 0, 1]), _evaluation([0, 1, 2, 0], [0, 0, 0, 0])
    assert mean_hits([first, second]).tolist() == [1.0, 0.5, 0.0, 0.5]
