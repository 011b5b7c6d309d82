"""Refinements of a readout's sums: what is asked for, what travels, and how near they bring the solution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ifedicl.core.readout_sums import ReadoutSums, next_refinement
from ifedicl.core.refinement import Products, Refinement, orthonormal
from ifedicl.core.sketch import Directions
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64
from ifedicl.federation.messages import ProductsReply, decode_reply, encode
from ifedicl.federation.reply_sums import SUM_RULES, Total
from ifedicl.federation.secure.product_sums import ProductSums
from ifedicl.federation.secure.quantised import layout_of
from ifedicl.federation.secure.short_form import OtherFormError
from tests.support.readouts import asked_products, drawn_products
from tests.support.secure import total_in_form

FEATURES, CLASSES, COUNT = 120, 3, 400


def drawn(seed: int, *shape: int) -> Array64:
    """Random numbers of a seed."""
    return np.random.default_rng(seed).normal(size=shape)


_MIXED = drawn(11, COUNT, FEATURES) @ (drawn(12, FEATURES, FEATURES) / np.arange(1, FEATURES + 1)[:, None])
ROWS: Array64 = 1.0 + _MIXED / _MIXED.std(axis=0)
LABELS = (ROWS @ drawn(13, FEATURES, CLASSES)).argmax(axis=1)
UNITS = Units.none(FEATURES)


def refined(times: int, count: int = 8) -> tuple[ReadoutSums, Directions]:
    """The sums after so many refinements, as four clients send them."""
    directions = Directions.of([FEATURES - CLASSES], CLASSES, count, 0)
    sums = ReadoutSums.of(ROWS, LABELS, CLASSES, UNITS, directions)
    for _ in range(times):
        asked, total = next_refinement(sums, directions, CLASSES), Total(ProductsReply)
        for rows in np.array_split(ROWS, 4):
            reply = decode_reply(encode(ProductsReply(Products.of(rows, UNITS, asked))))
            assert isinstance(reply, ProductsReply)
            assert reply.sums.is_possible(asked)
            total.add(reply)
        assert total.reply is not None
        sums, directions = sums.refined(asked, total.reply.sums), directions.with_more(asked.directions)
    return sums, directions


def test_each_refinement_brings_the_solution_nearer_to_that_of_the_whole_matrix() -> None:
    whole, directions = refined(0, FEATURES * 2)
    middle = [np.float64(3.0) * np.ones(FEATURES)]
    expected = whole.weights(directions, middle)[0]
    errors = [np.linalg.norm(sums.weights(known, middle)[0] - expected) for sums, known in map(refined, range(4))]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.5 * errors[0]
    assert refined(3)[0].sketch.shape == (FEATURES, 8 + 3 * (CLASSES - 1)) == refined(3)[1].shape


def test_products_are_those_of_the_gram_matrix_whoever_holds_the_examples() -> None:
    asked = asked_products(FEATURES, 4)
    centred, directions = ROWS - asked.centre.astype(np.float64), asked.directions.astype(np.float64)
    parts = [Products.of(rows, UNITS, asked) for rows in np.array_split(ROWS, 3)]
    np.testing.assert_allclose(sum(part.products for part in parts), centred.T @ (centred @ directions), rtol=1e-9, atol=1e-6)
    assert sum(part.examples for part in parts) == COUNT


def test_products_of_other_examples_count_as_if_they_were_as_many() -> None:
    directions = Directions.of([FEATURES - CLASSES], CLASSES, 8, 0)
    sums = ReadoutSums.of(ROWS, LABELS, CLASSES, UNITS, directions)
    asked = next_refinement(sums, directions, CLASSES)
    answer = Products.of(ROWS, UNITS, asked)
    twice = Products(2 * answer.examples, 2 * answer.products)
    np.testing.assert_allclose(sums.refined(asked, answer).sketch, sums.refined(asked, twice).sketch, rtol=1e-12)


def test_refined_sums_hold_the_products_about_zero() -> None:
    sums, directions = refined(1)
    assert directions.refined is not None
    expected = ROWS.T @ (ROWS @ directions.refined)
    np.testing.assert_allclose(sums.sketch[:, 8:], expected, atol=0.02 * np.abs(expected).max())


def test_directions_are_orthonormal_to_those_before_and_lead_where_columns_are_few() -> None:
    known = np.linalg.qr(drawn(14, 50, 8))[0]
    solution = drawn(15, 50, 6) * np.array([9.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    few = orthonormal(solution, known, 2)
    assert few.shape == (50, 2)
    assert few.dtype == np.float16
    assert Refinement(np.zeros(50, np.float16), few).fits(50, 2)
    assert np.abs(known.T @ few.astype(np.float64)).max() < 1e-3
    outside = solution - known @ (known.T @ solution)
    kept = np.linalg.norm(few.astype(np.float64).T @ outside)
    assert kept > 0.9 * np.linalg.norm(np.linalg.svd(outside, compute_uv=False)[:2])
    assert orthonormal(known[:, :3], known, 3).shape[1] <= 3, "nothing but rounding is left"


def test_what_travels_is_within_a_127th_and_has_no_bias() -> None:
    sums = drawn_products(30)
    each = [Products.from_wire(30, sums.on_wire).products for _ in range(2)]
    np.testing.assert_array_equal(each[0], each[1])
    assert (np.abs(each[0] - sums.products) <= np.abs(sums.products).max(axis=0) / 127 * 1.001).all()
    errors = [
        Products.from_wire(40, moved.on_wire).products - moved.products
        for moved in (replace(sums, products=sums.products + shift) for shift in np.linspace(0, 0.1, 100))
    ]
    assert np.linalg.norm(sum(errors)) / 100 < 0.4 * np.linalg.norm(errors[0])


ASKED = asked_products()


@pytest.mark.parametrize(
    "products",
    [
        np.full((6, 2), np.nan),
        np.full((6, 2), 1e12),
        -drawn_products(30).products,
        drawn_products(30).products[:, ::-1],
        drawn_products(30).products[:5],
        drawn_products(30).products[:, :1],
    ],
    ids=["NaN", "huge", "negative", "not symmetric", "fewer features", "fewer directions"],
)
def test_products_that_no_examples_have_are_refused(products: Array64) -> None:
    assert drawn_products(30).is_possible(ASKED)
    assert not Products(30, products).is_possible(ASKED)
    assert not replace(drawn_products(30), examples=0).is_possible(ASKED)


@pytest.mark.parametrize(
    "changed",
    [
        {"directions": np.ones((6, 2), np.float16)},
        {"directions": np.full((6, 2), np.nan, np.float16)},
        {"directions": ASKED.directions * np.float16(100)},
        {"centre": np.full(6, 200.0, np.float16)},
        {"centre": np.full(6, np.inf, np.float16)},
        {"centre": np.zeros(5, np.float16)},
        {"directions": np.zeros((6, 0), np.float16)},
        {"directions": np.eye(6, 3, dtype=np.float16)},
    ],
)
def test_a_client_takes_a_few_orthonormal_directions_about_a_possible_centre(changed: dict[str, np.ndarray]) -> None:
    assert ASKED.fits(6, 2)
    assert not replace(ASKED, **changed).fits(6, 2)


def test_a_secure_sum_gives_the_same_products_in_13_bits() -> None:
    asked = asked_products(FEATURES, 4)
    replies = [ProductsReply(Products.of(rows, UNITS, asked)) for rows in np.array_split(ROWS, 5)]
    total, together = Total(ProductsReply), total_in_form(ProductSums(9), replies)
    for reply in replies:
        total.add(reply)
    assert total.reply is not None
    assert together is not None
    assert together.sums.examples == COUNT
    assert ProductSums(9).form(layout_of(SUM_RULES[ProductsReply].apart(replies[0]))).size == 6 + FEATURES * 4 * 13 / 8
    expected = total.reply.sums.products
    assert np.linalg.norm(together.sums.products - expected) < 0.1 * np.linalg.norm(expected)


def test_what_a_client_shortens_cannot_overflow() -> None:
    largest = ProductsReply(Products(128, np.full((6, 2), 1e9)))
    total = total_in_form(ProductSums(9), [largest] * 4)
    assert total is not None
    np.testing.assert_allclose(total.sums.products, 512 * 64, rtol=0.01)


def test_more_examples_than_were_said_ask_for_another_form() -> None:
    with pytest.raises(OtherFormError):
        total_in_form(ProductSums(5), [ProductsReply(drawn_products(12))] * 3)
