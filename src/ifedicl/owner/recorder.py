"""The outermost layers of a client: they write each reply to the ledger before it leaves, and limit the bytes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ifedicl.errors import MessageError, StorageError
from ifedicl.federation import messages
from ifedicl.federation.handler import Discloser, Disclosure
from ifedicl.federation.messages import Envelope, Failure, FailureCode, Frame, Request
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import REFUSED, REPLY, SUMMED
from ifedicl.ledger.usage import CountedLedger, History
from ifedicl.owner.policy import Policy

_log = logging.getLogger(__name__)


def no_bytes(_frame: int) -> int:
    """The engine adds nothing."""
    return 0


class Recorder:
    """Writes each reply to the ledger before it leaves, and sends the ledger's head with it.

    A failure leaves without a line and without a head. Failures are counted, and share a line: a coordinator that asks without
    end cannot fill the disk.
    """

    def __init__(
        self,
        inner: Discloser,
        ledger: CountedLedger,
        policy: Policy,
        overhead: Callable[[int], int] = no_bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the layers and limits of one client.

        Args:
            inner: the inner layer.
            ledger: of the client.
            policy: limits of bytes and work.
            overhead: from the size of a message, the bytes that an engine adds.
            clock: in seconds.
        """
        self.name = inner.name
        self._inner = inner
        self._ledger = ledger
        self._most = policy.most
        self._work = policy.work
        self._overhead = overhead
        self._clock = clock
        self._refusals: Counter[str] = Counter()  # by code, since the last line of refusals
        self._next_line = -float("inf")

    def handle(self, envelope: Envelope, /) -> Envelope:
        """Answer one request. If the ledger cannot be written, a code leaves in place of the reply.

        Raises:
            MessageError: the frame holds no request, or is too large.
        """
        try:
            if (size := len(envelope.frame.data)) > self._work.frame_bytes:
                raise MessageError(f"work.frame_bytes is {self._work.frame_bytes}; received a request of {size} bytes")
            request = envelope.frame.request
        except MessageError:
            with suppress(StorageError):
                self._refuse(FailureCode.BAD_REQUEST)
            raise
        try:
            disclosure = self._answer(envelope.head, request)
            if not isinstance(disclosure.reply, Failure):
                return self._recorded(envelope, request, disclosure)
            return self._refuse(disclosure.reply.code)
        except StorageError as error:
            _log.error("the ledger cannot be written: %s. The reply to a %s request does not leave", error, request.kind)
        except Exception:
            _log.exception("the ledger cannot be written. The reply to a %s request does not leave", request.kind)
        return Envelope.of(Failure(FailureCode.LEDGER))

    def _answer(self, head: Head | None, request: Request) -> Disclosure:
        if not request.carries_head:
            return self._inner.handle(request)
        if head is not None and self._ledger.knows(head):
            return self._inner.handle(request)
        received = "no head" if head is None else f"entry {head.entries} of another ledger"
        _log.warning(
            "client %s refuses a %s request: it must name the head of this ledger, which has %d entries; received %s. If the "
            "file was restored from a copy, restore the newest one",
            self.name,
            request.kind,
            self._ledger.head.entries,
            received,
        )
        return Disclosure(Failure(FailureCode.LEDGER))

    def _recorded(self, asked: Envelope, request: Request, disclosure: Disclosure) -> Envelope:
        """The reply, once its line is on the disk; a code if it would exceed ``most.bytes_up``."""
        frame = Frame.of(disclosure.reply)
        entry = self._entry(asked, disclosure, frame)
        spent, most = self._ledger.history.spent(disclosure.facts.run).bytes, self._most.bytes_up
        if most and spent + entry["bytes"] + entry["engine_bytes"] > most:
            _log.warning("a %s request is refused: most.bytes_up is %d and would be exceeded", request.kind, most)
            return self._refuse(FailureCode.SPENT)
        self._write_refusals()
        return Envelope(self._ledger.append(REPLY, entry), frame)

    def _entry(self, asked: Envelope, disclosure: Disclosure, frame: Frame) -> dict[str, Any]:
        """The ledger's next line."""
        size = Envelope(self._ledger.head, frame).size
        sizes = {"bytes": size, "engine_bytes": self._overhead(size), "sha256": frame.digest}
        known = asked.head.entries if asked.head else 0
        return {"kind": disclosure.reply.kind, "shapes": frame.shapes, "held": known} | disclosure.facts.as_json | sizes

    def _refuse(self, code: FailureCode) -> Envelope:
        """The code as a reply. It is counted; a line says how many there were, at most one in ``work.refusal_seconds``."""
        self._refusals[code.value] += 1
        if (now := self._clock()) >= self._next_line:
            self._next_line = now + self._work.refusal_seconds
            self._write_refusals()
        return Envelope.of(Failure(code))

    def _write_refusals(self) -> None:
        if self._refusals:
            self._ledger.append(REFUSED, {"codes": dict(self._refusals)})
            self._refusals.clear()


class SumRecorder:
    """Writes each reply that goes into a secure sum to the ledger. :class:`Recorder` writes the messages of the sum."""

    def __init__(self, inner: Discloser, append: Callable[[str, dict[str, Any]], object]) -> None:
        """Take the inner layer, and what writes a line: of a ledger, or of a history where there is no ledger."""
        self.name = inner.name
        self._inner = inner
        self._append = append

    def handle(self, request: Request, /) -> Disclosure:
        """The reply, once its line is on the disk; a code if the line cannot be written.

        The line has no digest: a reader of the ledger could test guesses of the hidden reply with it.
        """
        disclosure = self._inner.handle(request)
        if isinstance(disclosure.reply, Failure) or isinstance(request, messages.JobRequest | messages.ContextRequest):
            return disclosure  # these leave as they are, and the recorder writes their line
        shapes = {name: list(array.shape) for name, array in disclosure.reply.to_wire()[1].items()}
        # Without the request's name: the same request again counts again, because it can be summed over other clients.
        facts = replace(disclosure.facts, asked="").as_json
        facts |= {"kind": disclosure.reply.kind, "shapes": shapes, "bytes": 0, "engine_bytes": 0}
        try:
            self._append(SUMMED, facts)
        except StorageError as error:
            _log.error("the ledger cannot be written: %s. The reply to a %s request stays out of the sum", error, request.kind)
            return Disclosure(Failure(FailureCode.LEDGER))
        return disclosure


class Unrecorded:
    """The outermost layer of a simulated client without a ledger. It counts the replies, so that limits and ε hold."""

    def __init__(self, inner: Discloser, history: History) -> None:
        self.name = inner.name
        self._inner = inner
        self._history = history

    def handle(self, envelope: Envelope, /) -> Envelope:
        """Answer one request.

        Raises:
            MessageError: the frame holds no request.
        """
        disclosure = self._inner.handle(envelope.frame.request)
        reply = Envelope.of(disclosure.reply)
        sizes = {"bytes": reply.size, "engine_bytes": 0}
        self._history.note({"kind": disclosure.reply.kind} | disclosure.facts.as_json | sizes)
        return reply
