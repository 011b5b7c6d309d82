"""No two replies differ by fewer examples than the policy says."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl.core.readout import ReadoutSums
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import Failure, FailureCode, Reply, StatisticsReply, VectorsRequest, decode_reply, encode
from ifedicl.ledger.ledger import read
from ifedicl.settings import Method
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import (
    BY_CLASS,
    GRADIENTS,
    METHOD,
    MODEL,
    QUICK,
    READOUT,
    asks,
    code,
    guarded,
    rules,
    usual,
    vectors,
)
from tests.support.scripted import ScriptedClient

# Differencing


def grown(guard: Asked, client: ScriptedClient, total: int, *, cursor: str = "", changed: bool = False) -> FailureCode | None:
    """Ask for vectors of ``total`` examples, all of them or those behind a cursor."""
    client.examples, client.mark = total, "y" if changed else "x"
    known = int(cursor.partition(":")[0] or 0)
    client.rule = lambda request: vectors((total - known,), cursor=client.cursor, replaces=known == 0)
    return code(guard.handle(VectorsRequest(tiny.TASK, METHOD, MODEL, cursor)))


@QUICK
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), whole=st.lists(st.booleans(), min_size=8, max_size=8))
def test_no_two_sets_of_vectors_differ_by_fewer_examples_than_the_policy_says(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], whole: list[bool]
) -> None:
    """All vectors again, or those of the added examples alone: either could be subtracted."""
    guard, client = guarded(tmp_path_factory.mktemp("site"), rules(least={"new_examples": 5}))
    left: list[int] = []
    for total, again in zip(sorted(sizes), whole, strict=False):
        cursor = "" if again or not left else f"{left[-1]}:x"
        if grown(guard, client, total, cursor=cursor) is None:
            left.append(total)
    different = sorted(set(left))
    assert all(later - earlier >= 5 for earlier, later in pairwise(different))
    assert left[0] == sorted(sizes)[0]


def test_the_same_vectors_may_leave_again(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path, rules(least={"new_examples": 5}))
    assert [grown(guard, client, 20) for _ in range(3)] == [None] * 3


def test_vectors_of_changed_examples_are_refused_also_after_a_restart(tmp_path: Path) -> None:
    policy = rules(least={"new_examples": 5})
    guard, client = guarded(tmp_path, policy)
    assert grown(guard, client, 20) is None
    guard, client = guarded(tmp_path, policy)
    assert grown(guard, client, 30, changed=True) is FailureCode.REFUSED


@pytest.mark.parametrize("sections", [{"seed": 1}, {"holdout": {"selection": 0.26}}])
def test_another_split_of_the_same_examples_is_refused(tmp_path: Path, sections: dict[str, Any]) -> None:
    guard, client = guarded(tmp_path, rules(least={"new_examples": 5}))
    assert grown(guard, client, 20) is None
    assert code(guard.handle(asks(tiny.method(**sections))["vectors"])) is FailureCode.REFUSED
    lenient, _ = guarded(tmp_path, rules())
    assert code(lenient.handle(asks(tiny.method(**sections))["vectors"])) is None


def test_an_answer_compares_with_those_in_a_ledger_of_an_earlier_version(tmp_path: Path) -> None:
    """The digest of the split still ends with 1: into how many parts each class was divided."""
    guard, client = guarded(tmp_path, rules())
    assert grown(guard, client, 20) is None
    facts = read(tmp_path / "ledger.jsonl")[0][-1].facts
    assert facts["examples"]["split"] == hashlib.sha256(b"[0, 0.25, 0.0, 1]").hexdigest()[:16]


def test_the_coordinator_hashes_what_arrived_and_not_what_it_made_of_it(tmp_path: Path) -> None:
    """Sums of features that hardly vary are not encoded twice with the same last bits."""
    draw = np.random.default_rng(0)
    rows = np.concatenate([7.0 + 1e-4 * draw.normal(size=(30, 6)), np.ones((30, 1))], axis=1)
    reply = StatisticsReply(ReadoutSums.of(rows, draw.integers(0, 2, 30), 2))
    arrived = decode_reply(encode(reply))
    assert encode(arrived) != encode(reply)
    guard, _ = guarded(tmp_path, rule=lambda request: reply if request.kind == "statistics" else usual(request))
    engine = LocalEngine([guard.endpoint])
    list(engine.exchange({"clinic": asks(READOUT)["context"]}, 60.0, {}))
    (delivery,) = engine.exchange({"clinic": asks(READOUT)["statistics"]}, 60.0, {})
    assert delivery.receipt is not None
    assert delivery.receipt.sha256 == read(tmp_path / "ledger.jsonl")[0][-1].facts["sha256"]


@pytest.mark.parametrize(
    ("method", "asked", "answer"),
    [
        (BY_CLASS, "vectors", vectors((15, 15))),
        (READOUT, "statistics", StatisticsReply(ReadoutSums(np.eye(5), np.ones((5, 2)), 30))),
    ],
)
@pytest.mark.parametrize(("second", "expected"), [((), None), ((29,), FailureCode.TOO_FEW), ((26, 27, 28, 29), None)])
def test_no_class_differs_from_an_earlier_answer_by_fewer_than_a_group(
    tmp_path: Path, method: Method, asked: str, answer: Reply, second: tuple[int, ...], expected: FailureCode | None
) -> None:
    """Ten examples are new; of the second class none, one alone, or four."""
    guard, client = guarded(tmp_path, rules(least={"new_examples": 8, "group": 4}))
    client.rule = lambda request: answer if request.kind == asked else usual(request)
    client.seconds = (*range(10), *second)
    for examples, wanted in ((20, None), (30, expected)):
        client.examples = examples
        guard.handle(asks(method)["context"])
        assert code(guard.handle(asks(method)[asked])) is wanted


@pytest.mark.parametrize(("method", "asked"), [(READOUT, "statistics"), (GRADIENTS, "gradient")])
def test_sums_of_every_kind_are_compared_with_what_left_before(tmp_path: Path, method: Method, asked: str) -> None:
    """Also after a restart, and also where examples were changed."""
    policy = rules(least={"new_examples": 8})
    for examples, mark, expected in (
        (20, "x", None),
        (20, "x", None),
        (21, "x", FailureCode.TOO_FEW),
        (28, "x", None),
        (40, "y", FailureCode.REFUSED),
    ):
        guard, client = guarded(tmp_path, policy)
        client.examples, client.mark = examples, mark
        guard.handle(asks(method)["context"])
        assert code(guard.handle(asks(method)[asked])) is expected


def test_another_draw_of_the_same_examples_is_refused(tmp_path: Path) -> None:
    """A round with a hair more of them holds the same ones and one more."""
    guard, _ = guarded(tmp_path, rules(least={"new_examples": 8}))
    for draw, expected in ((0.5, None), (0.51, FailureCode.REFUSED)):
        method = tiny.method(server={"update": "gradient", "draw": draw})
        guard.handle(asks(method)["context"])
        assert code(guard.handle(asks(method)["gradient"])) is expected


def test_a_context_that_a_client_could_not_take_may_be_sent_again(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    client.rule = lambda request: Failure(FailureCode.INTERNAL)
    guard.handle(asks()["context"])
    assert code(guard.handle(asks()["update"])) is FailureCode.NO_CONTEXT
    client.rule = usual
    assert code(guard.handle(asks()["context"])) is None
    assert code(guard.handle(asks()["update"])) is None
