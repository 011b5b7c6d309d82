"""What the outermost layer writes down, what it does not look at, and how little refusals can make it write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ifedicl import files
from ifedicl.errors import MessageError, StorageError
from ifedicl.federation.messages import Envelope, Failure, FailureCode, Frame
from ifedicl.ledger.ledger import REFUSED, REPLY, read
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.guard import Guard
from ifedicl.owner.policy import Policy
from ifedicl.owner.recorder import Recorder
from tests.support.endpoints import Asked
from tests.support.guarded import GRADIENTS, asks, code, guarded, installed, rules, scripted_client
from tests.support.scripted import ScriptedClient

NO_GRADIENTS = {"allow": {"gradient_sums": False}}


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def timed(folder: Path, policy: Policy) -> tuple[Asked, Clock]:
    """A client behind a policy and a ledger, and the clock of its refusals."""
    client, clock = scripted_client(), Clock()
    ledger = CountedLedger(folder / "ledger.jsonl", client.name)
    return Asked(Recorder(Guard(client, policy, ledger.history), ledger, policy, clock=clock)), clock


def lines(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Event and facts of each line after the first."""
    return [(entry.event, entry.facts) for entry in read(folder / "ledger.jsonl")[0][1:]]


def test_refusals_share_one_line_in_the_time_that_the_policy_says(tmp_path: Path) -> None:
    guard, clock = timed(tmp_path, rules(**NO_GRADIENTS, work={"refusal_seconds": 60.0}))
    for clock.now in (0.0, 1.0, 2.0, 59.0, 60.0, 61.0, 119.0):
        assert code(guard.handle(asks(GRADIENTS)["job"])) is FailureCode.REFUSED
    assert lines(tmp_path) == [(REFUSED, {"codes": {"refused": 1}}), (REFUSED, {"codes": {"refused": 4}})]


def test_a_coordinator_that_asks_without_end_does_not_fill_the_disk(tmp_path: Path) -> None:
    guard, _ = timed(tmp_path, rules(**NO_GRADIENTS))
    guard.handle(asks(GRADIENTS)["job"])
    size = (tmp_path / "ledger.jsonl").stat().st_size
    for _ in range(200):
        guard.handle(asks(GRADIENTS)["job"])
        guard.handle(asks(GRADIENTS)["vectors"])
    assert (tmp_path / "ledger.jsonl").stat().st_size == size


def test_each_refusal_has_a_line_where_the_policy_asks_for_it(tmp_path: Path) -> None:
    guard, _ = timed(tmp_path, rules(**NO_GRADIENTS, work={"refusal_seconds": 0.0}))
    for _ in range(3):
        guard.handle(asks(GRADIENTS)["job"])
    assert lines(tmp_path) == [(REFUSED, {"codes": {"refused": 1}})] * 3


def test_refusals_are_counted_by_code_before_the_next_reply_has_its_line(tmp_path: Path) -> None:
    guard, _ = timed(tmp_path, rules(**NO_GRADIENTS))
    guard.handle(asks(GRADIENTS)["job"])
    guard.handle(asks(GRADIENTS)["job"])
    guard.handle(asks()["vectors"])  # it names no head
    assert code(guard.handle(asks()["job"])) is None
    assert code(guard.handle(asks()["vectors"])) is None
    first, second, *replies = lines(tmp_path)
    assert first == (REFUSED, {"codes": {"refused": 1}})
    assert second == (REFUSED, {"codes": {"refused": 1, "ledger": 1}})
    assert [(event, facts["kind"]) for event, facts in replies] == [(REPLY, "job_reply"), (REPLY, "vectors_reply")]


def test_a_failure_leaves_without_a_head_and_counts_as_no_reply(tmp_path: Path) -> None:
    guard, client = guarded(tmp_path)
    requests = installed(guard)
    before = guard.known
    client.rule = lambda request: Failure(FailureCode.INTERNAL)
    envelope = guard.ask(requests["update"])
    assert (envelope.head, envelope.frame.reply) == (None, Failure(FailureCode.INTERNAL))
    assert guard.known == before
    client.rule = lambda request: None
    assert code(guard.handle(requests["update"])) is None
    assert [event for event, _ in lines(tmp_path)] == [REPLY, REPLY, REFUSED, REPLY]


# A head is required


@pytest.mark.parametrize("kind", [kind for kind, request in asks().items() if request.carries_head])
def test_a_request_without_a_head_is_not_looked_at(tmp_path: Path, kind: str) -> None:
    """Else a coordinator could ask again after it lost, or never kept, what left before."""
    guard, client = guarded(tmp_path)
    requests = installed(guard)
    before = len(client.asked)
    answered = Envelope.from_bytes(guard.endpoint.handle(Envelope.of(requests[kind])).to_bytes())
    assert answered.frame.reply == Failure(FailureCode.LEDGER)
    assert len(client.asked) == before
    assert code(guard.handle(requests[kind])) is None  # this one names it


def test_a_job_and_global_vectors_need_no_head_and_the_jobs_reply_brings_the_first(tmp_path: Path) -> None:
    assert {kind for kind, request in asks().items() if not request.carries_head} == {"job", "context"}
    guard, _ = guarded(tmp_path)
    replied = guard.ask(asks()["job"])
    assert replied.head == read(tmp_path / "ledger.jsonl")[0][-1].head
    assert code(guard.handle(asks()["vectors"], replied.head)) is None


# What is too large


def oversized(folder: Path, size: int) -> tuple[Asked, ScriptedClient, Envelope]:
    """A client that takes frames of 1000 bytes, and a frame of ``size`` bytes that is no message."""
    guard, client = guarded(folder, rules(work={"frame_bytes": 1000}))
    return guard, client, Envelope(None, Frame(b"x" * size))


def test_a_frame_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    guard, client, envelope = oversized(tmp_path, 1001)
    with pytest.raises(MessageError, match=r"work\.frame_bytes is 1000; received a request of 1001 bytes"):
        guard.endpoint.handle(envelope)
    assert "request" not in vars(envelope.frame)
    assert not client.asked
    assert lines(tmp_path) == [(REFUSED, {"codes": {"bad_request": 1}})]


def test_a_frame_of_just_the_size_is_decoded(tmp_path: Path) -> None:
    guard, _, envelope = oversized(tmp_path, 1000)
    with pytest.raises(MessageError, match="1000 bytes that are not a whole message"):
        guard.endpoint.handle(envelope)


def test_a_reply_that_would_exceed_the_bytes_stays_and_has_no_line(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path / "free")
    guard.ask(asks()["job"])
    most = guard.last.size + guard.ask(asks()["vectors"]).size
    for allowed, expected in ((most, None), (most - 1, FailureCode.SPENT)):
        folder = tmp_path / str(allowed)
        guard, _ = guarded(folder, rules(most={"bytes_up": allowed}))
        guard.handle(asks()["job"])
        assert code(guard.handle(asks()["vectors"])) is expected
        assert [event for event, _ in lines(folder)] == [REPLY, REFUSED if expected else REPLY]


def test_a_refusal_that_the_ledger_cannot_take_is_counted_in_a_later_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, at: int) -> None:
        raise StorageError("cannot write: the disk is full")

    guard, _ = guarded(tmp_path, rules(**NO_GRADIENTS))
    with monkeypatch.context() as patch:
        patch.setattr(files, "append", full)
        assert code(guard.handle(asks(GRADIENTS)["job"])) is FailureCode.LEDGER
    assert code(guard.handle(asks()["job"])) is None
    assert lines(tmp_path)[0] == (REFUSED, {"codes": {"refused": 1}})
