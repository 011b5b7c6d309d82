"""Aggregation against lying clients: each rule against other code for the same, and whole runs with liars in them.

The runs are of scripted clients on a landscape that is known: a client's loss is the distance of the coefficients from where
its examples would have them. So a sunk adapter is a number, and the server's logic alone is asked about.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from _landscape import FORM, NAMES, SHAPE, Landscape
from _liars import LIES, Colluding
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.robust import Trust, bounded_mean, median, robust_coefficients, robust_vectors, trimmed_mean, trusted_clients
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.errors import FederationError
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.messages import EvaluateReply, EvaluateRequest, Reply, Request, VectorsReply
from ifedicl.metrics import Tally
from ifedicl.settings import Method
from tests.support import tiny

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=80)
numbers = arrays.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.floats(-1e6, 1e6))


# Rules against oracles


@REPEATABLE
@given(numbers, st.integers(0, 5))
def test_the_trimmed_mean_is_scipys(values: np.ndarray, cut: int) -> None:
    cut = min(cut, (len(values) - 1) // 2)
    np.testing.assert_allclose(
        trimmed_mean(values, cut), stats.trim_mean(values, (cut + 0.5) / len(values) if cut else 0.0), rtol=1e-9, atol=1e-6
    )


@REPEATABLE
@given(numbers)
def test_the_median_is_the_middle_of_the_sorted_column(values: np.ndarray) -> None:
    count = len(values)
    for column, middle in zip(values.T, median(values), strict=True):
        ordered = sorted(column)
        assert middle == pytest.approx((ordered[(count - 1) // 2] + ordered[count // 2]) / 2)


@REPEATABLE
@given(numbers)
def test_the_bounded_mean_is_the_mean_of_rows_shortened_one_by_one(values: np.ndarray) -> None:
    centre = np.linspace(-1, 1, values.shape[1])
    distances = [float(np.sqrt(((row - centre) ** 2).sum())) for row in values]
    longest = float(np.median(distances))
    shortened = [
        row if distance <= longest else centre + (row - centre) * (longest / distance)
        for row, distance in zip(values, distances, strict=True)
    ]
    np.testing.assert_allclose(bounded_mean(values, centre), np.mean(shortened, axis=0), rtol=1e-9, atol=1e-6)


def test_rows_of_one_length_are_not_shortened() -> None:
    values = np.random.default_rng(0).normal(size=(7, 4))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    np.testing.assert_allclose(bounded_mean(values, np.zeros(4)), values.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(bounded_mean(np.zeros((3, 4)), np.zeros(4)), np.zeros(4))


@REPEATABLE
@given(
    arrays.arrays(np.float64, (8, 3), elements=st.floats(-1e3, 1e3)),
    arrays.arrays(np.float64, (2, 3), elements=st.floats(-1e30, 1e30)),
    st.permutations(range(10)),
)
def test_whatever_two_of_ten_say_the_result_stays_among_the_honest(
    honest: np.ndarray, lies: np.ndarray, order: list[int]
) -> None:
    values, trust = np.concatenate([honest, lies])[order], Trust(0.2)
    for result in (trimmed_mean(values, trust.most_liars(10)), median(values)):
        slack = 1e-9 * np.abs(honest).max(initial=1.0)
        assert (result >= honest.min(axis=0) - slack).all()
        assert (result <= honest.max(axis=0) + slack).all()
    # A bounded mean cannot be moved further than the liars' share of a bound that is among the honest lengths.
    moved = np.linalg.norm(bounded_mean(values, np.zeros(3)))
    assert moved <= np.linalg.norm(honest, axis=1).max() * (1 + 1e-9)


@pytest.mark.parametrize(
    ("liars", "clients", "expected"), [(0.2, 10, 2), (0.2, 4, 1), (0.2, 2, 0), (0.2, 1, 0), (0.49, 10, 4), (0.1, 10, 1)]
)
def test_as_many_liars_are_expected_as_the_settings_say_and_fewer_than_half(liars: float, clients: int, expected: int) -> None:
    assert Trust(liars).most_liars(clients) == expected


def test_coefficients_are_joined_number_by_number_in_their_own_shapes() -> None:
    draw = np.random.default_rng(0)
    form = Form(3, 2)
    updates = [
        Coefficients.of({name: draw.normal(size=shape).astype(np.float32) for name, shape in form.shapes.items()})
        for _ in range(5)
    ]
    before = Coefficients.identity(form)
    joined = robust_coefficients(before, updates, "median", Trust(0.2))
    for name in form.shapes:
        np.testing.assert_array_equal(joined.arrays[name], np.median([own.arrays[name] for own in updates], axis=0))
    bounded = robust_coefficients(before, [updates[0]] * 3, "bounded", Trust(0.2))
    for name in form.shapes:
        np.testing.assert_allclose(bounded.arrays[name], updates[0].arrays[name], atol=1e-6)


def vectors_with(counts: tuple[int, ...], value: float) -> ContextVectors:
    return ContextVectors.from_wire(np.full((len(counts), 2, 2, 3), value, dtype=np.float32), np.array(counts))


@pytest.mark.parametrize("rule", ["trimmed", "median", "bounded"])
def test_vectors_are_joined_among_those_that_hold_a_class(rule: Any) -> None:
    clients = [vectors_with((4, 4), 1.0)] * 5 + [vectors_with((4, 0), 1.0)] * 3 + [vectors_with((4, 4), -1e6)] * 2
    joined = robust_vectors(clients, rule, Trust(0.2))
    np.testing.assert_array_equal(joined.counts, [1, 1])
    assert np.abs(joined.means - 1).max() < (1e-9 if rule != "bounded" else 1.0)


def test_a_class_that_liars_could_be_the_majority_of_is_left_out() -> None:
    clients = [vectors_with((4, 2), 1.0)] * 2 + [vectors_with((4, 0), 1.0)] * 6 + [vectors_with((4, 4), -9.0)] * 2
    joined = robust_vectors(clients, "median", Trust(0.2))
    np.testing.assert_array_equal(joined.counts, [1, 0])


def test_who_is_best_or_worst_or_claims_too_many_examples_has_no_say() -> None:
    scores = {name: (float(place),) for place, name in enumerate("abcdefghij")}
    examples = dict.fromkeys(scores, 10) | {"e": 10**9}
    assert trusted_clients(scores, examples, Trust(0.2)) == ["c", "d", "f", "g", "h"]
    assert trusted_clients({}, {}, Trust(0.2)) == []
    few = {"a": (1.0,), "b": (2.0,), "c": (3.0,)}
    assert trusted_clients(few, {"a": 1, "b": 3, "c": 1}, Trust(0.2)) == ["b"]
    assert trusted_clients(few, {"a": 1, "b": 4, "c": 1}, Trust(0.2)) == ["a", "c"]
    assert trusted_clients({"a": (1.0,)}, {"a": 3}, Trust(0.2)) == ["a"]


# Settings


@pytest.mark.parametrize(
    "sections",
    [
        {"weighting": "examples"},
        {"server": {"update": "gradient"}},
        {"readout": {}},
        {"rounds": {"client_fraction": 0.5}},
    ],
)
def test_what_one_client_alone_could_decide_does_not_go_with_robust(sections: dict[str, Any]) -> None:
    tiny.method(**sections)
    with pytest.raises(Exception, match=r"\[robust\] does not go with"):
        tiny.method(robust={}, **sections)


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(Exception, match=r"weighting.*\[readout\]"):
        tiny.method(robust={}, weighting="examples", readout={})


def test_sums_that_hide_what_each_says_do_not_go_with_robust() -> None:
    sections: dict[str, Any] = {"weighting": "examples"}
    tiny.method(privacy={"mode": "secure"}, **sections)
    with pytest.raises(Exception, match="shows sums only"):
        tiny.method(privacy={"mode": "secure"}, robust={}, **sections)


# Runs with liars

LIARS = ("i", "j")
_ROUNDS = 8


def method_of(robust: dict[str, Any] | None, *, gate: float = 0.0, by: str = "loss") -> Method:
    sections: dict[str, Any] = {"rounds": {"rounds": _ROUNDS, "select_by": by}, "holdout": {"selection": 0.2, "gate": gate}}
    method = tiny.method(injection={"context_scale": 0.1}, **sections)
    return method if robust is None else tiny.method(injection={"context_scale": 0.1}, robust=robust, **sections)


def colluding(**options: Any) -> Colluding:
    return Colluding(Landscape(), LIARS, **options)


def run(engine: Any, method: Method) -> Outcome:
    return Coordinator(engine, tiny.TASK, method, SHAPE).run()


def honest_loss(outcome: Outcome, *, fallback: bool = True) -> tuple[float, float]:
    """Mean over the honest of what came out, and of zero-shot."""
    coefficients = outcome.coefficients if fallback else outcome.state.best
    return honest_mean(coefficients, outcome), honest_mean(Coefficients.identity(FORM), outcome)


def honest_mean(coefficients: Coefficients, outcome: Outcome) -> float:
    vectors = outcome.context.vectors.astype(np.float64)
    return float(np.mean([Landscape().loss(name, coefficients, vectors) for name in NAMES if name not in LIARS]))


ROBUST: dict[str, dict[str, Any]] = {rule: {"rule": rule} for rule in ("trimmed", "median", "bounded")}


def test_without_liars_the_mean_learns() -> None:
    ours, raw = honest_loss(run(Landscape(), method_of(None)))
    assert ours < raw / 3


def test_the_mean_is_sunk_by_two_of_ten() -> None:
    """Else the tests below could not fail."""
    ours, raw = honest_loss(run(colluding(updates=LIES["flipped, a thousandfold"]), method_of(None)))
    assert ours > 10 * raw
    ours, raw = honest_loss(run(colluding(vectors=LIES["flipped, a thousandfold"]), method_of(None)))
    assert ours > 10 * raw


def test_under_praise_the_gate_of_a_mean_opens_for_a_sunk_adapter() -> None:
    method = method_of(None, gate=0.2)
    praised = run(colluding(updates=LIES["flipped, a thousandfold"]), method)
    assert praised.gate is not None
    assert praised.gate.is_open
    assert honest_loss(praised)[0] > 10 * honest_loss(praised)[1]
    silent = run(colluding(updates=LIES["flipped, a thousandfold"], praise=False), method)
    assert silent.chosen_round == 0, "the honest clients' held-out examples say so before the gate does"
    assert silent.coefficients.is_identity


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("robust", ROBUST)
def test_two_of_ten_that_lie_about_updates_do_not_sink_a_robust_run(robust: str, lie: str) -> None:
    ours, raw = honest_loss(run(colluding(updates=LIES[lie]), method_of(ROBUST[robust])))
    assert ours < raw


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("robust", ROBUST)
def test_two_of_ten_that_lie_about_vectors_do_not_sink_a_robust_run(robust: str, lie: str) -> None:
    ours, raw = honest_loss(run(colluding(vectors=LIES[lie]), method_of(ROBUST[robust])))
    assert ours < raw


@pytest.mark.parametrize("robust", ROBUST)
def test_two_of_ten_that_lie_about_all_at_once_do_not_sink_a_robust_run(robust: str) -> None:
    flipped = LIES["flipped, a thousandfold"]
    ours, raw = honest_loss(run(colluding(updates=flipped, vectors=flipped), method_of(ROBUST[robust])))
    assert ours < raw


@pytest.mark.parametrize("robust", ROBUST)
def test_without_liars_a_robust_run_learns_nearly_as_well(robust: str) -> None:
    ours, raw = honest_loss(run(Landscape(), method_of(ROBUST[robust])))
    assert ours < raw / 3


def test_praise_does_not_open_a_robust_gate_for_a_bad_adapter() -> None:
    """Twice as many liars as are expected, so the adapter is sunk; the middle of the clients still says so."""
    outcome = run(
        colluding(updates=LIES["flipped, a thousandfold"]),
        method_of({"rule": "trimmed", "liars": 0.05}, gate=0.2, by="last"),
    )
    assert honest_loss(outcome, fallback=False)[0] > honest_loss(outcome, fallback=False)[1]
    assert outcome.gate is not None
    assert not outcome.gate.is_open
    assert outcome.coefficients.is_identity


def test_praise_does_not_choose_the_round() -> None:
    """Liars call the first round the best by far, and no client that is believed does."""

    class First(Landscape):
        asked = 0

        def answer(self, name: str, request: Request) -> Reply:
            if name not in LIARS or not isinstance(request, EvaluateRequest):
                return super().answer(name, request)
            self.asked += 1  # zero-shot and the first round, by two of them
            many = 2**20
            return EvaluateReply((Tally(many, many, 0.0) if self.asked <= 4 else Tally(many, 0, many * 5.0),))

    assert run(First(), method_of(None)).chosen_round == 1
    assert run(First(), method_of(ROBUST["median"])).chosen_round >= _ROUNDS - 2


def test_an_update_of_layers_that_are_not_injected_is_not_believed() -> None:
    """Honest clients would refuse such coefficients, and one liar would end the run."""
    method = method_of(ROBUST["bounded"])
    method = method.model_copy(update={"injection": method.injection.model_copy(update={"from_depth": 0.5})})

    class Upper(Landscape):
        def __init__(self) -> None:
            super().__init__()
            self._writes = self._context = self._writes[1:]
            self._goals = {name: goal[1:] for name, goal in self._goals.items()}
            self._vectors = {name: own[1:] for name, own in self._vectors.items()}

    def of_all_layers(honest: Array64, _before: Array64) -> Array64:
        said: Array64 = np.concatenate([honest[0], honest[0]])
        return said

    outcome = run(Colluding(Upper(), LIARS, updates=of_all_layers, praise=False), method)
    refused = {(item.client, item.failure) for item in outcome.state.traffic if item.failure}
    assert refused == {("i", "bad_reply"), ("j", "bad_reply")}
    assert outcome.coefficients.scales.shape == (1, 2, 2)
    assert outcome.context.layers == range(1, 2)


def test_where_no_class_can_be_out_voted_the_run_says_so() -> None:
    class Apart(Landscape):
        """Every client holds a class of its own."""

        def answer(self, name: str, request: Request) -> Reply:
            reply = super().answer(name, request)
            if not isinstance(reply, VectorsReply):
                return reply
            means = reply.vectors.means.repeat(2, axis=0)
            counts = np.array([10, 0]) if NAMES.index(name) < 5 else np.array([0, 10])
            return replace(reply, vectors=ContextVectors.from_wire(means, counts))

    method = method_of({"liars": 0.45})
    method = method.model_copy(update={"vectors": method.vectors.model_copy(update={"balance": "class"})})
    with pytest.raises(FederationError, match="no class has examples at enough of the 10 clients"):
        run(Apart(), method)
