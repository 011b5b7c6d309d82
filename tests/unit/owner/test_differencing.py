"""No two replies differ by fewer examples than the policy says."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.data import Role
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.messages import (
    CompareReply,
    EvaluateReply,
    Failure,
    FailureCode,
    JobRequest,
    Reply,
    Request,
    StatisticsReply,
    VectorsRequest,
    decode_reply,
    encode,
)
from ifedicl.ledger.ledger import read
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import Method
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.guarded import (
    BY_CLASS,
    GRADIENTS,
    LAYERS,
    METHOD,
    MODEL,
    QUICK,
    READOUT,
    WIDTH,
    asks,
    code,
    guarded,
    installed,
    rules,
    usual,
    vectors,
)
from tests.support.jobs import job_of
from tests.support.readouts import drawn_sums, sums_of
from tests.support.scripted import ScriptedClient

# Differencing

JOB = job_of(METHOD, ModelShape(MODEL, LAYERS, WIDTH), phases=8)
"""With eight schedules, so that no limit of sums is reached here."""


def grown(guard: Asked, client: ScriptedClient, total: int, *, cursor: str = "", changed: bool = False) -> FailureCode | None:
    """Ask for vectors of ``total`` examples, all of them or those behind a cursor."""
    client.examples, client.mark = total, "y" if changed else "x"
    known = int(cursor.partition(":")[0] or 0)
    answer = vectors((total - known,), cursor=client.cursor(Role.TRAIN), replaces=known == 0)
    client.rule = lambda request: answer if request.kind == "vectors" else None
    guard.handle(JobRequest(JOB))
    return code(guard.handle(VectorsRequest(JOB.digest, cursor)))


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


FIRM = {"allow": {"new_splits": False}, "least": {"new_examples": 8, "held_out": 4}}
"""As the default policy has it, for tests of how examples are divided."""


@pytest.mark.parametrize("holdout", [{"selection": 0.26}, {"gate": 0.01}])
def test_a_job_that_holds_out_other_fractions_than_the_last_one_is_refused(tmp_path: Path, holdout: dict[str, float]) -> None:
    """Also after a restart. The difference of two figures can be one example's label."""
    other = tiny.method(calibration={"batch_size": 8, "local_steps": 4}, holdout=holdout)
    guard, _ = guarded(tmp_path, rules(**FIRM))
    assert code(guard.handle(asks()["job"])) is None
    for _ in range(2):
        assert code(guard.handle(asks(other)["job"])) is FailureCode.REFUSED
        guard, _ = guarded(tmp_path, rules(**FIRM))
    assert code(guard.handle(asks(METHOD.model_copy(update={"seed": 1}))["job"])) is None
    lenient, _ = guarded(tmp_path)
    assert code(lenient.handle(asks(other)["job"])) is None


@pytest.mark.parametrize("asked", ["vectors", "update", "evaluate", "compare", "statistics"])
def test_a_client_that_divides_its_examples_in_another_way_is_refused(tmp_path: Path, asked: str) -> None:
    """As with another key of the owner's, or in a simulation with another seed."""
    guard, client = guarded(tmp_path, rules(**FIRM))
    assert code(guard.handle(installed(guard)[asked])) is None
    client.split = "another"
    assert code(guard.handle(installed(guard)[asked])) is FailureCode.REFUSED
    lenient, client = guarded(tmp_path)
    client.split = "another"
    assert code(lenient.handle(installed(lenient)[asked])) is None


def test_the_ledger_names_the_split_by_a_digest_of_what_the_client_calls_it(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    assert grown(guard, client, 20) is None
    facts = read(tmp_path / "ledger.jsonl")[0][-1].facts
    assert facts["examples"]["split"] == hashlib.sha256(client.split.encode()).hexdigest()[:16]


@pytest.mark.parametrize("asked", ["evaluate", "compare"])
def test_no_two_figures_differ_by_few_held_out_examples(tmp_path: Path, asked: str) -> None:
    """One example more, and the difference of two figures is its label."""

    def counted(request: Request) -> Reply | None:
        tally = Tally(client.examples, 3, 2.0)
        replies: dict[str, Reply] = {
            "evaluate": EvaluateReply((tally,)),
            "compare": CompareReply(Comparison(tally, tally, 1.0, 0)),
        }
        return replies.get(request.kind)

    for examples, mark, expected in (
        (20, "x", None),
        (21, "x", FailureCode.TOO_FEW),
        (24, "x", None),
        (30, "y", FailureCode.REFUSED),
    ):
        guard, client = guarded(tmp_path, rules(**FIRM), counted)
        client.examples, client.mark = examples, mark
        assert code(guard.handle(installed(guard)[asked])) is expected, examples


def test_the_coordinator_hashes_what_arrived_and_not_what_it_made_of_it(tmp_path: Path) -> None:
    """Sums of features that hardly vary are not encoded twice with the same last bits."""
    draw = np.random.default_rng(0)
    rows = 7.0 + 1e-4 * draw.normal(size=(30, 6))
    reply = StatisticsReply(sums_of(rows, draw.integers(0, 2, 30)))
    arrived = decode_reply(encode(reply))
    assert encode(arrived) != encode(reply)
    guard, _ = guarded(tmp_path, rule=lambda request: reply if request.kind == "statistics" else usual(request))
    engine = LocalEngine([guard.endpoint])
    requests = installed(guard, READOUT)
    assert guard.known is not None
    (delivery,) = engine.exchange({"clinic": requests["statistics"]}, 60.0, {"clinic": guard.known})
    assert delivery.receipt is not None
    assert delivery.receipt.sha256 == read(tmp_path / "ledger.jsonl")[0][-1].facts["sha256"]


@pytest.mark.parametrize(
    ("method", "asked", "answer"),
    [
        (BY_CLASS, "vectors", vectors((15, 15))),
        (READOUT, "statistics", StatisticsReply(drawn_sums(30))),
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
        assert code(guard.handle(installed(guard, method)[asked])) is wanted


@pytest.mark.parametrize(("method", "asked"), [(READOUT, "statistics"), (GRADIENTS, "gradient"), (METHOD, "update")])
def test_sums_of_every_kind_are_compared_with_what_left_before(tmp_path: Path, method: Method, asked: str) -> None:
    """Also after a restart, and also where examples were changed."""
    policy = rules(least={"new_examples": 8})
    method = method.model_copy(update={"rounds": method.rounds.model_copy(update={"rounds": 9})})  # enough for all that follows
    for examples, mark, expected in (
        (20, "x", None),
        (20, "x", None),
        (21, "x", FailureCode.TOO_FEW),
        (28, "x", None),
        (40, "y", FailureCode.REFUSED),
    ):
        guard, client = guarded(tmp_path, policy)
        client.examples, client.mark = examples, mark
        assert code(guard.handle(installed(guard, method)[asked])) is expected


def test_another_draw_of_the_same_examples_is_refused(tmp_path: Path) -> None:
    """A round with a hair more of them holds the same ones and one more."""
    guard, _ = guarded(tmp_path, rules(**FIRM))
    for draw, expected in ((0.5, None), (0.51, FailureCode.REFUSED)):
        method = tiny.method(server={"update": "gradient", "draw": draw})
        assert code(guard.handle(installed(guard, method)["gradient"])) is expected


def test_a_job_that_a_client_could_not_take_may_be_sent_again(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    client.rule = lambda request: Failure(FailureCode.INTERNAL)
    assert code(guard.handle(asks()["job"])) is FailureCode.INTERNAL
    assert code(guard.handle(asks()["context"])) is FailureCode.INTERNAL
    client.rule = usual
    requests = installed(guard)
    assert code(guard.handle(requests["update"])) is None
