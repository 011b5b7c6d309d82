"""Writes down what leaves before it leaves, and counts it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ifedicl.federation.messages import Failure, FailureCode, Reply, Request, digest, encode
from ifedicl.ledger.ledger import REPLY, SUMMED, Ledger
from ifedicl.ledger.usage import History
from ifedicl.owner.policy import MostSettings
from ifedicl.owner.rules import RefusalError

_log = logging.getLogger(__name__)


class Recorder:
    """A ledger, and what a policy's limits make of it."""

    def __init__(self, ledger: Ledger, most: MostSettings, overhead: Callable[[int], int]) -> None:
        """Count what has left already.

        Args:
            ledger: where it is written.
            most: how much may leave.
            overhead: how many bytes the engine adds to a frame of so many.
        """
        self.history = History.of(ledger)
        self._ledger = ledger
        self._most = most
        self._overhead = overhead

    def check_head(self, request: Request) -> None:
        """Whether what the coordinator holds is a head of this ledger.

        Raises:
            RefusalError: it is of another one.
        """
        if request.head is not None and not self._ledger.knows(request.head):
            raise RefusalError(
                FailureCode.LEDGER,
                f"the coordinator holds entry {request.head.entries} of another ledger than this one, which has "
                f"{self._ledger.head.entries}. If the file was restored from a copy, bring back the newest one",
            )

    def leaving(self, request: Request, reply: Reply, run: str, facts: Mapping[str, Any]) -> Reply:
        """The reply, on the disk and with the ledger's head; a code where it would be too much.

        Raises:
            StorageError: the ledger cannot be written; nothing may leave.
        """
        entry = self._entry(request, reply, run, facts)
        spent, most = self.history.spent(run).bytes + entry["bytes"] + entry["engine_bytes"], self._most.bytes_up
        if most and spent > most and not isinstance(reply, Failure):
            _log.warning("a %s request is refused: most.bytes_up is %d, and spent", request.kind, most)
            reply = Failure(FailureCode.SPENT)
            entry = self._entry(request, reply, run, {})
        head = self._ledger.append(REPLY, entry)
        self.history.note(entry)
        return replace(reply, head=head)

    def summed(self, reply: Reply, run: str, facts: Mapping[str, Any]) -> None:
        """Write down a reply that goes into a secure sum: what leaves of it is another message, and has a line of its own.

        Its digest is not written: it would let whoever sees the ledger test a guess of what the sum hides.
        """
        shapes = {name: list(array.shape) for name, array in reply.to_wire()[1].items()}
        entry = {"run": run, "kind": reply.kind, "shapes": shapes, "bytes": 0, "engine_bytes": 0, "epsilon": None, **facts}
        self._ledger.append(SUMMED, entry)
        self.history.note(entry)

    def _entry(self, request: Request, reply: Reply, run: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Facts of the ledger's next line. The digest is of the reply without the head, which it is a part of itself."""
        header, arrays = reply.to_wire()
        head = self._ledger.head
        frame = len(encode(replace(reply, head=replace(head, entries=head.entries + 1))))
        code = {"code": header["code"]} if isinstance(reply, Failure) else {}
        return {
            "run": run,
            "kind": reply.kind,
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "bytes": frame,
            "engine_bytes": self._overhead(frame),
            "sha256": digest(reply.kind, header, arrays),
            "epsilon": None,
            "held": request.head.entries if request.head else 0,
            **code,
            **facts,
        }
