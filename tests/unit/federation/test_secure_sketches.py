"""Readout sums in secure sums, in few bits: the total is open mode's to a few steps, and a sum is made again if it must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.vectors import Array64
from ifedicl.federation.messages import BeginRequest, Failure, StatisticsReply, StatisticsRequest, decode_request
from ifedicl.federation.reply_sums import Total, flat
from ifedicl.federation.secure.short_form import OtherFormError
from ifedicl.federation.secure.sketches import Sketches
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.settings import TOGETHER
from tests.support.engines import RecordingEngine
from tests.support.readouts import directions_of, sums_of
from tests.support.secure import REPEATABLE, REQUESTS, RULES, behind, drawn_client, secure_job, total_in_form

MIXED = np.random.default_rng(9).normal(size=(40, 40)) / 6


def drawn(examples: int, seed: int, offset: float = 0.0) -> StatisticsReply:
    """Sums over correlated features of about a unit, ``offset`` units off."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(examples, 40)) @ MIXED + offset
    return StatisticsReply(sums_of(rows, draw.integers(0, 2, examples), directions=12))


def together(replies: list[StatisticsReply]) -> ReadoutSums:
    total = Total(StatisticsReply)
    for reply in replies:
        total.add(reply)
    assert total.reply is not None
    return total.reply.sums


def centred(sums: ReadoutSums) -> Array64:
    return sums.sketch - np.outer(sums.moment.sum(axis=1), sums.along) / sums.examples


@REPEATABLE
@given(st.integers(1, 30), st.integers(0, 1000), st.sampled_from((0.0, 0.5, 40.0)))
def test_the_total_is_that_of_open_mode_to_less_than_chance_wherever_the_means_are(
    clients: int, seed: int, offset: float
) -> None:
    """Means of 40 units are 1,600 times the range of the sketch."""
    replies = [drawn(12 + (seed + place) % 40, seed + place, offset) for place in range(clients)]
    plain = together(replies)
    bits = (plain.examples - 1).bit_length()
    total = total_in_form(Sketches(bits), replies).sums
    np.testing.assert_array_equal(total.counts, plain.counts)
    grids = Sketches(bits).form({"sketch": (1,), "moment": (1,)}).parts
    step = {name: grid.step for name, (_, grid) in grids.items()}
    np.testing.assert_allclose(total.moment, plain.moment, atol=clients * step["moment"])
    means = float(np.abs(plain.along).max()) / plain.examples  # they carry the moments' rounding over
    np.testing.assert_allclose(centred(total), centred(plain), atol=clients * (step["sketch"] + 2 * step["moment"] * means))
    if not offset:
        error = float(np.sqrt(np.square(centred(total) - centred(plain)).mean()))
        assert error < 1.3 * step["sketch"] * np.sqrt(clients / 6), "roundings by chance do not add up"
    np.testing.assert_allclose(total.units.scale, 1.0, atol=2e-3)


def test_the_readout_of_a_secure_sum_answers_as_that_of_open_sums() -> None:
    replies = [drawn(100, place) for place in range(8)]
    directions = directions_of(40, 2, directions=12)
    ours, plain = (sums.solve(directions)[2] for sums in (total_in_form(Sketches(10), replies).sums, together(replies)))
    rows = np.append(np.random.default_rng(5).normal(size=(500, 40)) @ MIXED, np.ones((500, 1)), axis=1)
    scores = [rows @ np.diff(readout.weights, axis=0)[0] for readout in (ours, plain)]
    assert np.corrcoef(*scores)[0, 1] > 0.97


def test_a_resumed_client_rounds_as_before() -> None:
    first, second = (flat(Sketches(8).apart(drawn(20, 3))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_more_examples_than_were_said_need_another_form() -> None:
    with pytest.raises(OtherFormError) as caught:
        total_in_form(Sketches(5), [drawn(20, place) for place in range(3)])
    assert caught.value.weight_bits == 6


def test_the_form_needs_a_number_of_examples() -> None:
    asked = REQUESTS["statistics"]
    assert isinstance(asked, StatisticsRequest)
    assert Sketches.of(asked) is None
    assert Sketches.of(replace(asked, weight_bits=23)) is None
    assert Sketches.of(replace(asked, weight_bits=9)) == Sketches(9)
    assert Sketches.of(REQUESTS["gradient"]) is None


@pytest.mark.parametrize(("said", "tried"), [(9, [9]), (6, [6, 8]), (20, [20, 0])], ids=["enough", "too few", "far too many"])
def test_a_wrong_number_of_examples_costs_one_more_sum(said: int, tried: list[int]) -> None:
    """Each of four clients states 50; with 20 bits each has less than a 4096th, and the sums travel as they are."""
    asked = REQUESTS["statistics"]
    assert isinstance(asked, StatisticsRequest)
    replies = [drawn(50, place) for place in range(4)]
    rules = [lambda request, own=own: own if isinstance(request, StatisticsRequest) else None for own in replies]
    clients = [drawn_client(f"c{place}", rule) for place, rule in enumerate(rules)]
    engine = RecordingEngine(behind(clients))
    secure = SecureEngine(engine, RULES, secure_job().method.calibration)
    (delivery,) = secure.exchange({TOGETHER: replace(asked, weight_bits=said)}, 60.0, {})
    assert not isinstance(delivery.reply, Failure)
    assert isinstance(delivery.reply, StatisticsReply)
    assert delivery.reply.sums.examples == 200
    begun = [
        decode_request(each.request) for name, each, _ in engine.crossed if isinstance(each, BeginRequest) and name == "c0"
    ]
    assert [each.weight_bits for each in begun if isinstance(each, StatisticsRequest)] == tried
