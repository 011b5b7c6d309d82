"""Differential privacy: clip, noise and accountant against hand-made figures, scipy's distributions and the library's own ε."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ifedicl.dp.accountant import Budget, Release, epsilon, noise_multiplier
from ifedicl.dp.clipping import Bound, clipped, joint
from ifedicl.dp.skellam import Crowd, Shares, skellam
from ifedicl.errors import BudgetSpentError

# --- clip --------------------------------------------------------------------------------------------------------------


def test_a_long_row_is_scaled_and_a_short_one_is_left() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [np.nan, 1.0], [np.inf, 0.0]])
    np.testing.assert_allclose(clipped(rows, 2.0), [[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [0.0, 0.0]])


def test_one_clip_bounds_all_arrays_of_an_example_together() -> None:
    arrays = {"scales": np.array([[[3.0]], [[0.0]]]), "core": np.array([[4.0], [1.0]])}
    weights = {"scales": np.array([[1.0]]), "core": np.array([1.0])}
    row = clipped(joint(arrays, weights), 1.0)[0]
    np.testing.assert_allclose(row, [0.6, 0.8])


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 300), clip=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e3))
def test_one_example_more_never_moves_a_sum_beyond_the_sensitivity(seed: int, size: int, clip: float, scale: float) -> None:
    draw, bound = np.random.default_rng(seed), Bound(clip, size)
    rows = scale * draw.standard_normal((5, size))
    moved = bound.sum(rows) - bound.sum(rows[:-1])
    assert np.linalg.norm(moved) <= bound.sensitivity
    # Rounding costs something: this is not the bound of the numbers before it.
    assert bound.sensitivity > clip / bound.step


def test_sums_on_the_grid_are_exact_in_float32_and_in_every_order() -> None:
    draw, bound = np.random.default_rng(0), Bound(1.7, 40)
    rows = draw.standard_normal((1000, 40))
    whole = bound.sum(rows)
    parts = sum(bound.sum(part) for part in np.array_split(rows[::-1], 7))
    np.testing.assert_array_equal(whole, parts)
    assert math.log2(bound.step).is_integer()
    np.testing.assert_array_equal((whole * bound.step).astype(np.float32).astype(np.float64) / bound.step, whole)


# --- noise -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.5, 3.0, 40.0])
def test_noise_is_skellam_as_scipy_has_it(variance: float) -> None:
    drawn = skellam(200_000, variance, np.random.default_rng(1))
    values = np.arange(-int(4 * variance**0.5) - 2, int(4 * variance**0.5) + 3)
    expected = stats.skellam(variance / 2, variance / 2).pmf(values) * len(drawn)
    counts = np.array([(drawn == value).sum() for value in values])
    enough = expected > 20
    chi = float(((counts - expected)[enough] ** 2 / expected[enough]).sum())
    assert stats.chi2.sf(chi, int(enough.sum())) > 1e-4


def test_the_widest_noise_that_is_drawn_is_as_wide_as_it_says() -> None:
    drawn = skellam(100_000, 2.0**44, np.random.default_rng(2))
    assert drawn.var() == pytest.approx(2.0**44, rel=0.02)
    assert stats.kstest(drawn, stats.norm(0, 2.0**22).cdf).pvalue > 1e-4
    with pytest.raises(ValueError, match="allowed: 0 to"):
        skellam(1, 2.0**56, np.random.default_rng(2))


def _summed_noise(clients: int, variance: float, crowd: Crowd) -> np.ndarray:
    return sum((Shares({"gradient": variance}, crowd)("gradient", 20_000) for _ in range(clients)), np.zeros(20_000, np.int64))


def test_shares_of_the_fewest_survivors_add_up_to_the_whole_noise() -> None:
    variance = 5e4
    noise = _summed_noise(5, variance, Crowd(survivors=5))
    assert noise.var() == pytest.approx(variance, rel=0.06)
    p = stats.kstest(noise, stats.norm(0, math.sqrt(variance)).cdf).pvalue  # so wide a Skellam is normal to this test
    assert p > 1e-4


def test_a_sum_lacks_noise_if_one_client_leaves_its_share_out() -> None:
    variance, crowd = 5e4, Crowd(survivors=5)

    def has_enough(noise: np.ndarray) -> bool:
        return bool(noise.var() > variance * (1 - 5 * math.sqrt(2 / len(noise))))

    assert has_enough(_summed_noise(5, variance, crowd))
    assert not has_enough(_summed_noise(4, variance, crowd))


def test_noise_is_enough_without_the_shares_that_colluders_tell() -> None:
    variance, crowd = 5e4, Crowd(survivors=6, colluders=2)
    assert _summed_noise(4, variance, crowd).var() == pytest.approx(variance, rel=0.06)
    assert _summed_noise(6, variance, crowd).var() == pytest.approx(1.5 * variance, rel=0.06)


@pytest.mark.parametrize(("survivors", "colluders"), [(3, 3), (1, 2), (0, 0), (3, -1)])
def test_a_crowd_without_an_unknown_share_is_refused(survivors: int, colluders: int) -> None:
    with pytest.raises(ValueError, match="fewer than the"):
        Crowd(survivors, colluders)


def test_nothing_leaves_that_no_noise_was_planned_for() -> None:
    with pytest.raises(KeyError):
        Shares({"gradient": 1.0}, Crowd(2))("vectors", 3)


def test_two_clients_never_draw_the_same_noise() -> None:
    first, second = (Shares({"gradient": 1e6}, Crowd(2))("gradient", 100) for _ in range(2))
    assert not np.array_equal(first, second)


# --- accountant --------------------------------------------------------------------------------------------------------

FINE = 2.0**14
"""Steps in a clip: so fine that Skellam noise costs what Gaussian noise does."""


def _release(multiplier: float, times: int = 1, size: int = 120) -> Release:
    return Release(size, FINE, (multiplier * FINE) ** 2, times)


@pytest.mark.parametrize(("multiplier", "times", "delta"), [(4.0, 1, 1e-5), (12.0, 10, 1e-5), (30.0, 30, 1e-6)])
def test_epsilon_is_the_librarys_own_of_gaussian_noise_as_wide(multiplier: float, times: int, delta: float) -> None:
    library = rdp.RdpAccountant()
    library.compose(dp_accounting.GaussianDpEvent(multiplier), times)
    assert epsilon([_release(multiplier, times)], delta) == pytest.approx(library.get_epsilon(delta), rel=0.02)


@pytest.mark.parametrize("steps", [4.0, 40.0, 4000.0])
@pytest.mark.parametrize("multiplier", [0.7, 3.0, 10.0])
def test_the_bound_holds_for_the_exact_divergence_of_shifted_skellam_numbers(steps: float, multiplier: float) -> None:
    variance, shift = (multiplier * steps) ** 2, int(steps)
    accountant = rdp.RdpAccountant([2, 3, 5, 8])
    accountant.compose(Release(1, steps, variance).event)
    values = np.arange(-int(14 * variance**0.5) - 40, int(14 * variance**0.5) + 41 + 9 * shift)
    law = stats.norm(0, variance**0.5) if variance > 1e6 else stats.skellam(variance / 2, variance / 2)
    pmf = law.logpdf if variance > 1e6 else law.logpmf
    here, there = pmf(values), pmf(values - shift)
    for order, bound in zip((2, 3, 5, 8), accountant.rdp, strict=True):
        whole = np.isfinite(here) & np.isfinite(there)
        exact = np.log(np.exp(order * there[whole] - (order - 1) * here[whole]).sum()) / (order - 1)
        assert exact <= bound * (1 + 1e-6)


def test_rounds_and_vectors_compose_as_in_the_library() -> None:
    vectors, rounds = _release(9.0, size=240), _release(14.0, times=8)
    library = rdp.RdpAccountant([*range(2, 65), 80, 96, 128, 192, 256, 512, 1024])
    library.compose(dp_accounting.ComposedDpEvent([vectors.event, dp_accounting.SelfComposedDpEvent(rounds.event, 8)]))
    assert epsilon([vectors, rounds], 1e-5) == pytest.approx(library.get_epsilon(1e-5), rel=1e-9)
    assert epsilon([vectors, rounds], 1e-5) > max(epsilon([vectors], 1e-5), epsilon([rounds], 1e-5))


def test_coarse_grids_cost_more() -> None:
    assert epsilon([Release(34_560, 3.0, 90.0)], 1e-5) > 1.05 * epsilon([_release(90**0.5 / 3)], 1e-5)


@pytest.mark.parametrize("target", [1.0, 4.0, 8.0])
def test_noise_is_as_little_as_the_target_allows(target: float) -> None:
    multiplier = noise_multiplier(target, 1e-5, lambda noise: [_release(noise, 10)])
    assert epsilon([_release(multiplier, 10)], 1e-5) <= target
    assert epsilon([_release(0.99 * multiplier, 10)], 1e-5) > target


def test_a_full_width_vector_drowns_as_the_docs_say() -> None:
    # 400 examples, ε = 1, δ = 1e-5, the 34,560 numbers of SmolLM2-135M: the classical Gaussian figure is 1.7 times the clip.
    noise = dp_accounting.get_sigma_gaussian(1.0, 1e-5) * math.sqrt(34_560) / 400
    assert noise == pytest.approx(1.7, abs=0.05)


def test_a_budget_is_spent_release_by_release_and_then_stops() -> None:
    budget, sent = Budget(2.0, 1e-5), 0
    while sent < 1000 and epsilon([_release(20.0, sent + 1)], 1e-5) <= 2.0:
        budget = budget.after(_release(20.0))
        sent += 1
    with pytest.raises(BudgetSpentError, match="privacy budget"):
        budget.after(_release(20.0))
    assert 0 < sent < 1000
    assert len(budget.spent) == sent
    assert budget.spent_epsilon <= 2.0 < epsilon([_release(20.0, sent + 1)], 1e-5)


def test_a_budget_goes_on_where_a_ledger_left_it() -> None:
    budget = Budget(2.0, 1e-5).after(_release(20.0, 3))
    kept: list[dict[str, Any]] = [asdict(release) for release in budget.spent]
    assert Budget(2.0, 1e-5, tuple(Release(**entry) for entry in kept)) == budget
    assert Budget(2.0, 1e-5).spent_epsilon == 0
