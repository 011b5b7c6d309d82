"""Applies the owner's policy to each request and each reply of a client."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.federation import messages
from ifedicl.federation.assignment import run_digest
from ifedicl.federation.handler import Disclosure, Replier
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.ledger.usage import ExampleSet, History
from ifedicl.owner.policy import Policy
from ifedicl.owner.rules import RefusalError, check_assignment, check_behind, check_epsilon, check_new, check_request
from ifedicl.settings import Method

_log = logging.getLogger(__name__)
_SHARDS = 1
"""Former number of sums per class. It stays in the digest, so that entries of older ledgers compare."""


class GuardedClient(Replier, Protocol):
    """What a guard needs of a client."""

    @property
    def cursor(self) -> str:
        """The client's own name for the training examples of the present task."""

    def examples_behind(self, cursor: str) -> npt.NDArray[np.int64]:
        """``(C,)``: how many examples of each class a cursor stands for; all 0 if they have changed since."""

    @property
    def spent_epsilon(self) -> float | None:
        """The ε of all replies of this run, for one example; None: there is no DP guarantee."""


@dataclass(frozen=True)
class _Job:
    """The run that a request belongs to: its digest, the digest of task and model, its settings."""

    run: str
    question: str
    method: Method


class Guard:
    """The owner's policy around a client. A refusal leaves as a code; its reason stays in the owner's own log."""

    def __init__(self, client: GuardedClient, policy: Policy, history: History) -> None:
        """Take a client, its policy, and the history of replies that have left, which the ledger's writer updates."""
        self.name = client.name
        self._client = client
        self._policy = policy
        self._history = history
        self._contexts: dict[str, _Job | None] = {}  # None: refused

    def handle(self, request: Request, /) -> Disclosure:
        """Answer an allowed request; refuse any other. Never raises."""
        job: _Job | None = None
        try:
            job = self._job_of(request)
            reply = self._client.handle(request)
            if isinstance(reply, Failure):
                return Disclosure(reply, job.run)
            check_behind(self._policy, job.method, reply)
            examples, epsilon = self._example_set(reply, job), self._client.spent_epsilon
            check_epsilon(self._policy, epsilon, self._history.epsilon_without(job.run))
            if isinstance(request, messages.ContextRequest):
                self._contexts[request.context_id] = job
            return Disclosure(reply, job.run, examples, epsilon)
        except RefusalError as refusal:
            _log.warning("client %s refuses a %s request: %s", self.name, request.kind, refusal.reason)
            code = refusal.code
            if isinstance(request, messages.ContextRequest):
                self._contexts[request.context_id] = None
        except Exception:
            _log.exception("client %s could not answer a %s request", self.name, request.kind)
            code = FailureCode.INTERNAL
        return Disclosure(Failure(code), job.run if job else "")

    def _job_of(self, request: Request) -> _Job:
        """The job that an allowed request belongs to.

        Raises:
            RefusalError: the request is not allowed.
        """
        if isinstance(request, messages.SumRequest):
            raise RefusalError("this client answers in open mode; received a step of a secure sum", FailureCode.OTHER_MODE)
        if not isinstance(request, messages.VectorsRequest | messages.ContextRequest):
            job = self._contexts.get(request.context_id)
            if job is None:
                refused = request.context_id in self._contexts
                code = FailureCode.REFUSED if refused else FailureCode.NO_CONTEXT
                raise RefusalError("its context was refused" if refused else "its context is not known here", code)
            check_request(self._policy, request, self._history.spent(job.run))
            return job
        task, method, fingerprint = request.task, request.method, request.fingerprint
        question = hashlib.sha256((task.digest + fingerprint).encode()).hexdigest()
        job = _Job(run_digest(task, method, fingerprint), question, method)
        check_assignment(self._policy, task, method, fingerprint)
        others, most = self._history.jobs - {job.run}, self._policy.most.jobs
        if most and len(others) >= most:
            raise RefusalError(f"most.jobs is {most}; {len(others)} other jobs got replies", FailureCode.SPENT)
        return job

    def _example_set(self, reply: Reply, job: _Job) -> ExampleSet | None:
        """The training examples behind a sum, for the ledger; None for other replies.

        Raises:
            RefusalError: the difference between this sum and an earlier one covers too few examples.
        """
        if not isinstance(reply, messages.VectorsReply | messages.StatisticsReply | messages.GradientReply):
            return None
        cursor = self._client.cursor
        counts = self._client.examples_behind(cursor)
        now = ExampleSet(job.question, _split(reply, job.method), cursor, int(counts.sum()))
        last = self._history.last_set(job.question, reply.kind)
        if last is not None and self._policy.least.new_examples > 1:
            self._check_growth(last, now, counts, reply)
        return now

    def _check_growth(self, last: ExampleSet, now: ExampleSet, counts: npt.NDArray[np.int64], reply: Reply) -> None:
        remedy = "the difference of two such replies can be one example's; least.new_examples = 1 would allow it"
        if now.split != last.split:
            raise RefusalError(f"seed, holdout or draw differ from earlier replies of this kind to this task; {remedy}")
        if now.cursor == last.cursor:
            return
        before = self._client.examples_behind(last.cursor)
        if before.sum() != last.examples:
            raise RefusalError(f"examples were changed or removed since earlier replies of this kind to this task; {remedy}")
        check_new(self._policy, _by_sum(reply, counts - before))


def _by_sum(reply: Reply, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts ``(C,)`` for each sum of the reply: ``(C,)`` if it has one by class, else their total ``(1,)``."""
    by_class = isinstance(reply, messages.StatisticsReply) or (
        isinstance(reply, messages.VectorsReply) and len(reply.vectors.counts) > 1
    )
    return counts if by_class else counts.sum(keepdims=True)


def _split(reply: Reply, method: Method) -> str:
    """Digest of the settings that decide which examples are in the sums of a reply."""
    content: list[float] = [method.seed, method.holdout.selection, method.holdout.gate, _SHARDS]
    if isinstance(reply, messages.GradientReply) and method.server is not None:
        content.append(method.server.draw)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
