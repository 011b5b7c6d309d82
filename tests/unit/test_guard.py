"""The owner at the client's door: what a policy keeps in, what is written down first, and what refusals tell."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifedicl import files
from ifedicl.backbone.load import Backbone
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout, ReadoutSums
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Example, Role
from ifedicl.errors import StorageError
from ifedicl.federation.assignment import ModelShape, run_digest
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.local_engine import LocalEngine
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
    GradientRequest,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    decode_reply,
    encode,
)
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import REPLY, SUMMED, Ledger, read
from ifedicl.metrics import Comparison, Tally
from ifedicl.owner.guard import GuardedClient, SummedClient
from ifedicl.owner.policy import Policy, open_policy
from ifedicl.settings import Method, validated
from tests import tiny

LAYERS, WIDTH = 2, 4
MODEL = "f" * 64
FORM = Form(LAYERS)
ONE = Context(np.ones((LAYERS, 2, WIDTH), dtype=np.float32))
SAME = Coefficients.identity(FORM)
QUICK = settings(deadline=None, derandomize=True, max_examples=25)


def rules(**sections: Any) -> Policy:
    """All may leave but what ``sections`` keep in."""
    base = open_policy().model_dump()
    return validated(Policy, {name: {**base[name], **sections.get(name, {})} for name in base}, "test")


class Scripted:
    """A client that answers by a rule and vouches for the first examples of any cursor ``N:...`` up to its own number."""

    name = "clinic"
    spent_epsilon = None

    def __init__(self, answer: Callable[[Request], Reply] | None = None) -> None:
        self.answer = answer or usual
        self.asked: list[Request] = []
        self.examples = 20
        self.seconds: Sequence[int] = range(1, 1000, 2)  # which examples are of the second class
        self.mark = "x"

    def handle(self, request: Request) -> Reply:
        self.asked.append(request)
        return self.answer(request)

    @property
    def cursor(self) -> str:
        return f"{self.examples}:{self.mark}"

    def examples_behind(self, cursor: str) -> Any:
        count = int(cursor.partition(":")[0])
        known = count if count <= self.examples and cursor.endswith(self.mark) else 0
        second = len([place for place in self.seconds if place < known])
        return np.array([known - second, second])


def vectors(counts: tuple[int, ...] = (20,), *, cursor: str = "20:x", replaces: bool = True) -> VectorsReply:
    means = np.ones((len(counts), LAYERS, 2, WIDTH), dtype=np.float32)
    return VectorsReply(ContextVectors.from_wire(means, np.array(counts)), cursor, replaces, "float32", "float32")


def usual(request: Request) -> Reply:
    answers: dict[type[Request], Reply] = {
        VectorsRequest: vectors(),
        ContextRequest: ContextReply(),
        UpdateRequest: UpdateReply(SAME, 20, 0.5),
        GradientRequest: GradientReply(GradientSum(SAME.arrays, 5, 2.0)),
        EvaluateRequest: EvaluateReply((Tally(6, 3, 2.0),)),
        CompareRequest: CompareReply(Comparison(Tally(6, 3, 2.0), Tally(6, 2, 3.0), 1.0, 1, (3, 3), (4, 2))),
        StatisticsRequest: StatisticsReply(ReadoutSums(np.eye(5), np.ones((5, 2)), 20)),
    }
    return answers[type(request)]


METHOD = tiny.method(calibration={"batch_size": 8, "local_steps": 4})
GRADIENTS = tiny.method(server={"update": "gradient"})


def asks(method: Method = METHOD) -> dict[str, Request]:
    return {
        "vectors": VectorsRequest(tiny.TASK, method, MODEL, ""),
        "context": ContextRequest(tiny.TASK, method, MODEL, ONE, "c"),
        "update": UpdateRequest("c", 0, 0, 3, SAME),
        "gradient": GradientRequest("c", 0, SAME),
        "evaluate": EvaluateRequest("c", Role.SELECTION, SAME),
        "compare": CompareRequest("c", SAME, None),
        "statistics": StatisticsRequest("c", SAME),
    }


def guarded(
    folder: Path, policy: Policy | None = None, answer: Callable[[Request], Reply] | None = None, **options: Any
) -> tuple[GuardedClient, Scripted]:
    client = Scripted(answer)
    return GuardedClient(client, policy or rules(), Ledger(folder / "ledger.jsonl", client.name), **options), client


def code(reply: Reply) -> FailureCode | None:
    return reply.code if isinstance(reply, Failure) else None


def installed(guard: GuardedClient, method: Method = METHOD) -> dict[str, Request]:
    requests = asks(method)
    guard.handle(requests["context"])
    return requests


def test_an_open_policy_lets_every_kind_of_answer_out_and_the_ledger_has_each(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    replies = [guard.handle(request) for request in asks().values()]
    assert not [reply for reply in replies if isinstance(reply, Failure)]
    entries, _ = read(tmp_path / "ledger.jsonl")
    assert [entry.facts["kind"] for entry in entries[1:]] == [reply.kind for reply in replies]
    assert [reply.head for reply in replies] == [entry.head for entry in entries[1:]]


def test_a_line_tells_the_bytes_that_crossed_their_shapes_and_the_digest_of_the_reply(tmp_path: Path) -> None:
    import hashlib

    guard, _ = guarded(tmp_path, overhead=lambda frame: frame // 10)
    reply = guard.handle(asks()["vectors"])
    frame = encode(reply)
    facts = read(tmp_path / "ledger.jsonl")[0][-1].facts
    assert facts["bytes"] == len(frame)
    assert facts["engine_bytes"] == len(frame) // 10
    assert facts["shapes"] == {"means": [1, LAYERS, 2, WIDTH], "counts": [1]}
    assert facts["run"] == run_digest(tiny.TASK, METHOD, MODEL)
    received = decode_reply(frame)
    assert received.head == reply.head
    assert facts["sha256"] == hashlib.sha256(encode(replace(received, head=None))).hexdigest()


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
        left += 0 if isinstance(reply, Failure) else len(encode(reply)) + engine
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


# Differencing


def grown(guard: GuardedClient, client: Scripted, total: int, *, cursor: str = "", changed: bool = False) -> FailureCode | None:
    """Ask for vectors of ``total`` examples, all of them or those behind a cursor."""
    client.examples, client.mark = total, "y" if changed else "x"
    known = int(cursor.partition(":")[0] or 0)
    client.answer = lambda request: vectors((total - known,), cursor=client.cursor, replaces=known == 0)
    return code(guard.handle(VectorsRequest(tiny.TASK, METHOD, MODEL, cursor)))


@QUICK
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8), whole=st.lists(st.booleans(), min_size=8, max_size=8))
def test_no_two_sets_of_vectors_differ_by_fewer_examples_than_the_policy_says(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], whole: list[bool]
) -> None:
    """Asked for anew or for the added examples alone: both could be subtracted."""
    guard, client = guarded(tmp_path_factory.mktemp("site"), rules(least={"new_examples": 5}))
    left: list[int] = []
    for total, anew in zip(sorted(sizes), whole, strict=False):
        cursor = "" if anew or not left else f"{left[-1]}:x"
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
    guard, _ = guarded(tmp_path, answer=lambda request: reply if request.kind == "statistics" else usual(request))
    engine = LocalEngine([guard])
    list(engine.exchange({"clinic": asks(READOUT)["context"]}, 60.0))
    (delivery,) = engine.exchange({"clinic": asks(READOUT)["statistics"]}, 60.0)
    assert delivery.sha256 == read(tmp_path / "ledger.jsonl")[0][-1].facts["sha256"]


BY_CLASS = tiny.method(vectors={"balance": "class"})
READOUT = tiny.method(readout={})


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
    client.answer = lambda request: answer if request.kind == asked else usual(request)
    client.seconds = (*range(10), *second)
    for examples, wanted in ((20, None), (30, expected)):
        client.examples = examples
        guard.handle(asks(method)["context"])
        assert code(guard.handle(asks(method)[asked])) is wanted


@pytest.mark.parametrize(("method", "asked"), [(READOUT, "statistics"), (GRADIENTS, "gradient")])
def test_sums_of_every_kind_are_held_against_what_left_before(tmp_path: Path, method: Method, asked: str) -> None:
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
    client.answer = lambda request: Failure(FailureCode.INTERNAL)
    guard.handle(asks()["context"])
    assert code(guard.handle(asks()["update"])) is FailureCode.NO_CONTEXT
    client.answer = usual
    assert code(guard.handle(asks()["context"])) is None
    assert code(guard.handle(asks()["update"])) is None


# The chain's head


def test_a_request_that_knows_an_earlier_head_is_answered_and_the_ledger_says_which(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path)
    first = guard.handle(asks()["vectors"])
    second = guard.handle(replace(asks()["vectors"], head=first.head))
    assert code(second) is None
    held = [entry.facts["held"] for entry in read(tmp_path / "ledger.jsonl")[0][1:]]
    assert held == [0, 2]
    assert code(guard.handle(replace(asks()["vectors"], head=first.head))) is None  # a reply got lost on the way


def test_a_head_of_another_ledger_gets_no_answer_but_a_code(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    guard.handle(asks()["vectors"])
    for head in (Head(2, "0" * 64), Head(3, "0" * 64)):
        assert code(guard.handle(replace(asks()["vectors"], head=head))) is FailureCode.LEDGER
    assert len(client.asked) == 1


def test_a_reply_that_the_ledger_cannot_take_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, _ = guarded(tmp_path)

    def full(path: Path, data: bytes, *, at: int) -> None:
        raise StorageError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", full)
        assert guard.handle(asks()["vectors"]) == Failure(FailureCode.LEDGER)
    reply = guard.handle(asks()["vectors"])
    assert reply.head is not None
    assert reply.head.entries == 2


# Within secure sums


class Masking:
    """A stand-in for the door that masks: what it is asked for in plain leaves as an empty message."""

    name = "clinic"

    def __init__(self, plain: Callable[[Request], Reply]) -> None:
        self.plain = plain

    def handle(self, request: Request) -> Reply:
        reply = self.plain(request)
        return reply if isinstance(reply, Failure) else ContextReply()


def summed(folder: Path, policy: Policy) -> tuple[SummedClient, Scripted]:
    client = Scripted()
    return SummedClient(client, policy, Ledger(folder / "ledger.jsonl", client.name), Masking), client


def test_in_a_sum_the_policy_sees_what_goes_in_and_the_ledger_has_what_goes_in_and_what_leaves(tmp_path: Path) -> None:
    guard, _ = summed(tmp_path, rules())
    replies = [guard.handle(request) for request in asks().values()]
    assert not [reply for reply in replies if isinstance(reply, Failure)]
    entries = read(tmp_path / "ledger.jsonl")[0][1:]
    assert [entry.event for entry in entries] == [SUMMED, REPLY] * len(replies)
    assert [entry.facts["kind"] for entry in entries[::2]] == [usual(request).kind for request in asks().values()]
    assert {entry.facts["kind"] for entry in entries[1::2]} == {"context_reply"}
    assert not [entry for entry in entries[::2] if "sha256" in entry.facts]
    assert [reply.head for reply in replies] == [entry.head for entry in entries[1::2]]


def test_in_a_sum_too_no_more_rounds_leave_and_nothing_that_is_refused(tmp_path: Path) -> None:
    policy = rules(most={"rounds": 2}, allow={"readout_sums": False})
    guard, _ = summed(tmp_path, policy)
    requests = asks()
    guard.handle(requests["context"])
    assert [code(guard.handle(requests["update"])) for _ in range(2)] == [None, None]
    again, _ = summed(tmp_path, policy)
    again.handle(requests["context"])
    assert code(again.handle(requests["update"])) is FailureCode.SPENT
    assert code(again.handle(requests["statistics"])) is FailureCode.REFUSED
    assert code(again.handle(replace(requests["update"], head=Head(2, "0" * 64)))) is FailureCode.LEDGER


# Nothing leaks

ROW = "Ms Jones of 4 Mill Lane has been coughing since Tuesday"


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, StorageError, RecursionError])
def test_an_exception_that_quotes_a_row_reaches_neither_reply_nor_ledger(
    tmp_path: Path, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Request) -> Reply:
        raise error(ROW)

    guard, _ = guarded(tmp_path, answer=broken)
    caplog.set_level(logging.DEBUG)
    replies = [guard.handle(request) for request in [*asks().values(), *asks().values()]]
    assert ROW in caplog.text  # in the owner's own log, where it is looked for
    assert all(isinstance(reply, Failure) for reply in replies)
    assert not any(word in encode(reply).decode("latin1") for reply in replies for word in ROW.split()[:4] if len(word) > 2)
    assert "Jones" not in (tmp_path / "ledger.jsonl").read_text()


def test_an_exception_in_a_real_client_that_quotes_its_row_does_not_leak(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ifedicl.federation.client_task import PlainSums

    rows = (*tiny.examples(9), Example(ROW, "good"))
    inner = Client("clinic", rows, backbone, secret=b"own")
    guard = GuardedClient(inner, rules(), Ledger(tmp_path / "ledger.jsonl", "clinic"))

    def quoting(*arguments: Any) -> None:
        raise ValueError(f"cannot work with {[row.text for row in rows]}")

    monkeypatch.setattr(PlainSums, "vectors", quoting)
    reply = guard.handle(VectorsRequest(tiny.TASK, METHOD, backbone.fingerprint, ""))
    assert replace(reply, head=None) == Failure(FailureCode.INTERNAL)
    written = (tmp_path / "ledger.jsonl").read_bytes() + encode(reply)
    assert not [row.text for row in rows if row.text.encode() in written]


# A whole federation

HANDS = {name: tiny.examples(count, seed=seed) for seed, (name, count) in enumerate({"a": 16, "b": 14, "c": 18}.items())}
SHORT = tiny.method(rounds={"rounds": 2, "select_by": "last"})


def federated(backbone: Backbone, folder: Path, policies: dict[str, Policy], **options: Any) -> Outcome:
    doors = [
        GuardedClient(
            Client(name, own, backbone, secret=name.encode()),
            policies.get(name, open_policy()),
            Ledger(folder / f"{name}.jsonl", name),
        )
        for name, own in HANDS.items()
    ]
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    return Coordinator(
        LocalEngine(doors), tiny.TASK, SHORT, shape, checkpoint_file=folder / "checkpoint" / "state.safetensors"
    ).run(**options)


def test_the_job_goes_on_without_a_site_whose_policy_refuses(backbone: Backbone, tmp_path: Path) -> None:
    outcome = federated(backbone, tmp_path, {"b": Policy()})
    assert {item.client for item in outcome.state.traffic if item.failure} == {"b"}
    assert {item.failure for item in outcome.state.traffic if item.failure} == {"refused"}
    assert outcome.state.history[-1].clients == ("a", "c")
    kinds = {entry.facts.get("kind") for entry in read(tmp_path / "b.jsonl")[0] if entry.event == REPLY}
    assert kinds == {"failure"}


def test_policies_and_ledgers_change_no_number(backbone: Backbone, tmp_path: Path) -> None:
    plain = Coordinator(
        LocalEngine([Client(name, own, backbone, secret=name.encode()) for name, own in HANDS.items()]),
        tiny.TASK,
        SHORT,
        ModelShape(backbone.fingerprint, backbone.layers, backbone.width),
    ).run()
    outcome = federated(backbone, tmp_path, {})
    assert outcome.context.digest == plain.context.digest
    np.testing.assert_array_equal(outcome.coefficients.scales, plain.coefficients.scales)


def test_the_ledger_counts_the_bytes_that_the_coordinator_counts(backbone: Backbone, tmp_path: Path) -> None:
    outcome = federated(backbone, tmp_path, {})
    for name in HANDS:
        entries, _ = read(tmp_path / f"{name}.jsonl")
        ours = [entry.facts["bytes"] for entry in entries if entry.event == REPLY]
        assert ours == [item.bytes_up for item in outcome.state.traffic if item.client == name]


def test_the_coordinator_keeps_each_last_head_and_tells_it_with_the_next_request(backbone: Backbone, tmp_path: Path) -> None:
    outcome = federated(backbone, tmp_path, {})
    for name in HANDS:
        entries, _ = read(tmp_path / f"{name}.jsonl")
        assert outcome.state.heads[name] == entries[-1].head
        # Every request but the context's names the entry before: nothing was lost.
        held = [(entry.facts["kind"], entry.facts["held"]) for entry in entries if entry.event == REPLY]
        for number, (kind, told) in enumerate(held, start=2):
            assert told == (0 if kind == "context_reply" or number == 2 else number - 1)
    lines = [json.loads(line) for line in (tmp_path / "checkpoint" / "heads.jsonl").read_text().splitlines()]
    assert len(lines) == len(outcome.state.traffic)


def test_a_resumed_run_tells_the_heads_that_it_had(backbone: Backbone, tmp_path: Path) -> None:
    first = federated(backbone, tmp_path, {})
    again = federated(backbone, tmp_path, {}, more_rounds=1)
    assert all(again.state.heads[name].entries > head.entries for name, head in first.state.heads.items())
    assert {item.failure for item in again.state.traffic} == {None, "no_context"}  # the clients began anew


def test_a_site_whose_ledger_was_replaced_gets_no_further(backbone: Backbone, tmp_path: Path) -> None:
    federated(backbone, tmp_path, {})
    (tmp_path / "b.jsonl").unlink()
    again = federated(backbone, tmp_path, {}, more_rounds=1)
    failed = {(item.client, item.failure) for item in again.state.traffic if item.failure not in {None, "no_context"}}
    assert failed == {("b", "ledger")}
    assert again.state.history[-1].clients == ("a", "c")
