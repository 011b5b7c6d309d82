"""The sums of a readout: a sketch in place of the Gram matrix, what travels, and what nobody could have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.refinement import Products
from ifedicl.core.sketch import OWN, SUMMED, Directions, Gram
from ifedicl.core.units import LARGEST_FEATURE, Units
from ifedicl.core.vectors import Array64
from ifedicl.federation.messages import ProductsReply, StatisticsReply, decode_reply, encode
from ifedicl.federation.reply_sums import SUM_RULES, Total
from ifedicl.federation.secure.product_sums import ProductSums
from ifedicl.federation.secure.quantised import layout_of
from ifedicl.federation.secure.sketches import Sketches
from tests.support.readouts import asked_products, directions_of, drawn_sums, sums_of

LOW_RANK = np.random.default_rng(5).normal(size=(400, 8)) @ np.random.default_rng(6).normal(size=(8, 60))
LOW_RANK += 0.1 * np.random.default_rng(7).normal(size=(400, 60))
LABELS = (LOW_RANK[:, 0] > 0).astype(np.int64)


def gram_of(rows: Array64, directions: Directions) -> Gram:
    return Gram.of(rows.T @ directions.along(rows), np.square(rows).sum(axis=0), directions)


def test_directions_are_orthonormal_in_each_part_and_the_same_for_a_seed() -> None:
    directions = Directions.of([30, 30], 4, 24, 7)
    assert [block.shape for block in directions.blocks] == [(30, 10), (30, 10), (4, 4)]
    for block in directions.blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(block.shape[1]), atol=1e-12)
    np.testing.assert_array_equal(directions.blocks[0], Directions.of([30, 30], 4, 24, 7).blocks[0])
    assert (directions.blocks[0] != directions.blocks[1]).any()
    assert directions.shape == (64, 24)


def test_a_matrix_of_few_directions_follows_from_its_sketch_and_its_diagonal() -> None:
    gram, whole = gram_of(LOW_RANK, Directions.of([58], 2, 32, 0)), LOW_RANK.T @ LOW_RANK
    ours = gram.factor @ gram.factor.T + np.diag(gram.rest)
    np.testing.assert_allclose(np.diagonal(ours), np.diagonal(whole), rtol=1e-9)
    assert np.linalg.norm(ours - whole) < 0.02 * np.linalg.norm(whole)


def test_as_many_directions_as_features_give_the_whole_matrix() -> None:
    gram = gram_of(LOW_RANK[:, :6], Directions.of([4], 2, 100, 0))
    np.testing.assert_allclose(gram.factor @ gram.factor.T, LOW_RANK[:, :6].T @ LOW_RANK[:, :6], rtol=1e-8)
    np.testing.assert_allclose(gram.rest, 0.0, atol=1e-6)


def test_the_system_is_solved_as_if_the_matrix_had_been_made() -> None:
    gram, moment = gram_of(LOW_RANK, Directions.of([58], 2, 20, 0)), LOW_RANK.T @ np.eye(2)[LABELS]
    penalties = np.linspace(1.0, 9.0, 60)
    expected = np.linalg.solve(gram.factor @ gram.factor.T + np.diag(gram.rest + penalties), moment)
    np.testing.assert_allclose(gram.solve(moment, penalties), expected, rtol=1e-8)


@pytest.mark.parametrize("sketch", [-np.ones((60, 22)), 1e12 * np.ones((60, 22)), np.zeros((60, 22))])
def test_a_sketch_that_no_matrix_has_still_gives_a_system_that_can_be_solved(sketch: Array64) -> None:
    """The diagonal bounds what a lying client's sketch can say."""
    gram = Gram.of(sketch, np.ones(60), Directions.of([58], 2, 22, 0))
    assert (np.square(gram.factor).sum(axis=1) <= 1 + 1e-9).all()
    assert np.isfinite(gram.solve(np.ones((60, 2)), np.ones(60))).all()


def test_the_number_of_directions_follows_from_what_may_travel() -> None:
    several = [OWN.counts(2304 + classes, classes, 3, is_one_shot=True) for classes in (2, 4, 10, 150)]
    assert several == [(56, 1), (40, 3), (10, 6), (13, 11)]
    assert OWN.counts(2314, 10, 3, is_one_shot=False) == (64, 9)
    assert OWN.counts(2314, 10, 0, is_one_shot=True) == (46, 0)
    assert SUMMED.counts(2314, 10, 3, is_one_shot=True)[1] < OWN.counts(2314, 10, 3, is_one_shot=True)[1]


@pytest.mark.parametrize(
    ("width", "classes", "most"), [(576, 2, 100_000), (576, 4, 100_000), (576, 10, 100_000), (4096, 10, 600_000)]
)
def test_a_client_sends_100_kb_at_width_576_and_600_at_4096(width: int, classes: int, most: int) -> None:
    features = 4 * width + classes
    count, columns = OWN.counts(features, classes, 3, is_one_shot=True)
    rows = np.random.default_rng(0).normal(size=(30, features))
    sums = sums_of(rows, np.arange(30) % classes, classes, states=4, directions=count)
    asked = asked_products(features, columns)
    products = Products.of(rows, Units.none(features), asked)
    assert len(encode(StatisticsReply(sums))) + 3 * len(encode(ProductsReply(products))) <= most


@pytest.mark.parametrize(
    ("width", "classes", "most"), [(576, 4, 100_000), (576, 7, 100_000), (576, 10, 108_000), (4096, 10, 770_000)]
)
def test_and_about_as_much_in_a_secure_sum(width: int, classes: int, most: int) -> None:
    features, bits = 4 * width + classes, 10  # for about a thousand examples
    count, columns = SUMMED.counts(features, classes, 3, is_one_shot=True)
    sums = sums_of(np.ones((2, features)), np.array([0, 1]), classes, states=4, directions=count)
    form = Sketches(bits).form(layout_of(SUM_RULES[StatisticsReply].apart(StatisticsReply(sums))))
    refined = ProductSums(bits).form({"examples": (), "products": (features, columns)})
    assert form.size + 3 * refined.size <= most


def test_what_travels_are_the_same_sums_to_a_fourteenth_of_the_largest() -> None:
    sums = sums_of(LOW_RANK, LABELS)
    back = ReadoutSums.from_wire(sums.on_wire)
    assert back.examples == 400
    means = sums.moment / sums.counts
    assert (np.abs(back.moment / sums.counts - means) <= np.abs(means).max(axis=1, keepdims=True) / 126).all()
    for name in ("counts", "diagonal", "along"):
        ours, theirs = getattr(back, name), getattr(sums, name)
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-3 * np.abs(theirs).max(), err_msg=name)
    deviations = LOW_RANK.std(axis=0)[:, None]
    relative, largest = (back.sketch - sums.sketch) / deviations, np.abs(sums.sketch / deviations).max(axis=0)
    assert (np.abs(relative) <= largest / 7 * 1.1).all()


def test_rounding_adds_no_bias_to_the_sum_of_many_clients() -> None:
    """A hundred clients with the same small number would all round it to nothing."""
    clients = [sums_of(LOW_RANK[start : start + 40], LABELS[start : start + 40]) for start in range(0, 400, 4) if start <= 360]
    errors = [ReadoutSums.from_wire(sums.on_wire).sketch - sums.sketch for sums in clients]
    single, together = np.linalg.norm(errors[0]), np.linalg.norm(sum(errors)) / len(errors)
    assert together < 2.5 * single / np.sqrt(len(errors))


def test_a_message_is_the_same_each_time() -> None:
    reply = StatisticsReply(drawn_sums(30))
    assert encode(reply) == encode(StatisticsReply(drawn_sums(30)))
    assert encode(decode_reply(encode(reply))) is not None


def test_an_odd_number_of_directions_travels_too() -> None:
    sums = sums_of(LOW_RANK[:, :7], LABELS)
    assert sums.sketch.shape == (7, 7)
    assert ReadoutSums.from_wire(sums.on_wire).sketch.shape == (7, 7)


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": np.full((6, 2), 0x88, "u1")},
        {"steps": np.zeros((6, 3), "u1")},
        {"steps": np.full((6, 3), 0x80, "u1")},
        {"steps": np.full((6, 3), 8, "i1")},
        {"deviations": np.full(6, -1.0, "f2")},
        {"counts": np.array([-1, 5])},
        {"counts": np.ones(3, "i8")},
        {"means": np.ones((5, 2), "f2")},
        {"units": np.ones((1, 6), "f4")},
        {"along": np.ones(5, "f4")},
    ],
    ids=["few steps", "0", "half 0", "of another dtype", "negative", "negative count", "labels", "means", "units", "along"],
)
def test_arrays_that_do_not_fit_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"means|steps|allowed"):
        ReadoutSums.from_wire(drawn_sums(12).on_wire | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"diagonal": np.full(6, np.nan)},
        {"sketch": np.full((6, 6), np.inf)},
        {"moment": np.full((6, 2), 1e9)},
        {"diagonal": np.full(6, 1e12)},
        {"sketch": np.full((6, 6), 1e4)},
        {"along": np.full(6, -1e4)},
        {"diagonal": np.zeros(6)},
        {"counts": np.zeros(2)},
        {"counts": np.array([-3.0, 20.0])},
        {"units": Units(np.zeros(6), np.zeros(6))},
        {"units": Units(np.full(6, np.nan), np.ones(6))},
    ],
)
def test_sums_that_nobody_could_have_are_known(changed: dict[str, Any]) -> None:
    assert drawn_sums(30).is_possible
    assert ReadoutSums.from_wire(drawn_sums(30).on_wire).is_possible
    assert not replace(drawn_sums(30), **changed).is_possible


def test_a_feature_that_never_changes_and_one_without_end_are_survived() -> None:
    rows = LOW_RANK.copy()
    rows[:, 2], rows[:, 3] = 4.0, 1e30
    sums = sums_of(rows, LABELS)
    assert sums.is_possible
    assert sums.diagonal[3] == pytest.approx(400 * LARGEST_FEATURE**2)
    for readout in ReadoutSums.from_wire(sums.on_wire).solve(directions_of(60, 2)):
        assert np.isfinite(readout.weights).all()


def test_units_of_other_size_change_the_numbers_and_not_the_readout() -> None:
    rows = LOW_RANK * np.logspace(-2, 2, 60) + np.linspace(-50, 50, 60)
    whole, units = directions_of(60, 2), Units.of(rows[:16])
    framed = ReadoutSums.of(rows, LABELS, 2, units, whole)
    for ours, plain in zip(framed.solve(whole), sums_of(LOW_RANK, LABELS).solve(whole), strict=True):
        scores = np.append(rows, np.ones((400, 1)), axis=1) @ ours.weights.T.astype(np.float64)
        expected = np.append(LOW_RANK, np.ones((400, 1)), axis=1) @ plain.weights.T.astype(np.float64)
        np.testing.assert_allclose(scores, expected, atol=0.02)


def test_units_of_a_total_are_the_means_of_the_clients() -> None:
    total = Total(StatisticsReply)
    for scale in (1.0, 4.0):
        total.add(StatisticsReply(replace(drawn_sums(12), units=Units(np.full(6, scale), np.full(6, scale)))))
    assert total.reply is not None
    np.testing.assert_allclose(total.reply.sums.units.scale, 2.0)
    np.testing.assert_allclose(total.reply.sums.units.offset, 2.0)
    assert total.reply.sums.clients == 2
