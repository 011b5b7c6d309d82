"""The owner at the client's door: what its policy does not let out stays in, and what leaves is in its ledger first."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from ifedicl.federation.assignment import run_digest
from ifedicl.federation.engine import Door
from ifedicl.federation.messages import (
    ContextRequest,
    Failure,
    FailureCode,
    Reply,
    Request,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.privacy.history import ExampleSet, History
from ifedicl.privacy.ledger import REPLY, Ledger
from ifedicl.privacy.policy import Policy
from ifedicl.privacy.rules import RefusalError, check_assignment, check_behind, check_request
from ifedicl.settings import Method

_log = logging.getLogger(__name__)
_UNKNOWN = ""


class Answers(Door, Protocol):
    """What a guard needs of a client."""

    def vouched(self, cursor: str) -> int:
        """How many training examples of the present job stand behind a cursor."""
        ...


@dataclass(frozen=True)
class _Job:
    """What a request belongs to.

    Attributes:
        run: its digest.
        question: digest of task and model.
        method: its settings.
    """

    run: str
    question: str
    method: Method


class GuardedClient:
    """A client behind its owner's policy and ledger; the same door."""

    def __init__(
        self, client: Answers, policy: Policy, ledger: Ledger, *, overhead: Callable[[int], int] = lambda _frame: 0
    ) -> None:
        """Stand before ``client``.

        Args:
            client: answers what is allowed.
            policy: what may leave.
            ledger: where what leaves is written first.
            overhead: how many bytes the engine adds to a frame of so many.
        """
        self.name = client.name
        self._client = client
        self._policy = policy
        self._ledger = ledger
        self._overhead = overhead
        self._history = History.of(ledger)
        self._contexts: dict[str, _Job | None] = {}  # None: refused

    def handle(self, request: Request) -> Reply:
        """Answer one request. Never raises; what is refused becomes a code, and the reason stays in the owner's own log.

        A reply is on the owner's disk before it is returned. Where that fails, nothing leaves but a code.
        """
        job: _Job | None = None
        facts: dict[str, Any] = {}
        try:
            self._check_head(request)
            job = self._job_of(request)
            reply = self._answer(request, job)
            facts = self._example_set(reply, job)
        except RefusalError as refusal:
            _log.warning("client %s refuses a %s request: %s", self.name, request.kind, refusal.reason)
            reply = Failure(refusal.code)
        except Exception:
            _log.exception("client %s could not answer a %s request", self.name, request.kind)
            reply = Failure(FailureCode.INTERNAL)
        try:
            return self._recorded(request, reply, job.run if job else _UNKNOWN, facts)
        except Exception:
            _log.exception("client %s could not write its ledger; a %s reply was kept back", self.name, request.kind)
            return Failure(FailureCode.LEDGER)

    def _check_head(self, request: Request) -> None:
        if request.head is not None and not self._ledger.knows(request.head):
            raise RefusalError(
                FailureCode.LEDGER,
                f"the coordinator holds entry {request.head.entries} of another ledger than this one, which has "
                f"{self._ledger.head.entries}. If the file was restored from a copy, bring back the newest one",
            )

    def _job_of(self, request: Request) -> _Job:
        """Which job a request belongs to, once it is allowed."""
        if not isinstance(request, VectorsRequest | ContextRequest):
            job = self._contexts.get(request.context_id)
            if job is None:
                refused = request.context_id in self._contexts
                code = FailureCode.REFUSED if refused else FailureCode.NO_CONTEXT
                raise RefusalError(code, "its context was refused" if refused else "its context is not known here")
            check_request(self._policy, request, self._history.spent(job.run))
            return job
        task, method, fingerprint = request.task, request.method, request.fingerprint
        question = hashlib.sha256((task.digest + fingerprint).encode()).hexdigest()
        job = _Job(run_digest(task, method, fingerprint), question, method)
        if isinstance(request, ContextRequest):
            self._contexts[request.context_id] = None
        check_assignment(self._policy, task, method, fingerprint)
        others, most = self._history.jobs - {job.run}, self._policy.most.jobs
        if most and len(others) >= most:
            raise RefusalError(FailureCode.SPENT, f"{len(others)} other jobs got answers; most.jobs is {most}")
        return job

    def _answer(self, request: Request, job: _Job) -> Reply:
        reply = self._client.handle(request)
        check_behind(self._policy, job.method, reply)
        if isinstance(request, ContextRequest) and not isinstance(reply, Failure):
            self._contexts[request.context_id] = job
        return reply

    def _example_set(self, reply: Reply, job: _Job) -> dict[str, Any]:
        """Of a vectors reply, for the ledger, once it cannot be subtracted from an earlier one to single examples out."""
        if not isinstance(reply, VectorsReply):
            return {}
        now = ExampleSet(job.question, _split(job.method), reply.cursor, self._client.vouched(reply.cursor))
        last, least = self._history.last_set(job.question), self._policy.least.new_examples
        if last is not None and least > 1:
            self._check_growth(last, now, least)
        return {"examples": asdict(now)}

    def _check_growth(self, last: ExampleSet, now: ExampleSet, least: int) -> None:
        if now.split != last.split:
            raise RefusalError(
                FailureCode.REFUSED,
                "seed, holdout or shards differ from those of earlier vectors of this task, and the difference of two such "
                "means can be one example's; least.new_examples = 1 would let it out",
            )
        if now.cursor == last.cursor:
            return
        if self._client.vouched(last.cursor) != last.examples:
            raise RefusalError(
                FailureCode.REFUSED,
                "examples were changed or taken out since earlier vectors of this task, and the difference of two such means "
                "can be one example's; least.new_examples = 1 would let it out",
            )
        if (new := now.examples - last.examples) < least:
            raise RefusalError(FailureCode.TOO_FEW, f"{new} new examples; least.new_examples is {least}")

    def _recorded(self, request: Request, reply: Reply, run: str, facts: Mapping[str, Any]) -> Reply:
        """The reply with the head of the ledger that it is in."""
        entry = self._entry(request, reply, run, facts)
        spent, most = self._history.spent(run), self._policy.most.bytes_up
        if most and not isinstance(reply, Failure) and spent.bytes + entry["bytes"] + entry["engine_bytes"] > most:
            _log.warning("client %s refuses a %s request: most.bytes_up is %d, and spent", self.name, request.kind, most)
            reply = Failure(FailureCode.SPENT)
            entry = self._entry(request, reply, run, {})
        head = self._ledger.append(REPLY, entry)
        self._history.note(entry)
        return replace(reply, head=head)

    def _entry(self, request: Request, reply: Reply, run: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Facts of the ledger's next line. The digest is of the reply without the head, which it is a part of itself."""
        header, arrays = reply.to_wire()
        body = encode(replace(reply, head=None))
        head = self._ledger.head
        frame = len(encode(replace(reply, head=replace(head, entries=head.entries + 1))))
        code = {"code": header["code"]} if isinstance(reply, Failure) else {}
        return {
            "run": run,
            "kind": reply.kind,
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "bytes": frame,
            "engine_bytes": self._overhead(frame),
            "sha256": hashlib.sha256(body).hexdigest(),
            "epsilon": None,
            "held": request.head.entries if request.head else 0,
            **code,
            **facts,
        }


def _split(method: Method) -> str:
    """Digest of what decides which examples are trained on, and how their sums are divided."""
    content = [method.seed, method.holdout.selection, method.holdout.gate, method.shards]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
