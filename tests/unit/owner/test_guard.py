"""What a policy keeps in, what is written down first, and what refusals tell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifedicl import files
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.readout import Readout
from ifedicl.errors import StorageError
from ifedicl.federation.manifest import context_id
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    JobRequest,
    Reply,
    Request,
    StatisticsReply,
    UpdateReply,
    UpdateRequest,
)
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import read
from ifedicl.metrics import Comparison, Tally
from ifedicl.owner.policy import Policy
from ifedicl.settings import Method, ReadoutSettings
from tests.support import tiny
from tests.support.guarded import (
    BY_CLASS,
    GRADIENTS,
    LAYERS,
    METHOD,
    MODEL,
    ONE,
    QUICK,
    SAME,
    WIDTH,
    asks,
    code,
    guarded,
    installed,
    rules,
    vectors,
)
from tests.support.jobs import job_on
from tests.support.readouts import drawn_sums


def test_an_open_policy_lets_every_kind_of_answer_out_and_the_ledger_has_each(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    sent = [guard.ask(request) for request in asks(METHOD.model_copy(update={"readout": ReadoutSettings()})).values()]
    replies = [envelope.frame.reply for envelope in sent]
    assert not [reply for reply in replies if isinstance(reply, Failure)]
    entries, _ = read(tmp_path / "ledger.jsonl")
    assert [entry.facts["kind"] for entry in entries[1:]] == [reply.kind for reply in replies]
    assert [envelope.head for envelope in sent] == [entry.head for entry in entries[1:]]


def test_a_line_tells_the_bytes_that_crossed_their_shapes_and_the_digest_of_the_reply(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, overhead=lambda frame: frame // 10)
    sent = guard.ask(installed(guard)["vectors"])
    facts = read(tmp_path / "ledger.jsonl")[0][-1].facts
    assert facts["bytes"] == len(sent.to_bytes())
    assert facts["engine_bytes"] == len(sent.to_bytes()) // 10
    assert facts["shapes"] == {"means": [1, LAYERS, 2, WIDTH], "counts": [1]}
    assert facts["run"] == job_on(ONE, METHOD).run
    assert facts["sha256"] == hashlib.sha256(sent.frame.data).hexdigest()


@pytest.mark.parametrize(
    ("sections", "method", "asked"),
    [
        ({"allow": {"tasks": ()}}, METHOD, "job"),
        ({"allow": {"tasks": ("0" * 64,)}}, METHOD, "job"),
        ({"allow": {"models": ("0" * 64,)}}, METHOD, "job"),
        ({"allow": {"gradient_sums": False}}, GRADIENTS, "job"),
        ({"allow": {"class_counts": False}}, BY_CLASS, "job"),
        ({"least": {"step": 9}}, METHOD, "job"),
        ({"work": {"steps": 3}}, METHOD, "job"),
        ({"most": {"rounds": 1}}, METHOD, "job"),
        ({"most": {"figures": 7}}, METHOD, "job"),
        ({"most": {"sums": 1}}, METHOD, "job"),
        ({"most": {"contexts": 1}}, METHOD, "job"),
        ({"most": {"epsilon": 1.0}}, METHOD, "job"),
        ({"allow": {"class_counts": False}}, METHOD, "compare"),
        ({"allow": {"class_counts": False}}, METHOD, "statistics"),
        ({"allow": {"readout_sums": False}}, METHOD, "statistics"),
    ],
)
def test_what_is_not_allowed_is_refused_and_never_computed(
    tmp_path: Path, sections: dict[str, Any], method: Method, asked: str
) -> None:
    guard, client = guarded(tmp_path, rules(**sections))
    requests = asks(method) if asked == "job" else installed(guard, method)
    before = len(client.asked)
    assert code(guard.handle(requests[asked])) is FailureCode.REFUSED
    assert len(client.asked) == before


@pytest.mark.parametrize("asked", ["evaluate", "compare"])
@pytest.mark.parametrize("kept_in", ["class_counts", "readout_sums"])
def test_a_readout_of_the_coordinator_is_refused_where_it_could_count_labels(tmp_path: Path, asked: str, kept_in: str) -> None:
    """A readout that always gives one label has as many hits as there are of it."""
    readout = Readout(np.zeros((2, WIDTH + 3), "f4"))
    for policy, refused in ((rules(allow={kept_in: False}), FailureCode.REFUSED), (rules(), None)):
        guard, _ = guarded(tmp_path / str(refused), policy)
        installed(guard)
        name = context_id(job_on(ONE, METHOD).digest, ONE)
        requests: dict[str, Request] = {
            "evaluate": EvaluateRequest(name, SAME, (readout,)),
            "compare": CompareRequest(name, SAME, readout),
        }
        assert code(guard.handle(requests[asked])) is refused


def test_the_task_and_model_of_a_policy_are_let_through_by_their_digests(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(allow={"tasks": (tiny.TASK.digest,), "models": (MODEL,)}))
    assert code(guard.handle(asks()["job"])) is None
    template = tiny.TASK.model_copy(update={"template": "Is this about Ms Jones? {text}\nMood:"})
    assert code(guard.handle(JobRequest(job_on(ONE, METHOD, template)))) is FailureCode.REFUSED


def test_the_default_policy_lets_nothing_out() -> None:
    assert not Policy().allow.task(tiny.TASK.digest)
    assert not Policy().allow.model(MODEL)


def test_what_follows_a_refused_job_is_refused_and_what_follows_none_asks_for_it(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path, rules(allow={"tasks": ()}))
    head = read(tmp_path / "ledger.jsonl")[0][-1].head
    assert code(guard.handle(asks()["context"])) is FailureCode.NO_CONTEXT
    assert code(guard.handle(asks()["update"], head)) is FailureCode.NO_CONTEXT
    guard.handle(asks()["job"])
    for kind in ("vectors", "context", "update"):
        assert code(guard.handle(asks()[kind], head)) is FailureCode.REFUSED
    assert not client.asked


def test_a_refused_job_leaves_the_present_one_in_place(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, rules(allow={"gradient_sums": False}))
    requests = installed(guard)
    assert code(guard.handle(asks(GRADIENTS)["job"])) is FailureCode.REFUSED
    assert code(guard.handle(asks(GRADIENTS)["vectors"])) is FailureCode.REFUSED
    assert code(guard.handle(requests["update"])) is None


BEHIND: dict[str, tuple[str, str, Callable[[int], Reply]]] = {
    "vectors": ("vectors", "examples", lambda n: vectors((n,), cursor=f"{n}:x")),
    "group": ("vectors", "group", lambda n: vectors((n, 50), cursor="50:x")),
    "update": ("update", "examples", lambda n: UpdateReply(SAME, n, 0.5)),
    "step": ("update", "step", lambda n: UpdateReply(SAME, n, 0.5)),
    "gradient": ("gradient", "examples", lambda n: GradientReply(GradientSum(SAME.arrays, n, 2.0))),
    "statistics": ("statistics", "examples", lambda n: StatisticsReply(drawn_sums(n))),
    "evaluate": ("evaluate", "held_out", lambda n: EvaluateReply((Tally(n, 0, 1.0),))),
    "compare": ("compare", "held_out", lambda n: CompareReply(Comparison(Tally(n, 0, 1.0), Tally(n, 0, 1.0), 1.0, 0))),
}


@pytest.mark.parametrize("case", BEHIND)
def test_a_reply_leaves_exactly_where_enough_examples_stand_behind_it(
    case: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked, field, answer = BEHIND[case]

    @QUICK
    @given(count=st.integers(1, 40), least=st.integers(1, 8 if field == "step" else 30))  # a batch has 8
    def check(count: int, least: int) -> None:
        folder = tmp_path_factory.mktemp("site")
        guard, client = guarded(
            folder, rules(least={field: least}), lambda request: answer(count) if request.kind == asked else None
        )
        client.examples = 100
        expected = None if count >= least else FailureCode.TOO_FEW
        assert code(guard.handle(installed(guard)[asked])) is expected

    check()


def test_a_class_that_a_client_does_not_hold_is_no_small_group(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path, rules(least={"group": 10}))
    client.rule = lambda request: vectors((0, 20)) if request.kind == "vectors" else None
    assert code(guard.handle(installed(guard)["vectors"])) is None


@pytest.mark.parametrize(("least", "expected"), [(1, None), (10, FailureCode.TOO_FEW)])
def test_a_gradient_sum_over_nothing_leaves_only_where_nothing_is_checked(
    tmp_path: Path, least: int, expected: FailureCode | None
) -> None:
    guard, client = guarded(tmp_path, rules(least={"examples": least}))
    nothing = GradientReply(GradientSum(SAME.arrays, 0, 0.0))
    client.rule = lambda request: nothing if request.kind == "gradient" else None
    assert code(guard.handle(installed(guard, GRADIENTS)["gradient"])) is expected


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
    folder, method = tmp_path_factory.mktemp("site"), tiny.method(rounds={"rounds": most})
    guard, client = guarded(folder, rules(most={"rounds": most}))
    update, left = installed(guard, method)["update"], 0
    assert isinstance(update, UpdateRequest)
    for number in range(9):
        if number in restarts:
            guard, client = guarded(folder, rules(most={"rounds": most}))
            installed(guard, method)
        request = replace(update, round=number)
        reply = guard.handle(request)
        left += not isinstance(reply, Failure)
        assert code(reply) is (None if number < most else FailureCode.SPENT)
        if number >= most:  # what may not leave is not computed
            assert number not in [item.round for item in client.asked if isinstance(item, UpdateRequest)]
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
    one_round = [tiny.method(rounds={"rounds": 1}, seed=seed) for seed in range(3)]
    for method in one_round[:2]:
        update = installed(guard, method)["update"]
        assert isinstance(update, UpdateRequest)
        assert code(guard.handle(update)) is None
        assert code(guard.handle(replace(update, round=1))) is FailureCode.SPENT
    third = asks(one_round[2])
    assert [code(guard.handle(third[kind])) for kind in ("job", "vectors", "context")] == [FailureCode.SPENT] * 3
    assert code(guard.handle(asks(one_round[0])["job"])) is None  # it is one of the two


# The chain's head


def test_a_request_that_knows_an_earlier_head_is_answered_and_the_ledger_says_which(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    job = guard.ask(asks()["job"])
    first = guard.ask(asks()["vectors"])
    second = guard.handle(asks()["vectors"], first.head)
    assert code(second) is None
    known = [entry.facts["held"] for entry in read(tmp_path / "ledger.jsonl")[0][1:]]
    assert known == [0, 2, 3]
    assert code(guard.handle(asks()["vectors"], job.head)) is None  # a reply got lost on the way


def test_a_head_of_another_ledger_gets_no_answer_but_a_code(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    guard.handle(asks()["job"])
    guard.handle(asks()["vectors"])
    for head in (Head(2, "0" * 64), Head(3, "0" * 64), Head(9, "0" * 64)):
        assert code(guard.handle(asks()["vectors"], head)) is FailureCode.LEDGER
    assert len(client.asked) == 2


def test_a_reply_that_the_ledger_cannot_take_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, _ = guarded(tmp_path)
    guard.handle(asks()["job"])

    def full(path: Path, data: bytes, *, at: int) -> None:
        raise StorageError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", full)
        assert guard.handle(asks()["vectors"]) == Failure(FailureCode.LEDGER)
    sent = guard.ask(asks()["vectors"])
    assert sent.head is not None
    assert sent.head.entries == 3
