"""The outermost layers of a client's end: what leaves is in the owner's ledger first, and limits on bytes are kept."""

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
    """Writes each reply to the ledger before it leaves, and puts the ledger's head beside it."""

    def __init__(
        self, inner: Discloser, ledger: CountedLedger, most: MostSettings, overhead: Callable[[int], int] = no_bytes
    ) -> None:
        """Nothing is asked yet.

        Args:
            inner: gives the replies.
            ledger: where they are written.
            most: how much may leave.
            overhead: given the size of a message, how many bytes the engine adds to it.
        """
        self._inner = inner
        self._ledger = ledger
        self._most = most
        self._overhead = overhead

    @property
    def name(self) -> str:
        """The client's."""
        return self._inner.name

    def handle(self, envelope: Envelope, /) -> Envelope:
        """Answer one request. A reply whose line cannot be written does not leave: a code does.

        Raises:
            MessageError: the frame holds no request.
        """
        request = envelope.frame.request
        try:
            return self._recorded(envelope, request, self._answer(envelope.head, request))
        except StorageError as error:
            _log.error("the reply to a %s request was kept back: %s", request.kind, error)
        except Exception:
            _log.exception("the ledger could not be written; the reply to a %s request was kept back", request.kind)
        return Envelope.of(Failure(FailureCode.LEDGER))

    def _answer(self, head: Head | None, request: Request) -> Disclosure:
        if head is None or self._ledger.knows(head):
            return self._inner.handle(request)
        _log.warning(
            "client %s refuses a %s request: the coordinator holds entry %d of another ledger than this one, which has %d. If "
            "the file was restored from a copy, bring back the newest one",
            self.name,
            request.kind,
            head.entries,
            self._ledger.head.entries,
        )
        return Disclosure(Failure(FailureCode.LEDGER))

    def _recorded(self, asked: Envelope, request: Request, disclosure: Disclosure) -> Envelope:
        """The reply, once its line is on the disk; a code where it would be too much."""
        frame = Frame.of(disclosure.reply)
        entry = self._entry(asked, disclosure, frame)
        spent, most = self._ledger.history.spent(disclosure.run).bytes, self._most.bytes_up
        is_over = most and spent + entry["bytes"] + entry["engine_bytes"] > most
        if is_over and not isinstance(disclosure.reply, Failure):
            _log.warning("a %s request is refused: most.bytes_up is %d, and spent", request.kind, most)
            disclosure = Disclosure(Failure(FailureCode.SPENT), disclosure.run)
            frame = Frame.of(disclosure.reply)
            entry = self._entry(asked, disclosure, frame)
        return Envelope(self._ledger.append(REPLY, entry), frame)

    def _entry(self, asked: Envelope, disclosure: Disclosure, frame: Frame) -> dict[str, Any]:
        """Facts of the ledger's next line."""
        size = Envelope(self._ledger.head, frame).size
        code = {"code": disclosure.reply.code.value} if isinstance(disclosure.reply, Failure) else {}
        sizes = {"bytes": size, "engine_bytes": self._overhead(size), "sha256": frame.digest}
        held = asked.head.entries if asked.head else 0
        return _facts(disclosure) | {"shapes": frame.shapes, "held": held} | sizes | code


class SumRecorder:
    """Writes each reply that goes into a secure sum to the ledger. What leaves of it has a line of its own, by a recorder."""

    def __init__(self, inner: Discloser, ledger: CountedLedger) -> None:
        """Nothing is asked yet."""
        self._inner = inner
        self._ledger = ledger

    @property
    def name(self) -> str:
        """The client's."""
        return self._inner.name

    def handle(self, request: Request, /) -> Disclosure:
        """The reply, once its line is on the disk; a code where it is not.

        Its digest is not written: whoever sees the ledger could test a guess of what the sum hides.
        """
        disclosure = self._inner.handle(request)
        if isinstance(disclosure.reply, Failure):
            return disclosure
        shapes = {name: list(array.shape) for name, array in disclosure.reply.to_wire()[1].items()}
        try:
            self._ledger.append(SUMMED, _facts(disclosure) | {"shapes": shapes, "bytes": 0, "engine_bytes": 0})
        except StorageError as error:
            _log.error("the reply to a %s request was kept out of the sum: %s", request.kind, error)
            return Disclosure(Failure(FailureCode.LEDGER), disclosure.run)
        return disclosure


class Unrecorded:
    """The outermost layer of a simulated client that keeps no ledger."""

    def __init__(self, inner: Discloser) -> None:
        """Nothing is asked yet."""
        self._inner = inner

    @property
    def name(self) -> str:
        """The client's."""
        return self._inner.name

    def handle(self, envelope: Envelope, /) -> Envelope:
        """Answer one request.

        Raises:
            MessageError: the frame holds no request.
        """
        return Envelope.of(self._inner.handle(envelope.frame.request).reply)


def _facts(disclosure: Disclosure) -> dict[str, Any]:
    """What every line says of a reply."""
    examples = {} if disclosure.examples is None else {"examples": asdict(disclosure.examples)}
    return {"run": disclosure.run, "kind": disclosure.reply.kind, "epsilon": disclosure.epsilon} | examples
