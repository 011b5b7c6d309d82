"""The owner at the client's door: what its policy does not let out stays in, and what leaves is in its ledger first."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.errors import StorageError
from ifedicl.federation.assignment import run_digest
from ifedicl.federation.engine import Door
from ifedicl.federation.messages import (
    ContextRequest,
    Failure,
    FailureCode,
    GradientReply,
    Reply,
    Request,
    StatisticsReply,
    SumRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.ledger.ledger import Ledger
from ifedicl.ledger.usage import ExampleSet
from ifedicl.owner.policy import Policy
from ifedicl.owner.recorder import Recorder
from ifedicl.owner.rules import RefusalError, check_assignment, check_behind, check_epsilon, check_new, check_request
from ifedicl.settings import Method

_log = logging.getLogger(__name__)
_UNKNOWN = ""
_SHARDS = 1
"""Parts of a class that were once summed apart. The number stays in the digest, so that entries of older ledgers compare."""


class Answers(Door, Protocol):
    """What a guard needs of a client."""

    @property
    def cursor(self) -> str:
        """The client's own name for the training examples of the present job."""
        ...

    def examples_behind(self, cursor: str) -> npt.NDArray[np.int64]:
        """``(C,)``: how many of them, of each class, stand behind a cursor; all 0 where they changed since."""
        ...

    @property
    def spent_epsilon(self) -> float | None:
        """What all that left in this run tells of one example; None: nothing bounds it."""
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


@dataclass(frozen=True)
class Checked:
    """A reply as the policy lets it out.

    Attributes:
        reply: or a code in its place.
        run: digest of the job; empty where it is not known.
        facts: for the ledger, beside those of every reply.
    """

    reply: Reply
    run: str = _UNKNOWN
    facts: dict[str, Any] = field(default_factory=dict)


class Guard:
    """A policy between requests and a client. What is refused becomes a code; the reason stays in the owner's own log."""

    def __init__(self, client: Answers, policy: Policy, recorder: Recorder) -> None:
        """Nothing is asked yet."""
        self._client = client
        self._policy = policy
        self._recorder = recorder
        self._contexts: dict[str, _Job | None] = {}  # None: refused

    def answer(self, request: Request) -> Checked:
        """Ask the client what is allowed. Never raises."""
        job: _Job | None = None
        try:
            self._recorder.check_head(request)
            job = self._job_of(request)
            reply = self._client.handle(request)
            check_behind(self._policy, job.method, reply)
            facts = self._example_set(reply, job) | self._told(reply, job)
            if isinstance(request, ContextRequest) and not isinstance(reply, Failure):
                self._contexts[request.context_id] = job
            return Checked(reply, job.run, facts)
        except RefusalError as refusal:
            _log.warning("client %s refuses a %s request: %s", self._client.name, request.kind, refusal.reason)
            code = refusal.code
            if isinstance(request, ContextRequest):
                self._contexts[request.context_id] = None
        except Exception:
            _log.exception("client %s could not answer a %s request", self._client.name, request.kind)
            code = FailureCode.INTERNAL
        return Checked(Failure(code), job.run if job else _UNKNOWN)

    def _job_of(self, request: Request) -> _Job:
        """Which job a request belongs to, once it is allowed."""
        if isinstance(request, SumRequest):
            raise RefusalError(FailureCode.OTHER_MODE, "a step of a secure sum, which a door before this one answers")
        history = self._recorder.history
        if not isinstance(request, VectorsRequest | ContextRequest):
            job = self._contexts.get(request.context_id)
            if job is None:
                refused = request.context_id in self._contexts
                code = FailureCode.REFUSED if refused else FailureCode.NO_CONTEXT
                raise RefusalError(code, "its context was refused" if refused else "its context is not known here")
            check_request(self._policy, request, history.spent(job.run))
            return job
        task, method, fingerprint = request.task, request.method, request.fingerprint
        question = hashlib.sha256((task.digest + fingerprint).encode()).hexdigest()
        job = _Job(run_digest(task, method, fingerprint), question, method)
        check_assignment(self._policy, task, method, fingerprint)
        others, most = history.jobs - {job.run}, self._policy.most.jobs
        if most and len(others) >= most:
            raise RefusalError(FailureCode.SPENT, f"{len(others)} other jobs got answers; most.jobs is {most}")
        return job

    def _told(self, reply: Reply, job: _Job) -> dict[str, Any]:
        """What all that left in this job, this reply included, tells of one example; for the ledger."""
        if isinstance(reply, Failure):
            return {}
        epsilon = self._client.spent_epsilon
        check_epsilon(self._policy, epsilon, self._recorder.history.epsilon_without(job.run))
        return {"epsilon": epsilon}

    def _example_set(self, reply: Reply, job: _Job) -> dict[str, Any]:
        """Of sums over training examples, for the ledger, once no earlier ones can be subtracted to single examples out."""
        if not isinstance(reply, VectorsReply | StatisticsReply | GradientReply):
            return {}
        cursor = self._client.cursor
        counts = self._client.examples_behind(cursor)
        now = ExampleSet(job.question, _split(reply, job.method), cursor, int(counts.sum()))
        last = self._recorder.history.last_set(job.question, reply.kind)
        if last is not None and self._policy.least.new_examples > 1:
            self._check_growth(last, now, counts, reply)
        return {"examples": asdict(now)}

    def _check_growth(self, last: ExampleSet, now: ExampleSet, counts: npt.NDArray[np.int64], reply: Reply) -> None:
        told = "and the difference of two such answers can be one example's; least.new_examples = 1 would let it out"
        if now.split != last.split:
            what = "seed, holdout or draw differ from those of earlier answers of this kind to this task"
            raise RefusalError(FailureCode.REFUSED, f"{what}, {told}")
        if now.cursor == last.cursor:
            return
        before = self._client.examples_behind(last.cursor)
        if before.sum() != last.examples:
            what = "examples were changed or taken out since earlier answers of this kind to this task"
            raise RefusalError(FailureCode.REFUSED, f"{what}, {told}")
        check_new(self._policy, _apart(reply, counts - before))


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
        self._recorder = Recorder(ledger, policy.most, overhead)
        self._guard = Guard(client, policy, self._recorder)

    def handle(self, request: Request) -> Reply:
        """Answer one request. Never raises.

        A reply is on the owner's disk before it is returned. Where that fails, nothing leaves but a code.
        """
        return _written(self._recorder, request, self._guard.answer(request))


class SummedClient:
    """A client that takes part in secure sums behind its owner's policy and ledger.

    The policy looks at what goes into a sum; the ledger has a line of that, without a digest, and one of each message that
    leaves of it.
    """

    def __init__(
        self,
        client: Answers,
        policy: Policy,
        ledger: Ledger,
        secure: Callable[[Callable[[Request], Reply]], Door],
        *,
        overhead: Callable[[int], int] = lambda _frame: 0,
    ) -> None:
        """Stand before and behind the door that masks.

        Args:
            client: answers what is allowed.
            policy: what may go into a sum.
            ledger: where what leaves is written first.
            secure: makes that door of whoever answers its plain requests.
            overhead: how many bytes the engine adds to a frame of so many.
        """
        self.name = client.name
        self._recorder = Recorder(ledger, policy.most, overhead)
        self._guard = Guard(client, policy, self._recorder)
        self._door = secure(self._plain)
        self._run = _UNKNOWN

    def handle(self, request: Request) -> Reply:
        """Answer one message of a sum. Never raises; as :meth:`GuardedClient.handle`."""
        try:
            self._recorder.check_head(request)
            reply = self._door.handle(request)
        except RefusalError as refusal:
            _log.warning("client %s refuses a %s request: %s", self.name, request.kind, refusal.reason)
            reply = Failure(refusal.code)
        return _written(self._recorder, request, Checked(reply, self._run))

    def _plain(self, request: Request) -> Reply:
        checked = self._guard.answer(request)
        self._run = checked.run
        if not isinstance(checked.reply, Failure):
            self._recorder.summed(checked.reply, checked.run, checked.facts)
        return checked.reply


def _written(recorder: Recorder, request: Request, checked: Checked) -> Reply:
    """The reply once it is on the disk; a code where it is not."""
    try:
        return recorder.leaving(request, checked.reply, checked.run, checked.facts)
    except StorageError as error:
        _log.error("the reply to a %s request was kept back: %s", request.kind, error)
        return Failure(FailureCode.LEDGER)
    except Exception:
        _log.exception("the ledger could not be written; the reply to a %s request was kept back", request.kind)
        return Failure(FailureCode.LEDGER)


def _apart(reply: Reply, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``(C,)`` counts as the reply keeps examples apart: by class, or not at all."""
    by_class = isinstance(reply, StatisticsReply) or (isinstance(reply, VectorsReply) and len(reply.vectors.counts) > 1)
    return counts if by_class else counts.sum(keepdims=True)


def _split(reply: Reply, method: Method) -> str:
    """Digest of what decides which examples are in the sums of a reply, and how they are divided."""
    content: list[float] = [method.seed, method.holdout.selection, method.holdout.gate, _SHARDS]
    if isinstance(reply, GradientReply) and method.server is not None:
        content.append(method.server.draw)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
