"""The owner's policy around its client: what it does not allow does not leave."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.federation.assignment import run_digest
from ifedicl.federation.handler import Disclosure, Replier
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
from ifedicl.ledger.usage import ExampleSet, History
from ifedicl.owner.policy import Policy
from ifedicl.owner.rules import RefusalError, check_assignment, check_behind, check_epsilon, check_new, check_request
from ifedicl.settings import Method

_log = logging.getLogger(__name__)
_SHARDS = 1
"""Parts of a class that were once summed apart. The number stays in the digest, so that entries of older ledgers compare."""


class GuardedClient(Replier, Protocol):
    """What a guard needs of a client."""

    @property
    def cursor(self) -> str:
        """The client's own name for the training examples of the present task."""
        ...

    def examples_behind(self, cursor: str) -> npt.NDArray[np.int64]:
        """``(C,)``: how many of them, of each class, stand behind a cursor; all 0 where they changed since."""
        ...

    @property
    def spent_epsilon(self) -> float | None:
        """The ε of all that left in this run, for one example; None: there is no DP guarantee."""
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


class Guard:
    """The owner's policy around a client. What it refuses becomes a code; the reason stays in the owner's own log."""

    def __init__(self, client: GuardedClient, policy: Policy, history: History) -> None:
        """Nothing is asked yet.

        Args:
            client: answers what is allowed.
            policy: what may leave.
            history: what has left already; whoever writes the ledger keeps it up to date.
        """
        self._client = client
        self._policy = policy
        self._history = history
        self._contexts: dict[str, _Job | None] = {}  # None: refused

    @property
    def name(self) -> str:
        """The client's."""
        return self._client.name

    def handle(self, request: Request, /) -> Disclosure:
        """Ask the client what is allowed. Never raises."""
        job: _Job | None = None
        try:
            job = self._job_of(request)
            reply = self._client.handle(request)
            if isinstance(reply, Failure):
                return Disclosure(reply, job.run)
            check_behind(self._policy, job.method, reply)
            disclosure = Disclosure(reply, job.run, self._example_set(reply, job), self._epsilon(job))
            if isinstance(request, ContextRequest):
                self._contexts[request.context_id] = job
            return disclosure
        except RefusalError as refusal:
            _log.warning("client %s refuses a %s request: %s", self._client.name, request.kind, refusal.reason)
            code = refusal.code
            if isinstance(request, ContextRequest):
                self._contexts[request.context_id] = None
        except Exception:
            _log.exception("client %s could not answer a %s request", self._client.name, request.kind)
            code = FailureCode.INTERNAL
        return Disclosure(Failure(code), job.run if job else "")

    def _job_of(self, request: Request) -> _Job:
        """Which job a request belongs to, once it is allowed."""
        if isinstance(request, SumRequest):
            raise RefusalError(FailureCode.OTHER_MODE, "a step of a secure sum, which a layer around this one answers")
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
        check_assignment(self._policy, task, method, fingerprint)
        others, most = self._history.jobs - {job.run}, self._policy.most.jobs
        if most and len(others) >= most:
            raise RefusalError(FailureCode.SPENT, f"{len(others)} other jobs got answers; most.jobs is {most}")
        return job

    def _epsilon(self, job: _Job) -> float | None:
        """The ε of all that left in this job, this reply included, for the ledger."""
        epsilon = self._client.spent_epsilon
        check_epsilon(self._policy, epsilon, self._history.epsilon_without(job.run))
        return epsilon

    def _example_set(self, reply: Reply, job: _Job) -> ExampleSet | None:
        """Of sums over training examples, for the ledger, once no earlier ones can be subtracted to single examples out."""
        if not isinstance(reply, VectorsReply | StatisticsReply | GradientReply):
            return None
        cursor = self._client.cursor
        counts = self._client.examples_behind(cursor)
        now = ExampleSet(job.question, _split(reply, job.method), cursor, int(counts.sum()))
        last = self._history.last_set(job.question, reply.kind)
        if last is not None and self._policy.least.new_examples > 1:
            self._check_growth(last, now, counts, reply)
        return now

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
