"""The outermost layers of a client: they write each reply to the ledger before it leaves, and limit the bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ifedicl.errors import StorageError
from ifedicl.federation.handler import Discloser, Disclosure
from ifedicl.federation.messages import Envelope, Failure, FailureCode, Frame, Request
from ifedicl.ledger.entries import Head
from ifedicl.ledger.ledger import REPLY, SUMMED
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.policy import MostSettings

_log = logging.getLogger(__name__)


def no_bytes(_frame: int) -> int:
    """The engine adds nothing."""
    return 0


class Recorder:
    """Writes each reply to the ledger before it leaves, and sends the ledger's head with it."""

    def __init__(
        self, inner: Discloser, ledger: CountedLedger, most: MostSettings, overhead: Callable[[int], int] = no_bytes
    ) -> None:
        """Take the inner layer, its ledger, the limits, and a function from a message's size to the bytes an engine adds."""
        self.name = inner.name
        self._inner = inner
        self._ledger = ledger
        self._most = most
        self._overhead = overhead

    def handle(self, envelope: Envelope, /) -> Envelope:
        """Answer one request. If the ledger cannot be written, a code leaves in place of the reply.

        Raises:
            MessageError: the frame holds no request.
        """
        request = envelope.frame.request
        try:
            return self._recorded(envelope, request, self._answer(envelope.head, request))
        except StorageError as error:
            _log.error("the ledger cannot be written: %s. The reply to a %s request does not leave", error, request.kind)
        except Exception:
            _log.exception("the ledger cannot be written. The reply to a %s request does not leave", request.kind)
        return Envelope.of(Failure(FailureCode.LEDGER))

    def _answer(self, head: Head | None, request: Request) -> Disclosure:
        if head is None or self._ledger.knows(head):
            return self._inner.handle(request)
        _log.warning(
            "client %s refuses a %s request: the coordinator knows entry %d of another ledger; this one has %d entries. If the "
            "file was restored from a copy, restore the newest one",
            self.name,
            request.kind,
            head.entries,
            self._ledger.head.entries,
        )
        return Disclosure(Failure(FailureCode.LEDGER))

    def _recorded(self, asked: Envelope, request: Request, disclosure: Disclosure) -> Envelope:
        """The reply, once its line is on the disk; a code if it would exceed ``most.bytes_up``."""
        frame = Frame.of(disclosure.reply)
        entry = self._entry(asked, disclosure, frame)
        spent, most = self._ledger.history.spent(disclosure.run).bytes, self._most.bytes_up
        is_over = most and spent + entry["bytes"] + entry["engine_bytes"] > most
        if is_over and not isinstance(disclosure.reply, Failure):
            _log.warning("a %s request is refused: most.bytes_up is %d and would be exceeded", request.kind, most)
            disclosure = Disclosure(Failure(FailureCode.SPENT), disclosure.run)
            frame = Frame.of(disclosure.reply)
            entry = self._entry(asked, disclosure, frame)
        return Envelope(self._ledger.append(REPLY, entry), frame)

    def _entry(self, asked: Envelope, disclosure: Disclosure, frame: Frame) -> dict[str, Any]:
        """The ledger's next line."""
        size = Envelope(self._ledger.head, frame).size
        code = {"code": disclosure.reply.code.value} if isinstance(disclosure.reply, Failure) else {}
        sizes = {"bytes": size, "engine_bytes": self._overhead(size), "sha256": frame.digest}
        known = asked.head.entries if asked.head else 0
        return _facts(disclosure) | {"shapes": frame.shapes, "held": known} | sizes | code


class SumRecorder:
    """Writes each reply that goes into a secure sum to the ledger. :class:`Recorder` writes the messages of the sum."""

    def __init__(self, inner: Discloser, ledger: CountedLedger) -> None:
        self.name = inner.name
        self._inner = inner
        self._ledger = ledger

    def handle(self, request: Request, /) -> Disclosure:
        """The reply, once its line is on the disk; a code if the line cannot be written.

        The line has no digest: a reader of the ledger could test guesses of the hidden reply with it.
        """
        disclosure = self._inner.handle(request)
        if isinstance(disclosure.reply, Failure):
            return disclosure
        shapes = {name: list(array.shape) for name, array in disclosure.reply.to_wire()[1].items()}
        try:
            self._ledger.append(SUMMED, _facts(disclosure) | {"shapes": shapes, "bytes": 0, "engine_bytes": 0})
        except StorageError as error:
            _log.error("the ledger cannot be written: %s. The reply to a %s request stays out of the sum", error, request.kind)
            return Disclosure(Failure(FailureCode.LEDGER), disclosure.run)
        return disclosure


class Unrecorded:
    """The outermost layer of a simulated client without a ledger."""

    def __init__(self, inner: Discloser) -> None:
        self.name = inner.name
        self._inner = inner

    def handle(self, envelope: Envelope, /) -> Envelope:
        """Answer one request.

        Raises:
            MessageError: the frame holds no request.
        """
        return Envelope.of(self._inner.handle(envelope.frame.request).reply)


def _facts(disclosure: Disclosure) -> dict[str, Any]:
    """The fields that every line has."""
    examples = {} if disclosure.examples is None else {"examples": asdict(disclosure.examples)}
    return {"run": disclosure.run, "kind": disclosure.reply.kind, "epsilon": disclosure.epsilon} | examples
