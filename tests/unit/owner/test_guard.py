"""What a policy keeps in, what is written down first, and what refusals tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl import files
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.readout import Readout, ReadoutSums
from ifedicl.data import Role
from ifedicl.errors import StorageError
from ifedicl.federation.assignment import run_digest
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    Reply,
    Request,
    StatisticsReply,
    UpdateReply,
    UpdateRequest,
    VectorsRequest,
)
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import read
from ifedicl.metrics import Comparison, Tally
from ifedicl.owner.policy import Policy
from tests.support import tiny
from tests.support.guarded import LAYERS, METHOD, MODEL, ONE, QUICK, SAME, WIDTH, asks, code, guarded, installed, rules, vectors


def test_an_open_policy_lets_every_kind_of_answer_out_and_the_ledger_has_each(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    sent = [guard.ask(request) for request in asks().values()]
    replies = [envelope.frame.reply for envelope in sent]
    assert not [reply for reply in replies if isinstance(reply, Failure)]
    entries, _ = read(tmp_path / "ledger.jsonl")
    assert [entry.facts["kind"] for entry in entries[1:]] == [reply.kind for reply in replies]
    assert [envelope.head for envelope in sent] == [entry.head for entry in entries[1:]]


def test_a_line_tells_the_bytes_that_crossed_their_shapes_and_the_digest_of_the_reply(tmp_path: Path) -> None:
    import hashlib

    guard, _ = guarded(tmp_path, overhead=lambda frame: frame // 10)
    sent = guard.ask(asks()["vectors"])
    facts = read(tmp_path / "ledger.jsonl")[0][-1].facts
    assert facts["bytes"] == len(sent.to_bytes())
    assert facts["engine_bytes"] == len(sent.to_bytes()) // 10
    assert facts["shapes"] == {"means": [1, LAYERS, 2, WIDTH], "counts": [1]}
    assert facts["run"] == run_digest(tiny.TASK, METHOD, MODEL)
    assert facts["sha256"] == hashlib.sha256(sent.frame.data).hexdigest()


@pytest.mark.parametrize(
    ("sections", "asked"),
    [
        ({"allow": {"tasks": ()}}, "vectors"),
        ({"allow": {"tasks": ("0" * 64,)}}, "vectors"),
        ({"allow": {"models": ("0" * 64,)}}, "vectors"),
        ({"allow": {"tasks": ()}}, "context"),
        ({"allow": {"class_counts": False}}, "compare"),
        ({"allow": {"class_counts": False}}, "statistics"),
        ({"allow": {"readout_sums": False}}, "statistics"),
        ({"allow": {"gradient_sums": False}}, "gradient"),
    ],
)
def test_what_is_not_allowed_is_refused_and_never_computed(tmp_path: Path, sections: dict[str, Any], asked: str) -> None:
    guard, client = guarded(tmp_path, rules(**sections))
    requests = asks() if asked in {"vectors", "context"} else installed(guard)
    before = len(client.asked)
    assert code(guard.handle(requests[asked])) is FailureCode.REFUSED
    assert len(client.asked) == before


@pytest.mark.parametrize("asked", ["evaluate", "compare"])
@pytest.mark.parametrize("kept_in", ["class_counts", "readout_sums"])
def test_a_readout_of_the_coordinator_is_refused_where_it_could_count_labels(tmp_path: Path, asked: str, kept_in: str) -> None:
    """A readout that always gives one label has as many hits as there are of it."""
    readout = Readout(np.zeros((2, WIDTH + 3), "f4"))
    requests: dict[str, Request] = {
        "evaluate": EvaluateRequest("c", Role.SELECTION, SAME, (readout,)),
        "compare": CompareRequest("c", SAME, readout),
    }
    for policy, refused in ((rules(allow={kept_in: False}), FailureCode.REFUSED), (rules(), None)):
        guard, _ = guarded(tmp_path / str(refused), policy)
        installed(guard)
        assert code(guard.handle(requests[asked])) is refused


def test_the_task_and_model_of_a_policy_are_let_through_by_their_digests(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(allow={"tasks": (tiny.TASK.digest,), "models": (MODEL,)}))
    assert code(guard.handle(asks()["vectors"])) is None
    template = tiny.TASK.model_copy(update={"template": "Is this about Ms Jones? {text}\nMood:"})
    other = VectorsRequest(template, METHOD, MODEL, "")
    assert code(guard.handle(other)) is FailureCode.REFUSED


def test_the_default_policy_lets_nothing_out() -> None:
    assert not Policy().allow.task(tiny.TASK.digest)
    assert not Policy().allow.model(MODEL)


def test_vectors_by_class_are_refused_where_class_counts_may_not_leave(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(allow={"class_counts": False}))
    assert code(guard.handle(asks(tiny.method(vectors={"balance": "class"}))["vectors"])) is FailureCode.REFUSED
    assert code(guard.handle(asks(tiny.method())["vectors"])) is None


def test_what_follows_a_refused_context_is_refused_and_what_follows_none_asks_for_it(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(allow={"tasks": ()}))
    assert code(guard.handle(asks()["update"])) is FailureCode.NO_CONTEXT
    guard.handle(asks()["context"])
    assert code(guard.handle(asks()["update"])) is FailureCode.REFUSED


BEHIND: dict[str, tuple[str, str, Callable[[int], Reply]]] = {
    "vectors": ("vectors", "examples", lambda n: vectors((n,), cursor=f"{n}:x")),
    "group": ("vectors", "group", lambda n: vectors((n, 50), cursor="50:x")),
    "update": ("update", "examples", lambda n: UpdateReply(SAME, n, 0.5)),
    "gradient": ("gradient", "examples", lambda n: GradientReply(GradientSum(SAME.arrays, n, 2.0))),
    "statistics": ("statistics", "examples", lambda n: StatisticsReply(ReadoutSums(np.eye(5), np.ones((5, 2)), n))),
    "evaluate": ("evaluate", "held_out", lambda n: EvaluateReply((Tally(n, 0, 1.0),))),
    "compare": ("compare", "held_out", lambda n: CompareReply(Comparison(Tally(n, 0, 1.0), Tally(n, 0, 1.0), 1.0, 0))),
}


@pytest.mark.parametrize("case", BEHIND)
def test_a_reply_leaves_exactly_where_enough_examples_stand_behind_it(
    case: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked, field, answer = BEHIND[case]

    @QUICK
    @given(count=st.integers(1, 40), least=st.integers(1, 30))
    def check(count: int, least: int) -> None:
        def reply(request: Request) -> Reply:
            return ContextReply() if isinstance(request, ContextRequest) else answer(count)

        guard, client = guarded(tmp_path_factory.mktemp("site"), rules(least={field: least}), reply)
        client.examples = 100
        expected = None if count >= least else FailureCode.TOO_FEW
        assert code(guard.handle(installed(guard)[asked])) is expected

    check()


def test_a_class_that_a_client_does_not_hold_is_no_small_group(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(least={"group": 10}), lambda request: vectors((0, 20)))
    assert code(guard.handle(asks()["vectors"])) is None


def test_a_gradient_sum_over_nothing_may_leave(tmp_path: Path) -> None:
    def reply(request: Request) -> Reply:
        return ContextReply() if isinstance(request, ContextRequest) else GradientReply(GradientSum(SAME.arrays, 0, 0.0))

    guard, _ = guarded(tmp_path, rules(least={"examples": 10}), reply)
    assert code(guard.handle(installed(guard)["gradient"])) is None


def test_an_update_is_of_no_more_examples_than_its_steps_take(tmp_path: Path) -> None:
    one_at_a_time = tiny.method(calibration={"batch_size": 1, "local_steps": 1})
    guard, _ = guarded(tmp_path, rules(least={"examples": 8}))
    assert code(guard.handle(installed(guard, one_at_a_time)["update"])) is FailureCode.TOO_FEW
    assert code(guard.handle(installed(guard)["update"])) is None


@QUICK
@given(most=st.integers(1, 6), restarts=st.sets(st.integers(0, 8)))
def test_no_more_rounds_leave_than_the_policy_says_however_often_the_site_restarts(
    tmp_path_factory: pytest.TempPathFactory, most: int, restarts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("site")
    guard, client = guarded(folder, rules(most={"rounds": most}))
    requests, left = installed(guard), 0
    for number in range(9):
        if number in restarts:
            guard, client = guarded(folder, rules(most={"rounds": most}))
            installed(guard)
        reply = guard.handle(requests["update"])
        left += not isinstance(reply, Failure)
        assert code(reply) is (None if number < most else FailureCode.SPENT)
        if number >= most:  # what may not leave is not computed
            assert not isinstance(client.asked[-1], UpdateRequest) or len(client.asked) <= 1 + most
    assert left == most


@QUICK
@given(most=st.integers(1, 4_000), engine=st.integers(0, 200))
def test_no_more_bytes_leave_than_the_policy_says_the_engines_own_included(
    tmp_path_factory: pytest.TempPathFactory, most: int, engine: int
) -> None:
    guard, _ = guarded(tmp_path_factory.mktemp("site"), rules(most={"bytes_up": most}), overhead=lambda frame: engine)
    left = 0
    for request in list(asks().values()) * 2:
        reply = guard.handle(request)
        left += 0 if isinstance(reply, Failure) else guard.last.size + engine
    assert left <= most


def test_bytes_and_rounds_of_one_job_are_not_counted_against_another_but_jobs_are(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(most={"rounds": 1, "jobs": 2}))
    for seed, expected in ((0, None), (1, None), (2, FailureCode.SPENT), (0, FailureCode.SPENT)):
        method = METHOD.model_copy(update={"seed": seed})
        guard.handle(ContextRequest(tiny.TASK, method, MODEL, ONE, f"context {seed}"))
        reply = guard.handle(UpdateRequest(f"context {seed}", 0, 0, 3, SAME))
        assert code(reply) is (expected if seed != 2 else FailureCode.REFUSED)
    again = guard.handle(VectorsRequest(tiny.TASK, METHOD.model_copy(update={"seed": 2}), MODEL, ""))
    assert code(again) is FailureCode.SPENT


# The chain's head


def test_a_request_that_knows_an_earlier_head_is_answered_and_the_ledger_says_which(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    first = guard.ask(asks()["vectors"])
    second = guard.handle(asks()["vectors"], first.head)
    assert code(second) is None
    known = [entry.facts["held"] for entry in read(tmp_path / "ledger.jsonl")[0][1:]]
    assert known == [0, 2]
    assert code(guard.handle(asks()["vectors"], first.head)) is None  # a reply got lost on the way


def test_a_head_of_another_ledger_gets_no_answer_but_a_code(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    guard.handle(asks()["vectors"])
    for head in (Head(2, "0" * 64), Head(3, "0" * 64)):
        assert code(guard.handle(asks()["vectors"], head)) is FailureCode.LEDGER
    assert len(client.asked) == 1


def test_a_reply_that_the_ledger_cannot_take_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, _ = guarded(tmp_path)

    def full(path: Path, data: bytes, *, at: int) -> None:
        raise StorageError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", full)
        assert guard.handle(asks()["vectors"]) == Failure(FailureCode.LEDGER)
    sent = guard.ask(asks()["vectors"])
    assert sent.head is not None
    assert sent.head.entries == 2
