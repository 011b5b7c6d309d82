"""Applies the owner's policy to each request and each reply of a client."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.data import Role
from ifedicl.errors import IfediclError
from ifedicl.federation import messages
from ifedicl.federation.handler import Disclosure, Replier
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.ledger.usage import ExampleSet, History, Holdout, ReplyFacts
from ifedicl.owner.policy import Policy
from ifedicl.owner.rules import (
    RefusalError,
    check_behind,
    check_enough,
    check_epsilon,
    check_job,
    check_limits,
    check_mode,
    check_new,
    check_new_figures,
    check_request,
)

_log = logging.getLogger(__name__)
_ATTEMPTS = 10
"""Requests of a run for each reply that its job needs."""
_NAME_SIZE = 32
"""Hexadecimal digits that name a request in the ledger."""


def none_approved() -> Collection[str]:
    """The owner has approved no single job; its rules decide."""
    return ()


class GuardedClient(Replier, Protocol):
    """What a guard needs of a client."""

    @property
    def split(self) -> str:
        """Names how the client's examples are divided into roles for the present job."""

    def cursor(self, role: Role) -> str:
        """The client's own name for its examples of the present task with this role."""

    def examples_behind(self, cursor: str, role: Role) -> npt.NDArray[np.int64]:
        """``(C,)``: how many examples of each class a cursor stands for; all 0 if they have changed since."""

    @property
    def spent_epsilon(self) -> float | None:
        """The ε of all replies of this run, for one example; None: there is no DP guarantee."""


class _Behind(NamedTuple):
    """The examples behind the reply to one request: the client's cursor for them, and how many of each class, ``(C,)``."""

    role: Role
    cursor: str
    counts: npt.NDArray[np.int64]

    @property
    def examples(self) -> int:
        """The number of them."""
        return int(self.counts.sum())


class Guard:
    """The owner's policy around a client. A refusal leaves as a code; its reason stays in the owner's own log."""

    def __init__(
        self,
        client: GuardedClient,
        policy: Policy,
        history: History,
        *,
        approved: Callable[[], Collection[str]] = none_approved,
        masked: bool = False,
    ) -> None:
        """Take a client and its rules.

        Args:
            client: the data owner.
            policy: its rules.
            history: of the replies that have left, which the ledger's writer updates.
            approved: the digests of the jobs that the owner has approved; read for each job that comes.
            masked: whether the replies go into secure sums.
        """
        self.name = client.name
        self._client = client
        self._policy = policy
        self._history = history
        self._approved = approved
        self._masked = masked
        self._manifest: Manifest | None = None
        self._refused: tuple[str, FailureCode] | None = None  # the last job that was refused, and why
        self._attempts: Counter[str] = Counter()  # by run: requests since the start, answered or not

    def handle(self, request: Request, /) -> Disclosure:
        """Answer an allowed request; refuse any other. Never raises."""
        try:
            if isinstance(request, messages.SumRequest):
                raise RefusalError("this client answers in open mode; received a step of a secure sum", FailureCode.OTHER_MODE)
            if isinstance(request, messages.JobRequest):
                return self._take(request)
            return self._answer(request, self._manifest_for(request))
        except RefusalError as refusal:
            _log.warning("client %s refuses a %s request: %s", self.name, request.kind, refusal.reason)
            return Disclosure(Failure(refusal.code))
        except IfediclError as error:
            _log.error("client %s cannot answer a %s request: %s", self.name, request.kind, error)
            return Disclosure(Failure(FailureCode.INTERNAL))
        except Exception:
            _log.exception("client %s could not answer a %s request", self.name, request.kind)
            return Disclosure(Failure(FailureCode.INTERNAL))

    def _count_attempt(self, manifest: Manifest) -> None:
        """Bound the work that a job can cause with requests that count against no limit: repeated, or failing.

        Raises:
            RefusalError: there were ten times as many requests as the job needs replies.
        """
        most = _ATTEMPTS * sum(manifest.limits.model_dump().values())
        if self._attempts[manifest.run] >= most:
            raise RefusalError(f"{most} requests of this run have come since the start", FailureCode.SPENT)
        self._attempts[manifest.run] += 1

    def _take(self, request: messages.JobRequest) -> Disclosure:
        """Take a job that the owner approved or that the rules allow. A refused job leaves the present one in place."""
        manifest = request.manifest
        try:
            check_mode(manifest, masked=self._masked)
            check_job(self._policy, manifest, self._history, approved=manifest.digest in self._approved())
            self._count_attempt(manifest)
        except RefusalError as refusal:
            self._refused = manifest.digest, refusal.code
            raise
        reply = self._client.handle(request)
        if isinstance(reply, Failure):
            self._refused = manifest.digest, reply.code
            return Disclosure(reply)
        self._manifest, self._refused = manifest, None
        holdout = manifest.method.holdout
        held = Holdout(manifest.question, holdout.selection, holdout.gate)
        # The job's reply says nothing of the examples, so no ε is stated; what was spent before stays counted.
        return Disclosure(reply, ReplyFacts(manifest.run, manifest.digest[:_NAME_SIZE], holdout=held))

    def _manifest_for(self, request: messages.StepRequest) -> Manifest:
        """The manifest of the job that a request belongs to; the client itself checks that it does."""
        if self._refused is not None:
            job, code = self._refused
            names_it = isinstance(request, messages.VectorsRequest | messages.ContextRequest) and request.job == job
            if names_it or self._manifest is None:
                raise RefusalError("its job was refused", code)
        if self._manifest is None:
            raise RefusalError("no job is held here", FailureCode.NO_CONTEXT)
        return self._manifest

    def _answer(self, request: messages.StepRequest, manifest: Manifest) -> Disclosure:
        check_request(self._policy, request)
        self._count_attempt(manifest)
        behind = self._behind(request)
        if behind is not None:
            check_enough(self._policy, manifest, request, behind.examples)
        asked = _name_of(request, "" if behind is None else behind.cursor)
        if not self._history.was_answered(manifest.run, asked):
            check_limits(self._policy, manifest, request, self._history)
        reply = self._client.handle(request)
        if isinstance(reply, Failure):
            return Disclosure(reply, ReplyFacts(manifest.run))
        check_behind(self._policy, manifest, reply)
        examples = None if behind is None else self._example_set(reply, behind, manifest)
        epsilon = self._client.spent_epsilon
        check_epsilon(self._policy, epsilon, self._history.epsilon_without(manifest.run))
        return Disclosure(reply, ReplyFacts(manifest.run, asked, examples, epsilon))

    def _behind(self, request: messages.StepRequest) -> _Behind | None:
        """The examples behind the reply to come, before anything is computed; None for replies without any."""
        role = request.role
        if role is None:
            return None
        cursor = self._client.cursor(role)
        return _Behind(role, cursor, self._client.examples_behind(cursor, role))

    def _example_set(self, reply: Reply, behind: _Behind, manifest: Manifest) -> ExampleSet:
        """The examples behind a reply, for the ledger.

        Raises:
            RefusalError: the difference between this reply and an earlier one covers too few examples.
        """
        now = ExampleSet(manifest.question, self._split(reply, manifest), behind.cursor, behind.examples)
        last = self._history.last_set(manifest.question, reply.kind)
        if last is not None and last != now and not manifest.method.promises_noise:  # a code would tell what noise hides
            self._check_growth(last, now, behind, reply)
        return now

    def _check_growth(self, last: ExampleSet, now: ExampleSet, behind: _Behind, reply: Reply) -> None:
        least, is_training = self._policy.least, behind.role is Role.TRAIN
        if (least.new_examples if is_training else least.held_out) == 1:
            return
        rule = "least.new_examples" if is_training else "least.held_out"
        remedy = f"the difference of two such replies can be one example's; {rule} = 1 would allow it"
        if now.split != last.split and not self._policy.allow.new_splits:
            raise RefusalError(f"holdout or draw differ from earlier replies of this kind to this task; {remedy}")
        if now.split != last.split or now.cursor == last.cursor:
            return
        before = self._client.examples_behind(last.cursor, behind.role)
        if before.sum() != last.examples:
            raise RefusalError(f"examples were changed or removed since earlier replies of this kind to this task; {remedy}")
        new = behind.counts - before
        if is_training:
            check_new(self._policy, _by_sum(reply, new))
        else:
            check_new_figures(self._policy, int(new.sum()))

    def _split(self, reply: Reply, manifest: Manifest) -> str:
        """Names the settings that decide which examples are behind a reply."""
        content, server = self._client.split, manifest.method.server
        if isinstance(reply, messages.GradientReply) and server is not None:
            content += f" draw {server.draw} {manifest.method.seed}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _by_sum(reply: Reply, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts ``(C,)`` for each sum of the reply: ``(C,)`` if it has one by class, else their total ``(1,)``."""
    by_class = isinstance(reply, messages.StatisticsReply | messages.NoisyStatisticsReply) or (
        isinstance(reply, messages.VectorsReply) and len(reply.vectors.counts) > 1
    )
    return counts if by_class else counts.sum(keepdims=True)


def _name_of(request: messages.StepRequest, cursor: str) -> str:
    """Names a request and the examples that it is about: the same name, the same reply. Global vectors have a name already."""
    if isinstance(request, messages.ContextRequest):
        return request.context_id[:_NAME_SIZE]
    return hashlib.sha256(messages.encode(request) + cursor.encode()).hexdigest()[:_NAME_SIZE]
