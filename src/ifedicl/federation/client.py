"""A data owner's client. Its replies are all that leaves it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lockstep import Lockstep
from ifedicl.backbone.scorers import Scorers
from ifedicl.calibrate import ClientRound, calibrate, drawn
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role
from ifedicl.errors import BudgetSpentError, ConfigError, DataError, IfediclError, InputError, TaskError
from ifedicl.federation import messages
from ifedicl.federation.client_keys import key_for, order_seed, split_seed
from ifedicl.federation.client_task import ClientTask, ExampleSums, exact_sums
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.public_text import PublicText
from ifedicl.federation.reference_text import REFERENCE_TEXTS
from ifedicl.federation.request_validation import RequestChecks
from ifedicl.kinds.examples import AnyExample
from ifedicl.settings import check_task

_log = logging.getLogger(__name__)

SumsFor: TypeAlias = Callable[[Manifest, PublicText], ExampleSums]
"""What sums the examples in a job; the texts are those in which features get their units without noise."""


class _RefusalError(Exception):
    """Ends a request with a failure code."""

    def __init__(self, code: FailureCode) -> None:
        super().__init__(code)
        self.code = code


class _TooLongError(Exception):
    """Ends a request that takes longer than its owner allows."""


class Client:
    """One data owner: its examples, and the frozen model that all clients share.

    Its state can be sent or computed again, so it may restart at any time.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[AnyExample],
        backbone: Backbone,
        *,
        secret: bytes,
        sums_for: SumsFor = exact_sums,
        split_key: bytes = b"",
        seconds: float = math.inf,
        scorers: Scorers | None = None,
        reference: PublicText | None = None,
    ) -> None:
        """Take the owner's examples.

        Args:
            name: of the client in the federation.
            examples: its labelled text.
            backbone: the frozen model; simulated clients share one.
            secret: keys the cursors, so that they reveal nothing about the examples; the same after a restart.
            sums_for: gives what sums the examples in a job; by default without a DP guarantee.
            split_key: divides the examples into roles, and orders them, whatever a job says; empty: the job's seed does, as in
                a simulation, which can then be repeated.
            seconds: longest time of one request; a longer one ends with the code ``refused``.
            scorers: of all clients of this process; None: this client is alone.
            reference: texts in which a readout's features get their units, of all clients of this process; None: as scorers.
        """
        self.name = name
        self.lockstep: Lockstep | None = None
        """Clients of one process share passes through it; None: each has its own."""
        self._sums_for = sums_for
        self.examples = tuple(examples)
        self.backbone = backbone
        self._secret = secret
        self._split_key = split_key
        self._seconds = seconds
        self._scorers = scorers or Scorers(backbone)
        self._reference = reference or PublicText(REFERENCE_TEXTS)
        self._deadline = math.inf
        self._checks: RequestChecks | None = None  # of the job that it holds
        self._task: ClientTask | None = None
        self._context: tuple[str, Context] | None = None

    def handle(self, request: Request, /) -> Reply:
        """Answer one request. Never raises: an error becomes a :class:`Failure` with a code and no text."""
        handler = self._HANDLERS.get(type(request))
        if handler is None or isinstance(request, messages.SumRequest):
            return Failure(FailureCode.OTHER_MODE)
        self._deadline = time.monotonic() + self._seconds
        try:
            if not isinstance(request, messages.JobRequest):
                self._check(request)
                if not self._in_job.sums.answers(request):
                    raise _RefusalError(FailureCode.BAD_REQUEST)
            return handler(self, request)
        except _RefusalError as refusal:
            return Failure(refusal.code)
        except _TooLongError:
            _log.error(
                "client %s: a %s request took longer than %g seconds and was ended", self.name, request.kind, self._seconds
            )
            return Failure(FailureCode.REFUSED)
        except BudgetSpentError as error:
            _log.warning("client %s does not answer a %s request: %s", self.name, request.kind, error)
            return Failure(FailureCode.SPENT)
        except IfediclError as error:
            _log.error("client %s cannot answer a %s request: %s", self.name, request.kind, error)
            return Failure(FailureCode.INTERNAL)
        except Exception:
            _log.exception("client %s could not answer a %s request", self.name, request.kind)
            return Failure(FailureCode.INTERNAL)

    def with_sums(self, sums_for: SumsFor) -> Self:
        """The same client with other sums."""
        return type(self)(
            self.name,
            self.examples,
            self.backbone,
            secret=self._secret,
            sums_for=sums_for,
            split_key=self._split_key,
            seconds=self._seconds,
            scorers=self._scorers,
            reference=self._reference,
        )

    @property
    def spent_epsilon(self) -> float | None:
        """The ε of all replies to the present job, for one example; None: there is no DP guarantee."""
        return None if self._task is None else self._task.sums.spent_epsilon

    def noise(self, kind: str, size: int) -> npt.NDArray[np.int64]:
        """``(size,)``: this client's share of the noise for its last reply to a request of this kind, in fixed-point steps.

        Raises:
            KeyError: no noise is planned for this kind, so the reply must not leave.
        """
        return self._in_job.sums.noise(kind, size)

    @property
    def dtype(self) -> str:
        """The dtype that its model computes in."""
        return self.backbone.dtype

    def count(self, role: Role) -> int:
        """The number of examples of the present task with this role; 0 before there is a task."""
        return 0 if self._task is None else len(self._task.roles[role])

    def secret_for(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose, from the client's secret; the same after a restart."""
        return key_for(self._secret, purpose)

    @property
    def split(self) -> str:
        """Names how the examples are divided into roles for the present job, without revealing it."""
        holdout, seed = (self._task.method.holdout, self._task.split_seed) if self._task else (None, 0)
        content = "" if holdout is None else f"split {seed} {holdout.selection} {holdout.gate}"
        return hmac.digest(self._secret, content.encode(), hashlib.sha256).hex()

    def prepare(self, manifest: Manifest) -> None:
        """Take a job and encode all examples before the first request, so that the owner gets errors with text.

        Raises:
            TaskError: the model cannot score the task.
            DataError: a text has no tokens.
        """
        own = self._take(manifest)
        try:
            for role in Role:
                own.part(role)
        except DataError as error:
            raise DataError(f"client {self.name}: {error}") from error

    def cursor(self, role: Role) -> str:
        """The client's own name for its examples of the present task with this role; empty before there is a task."""
        return self._cursor(self._task.keys(role)) if self._task else ""

    def examples_behind(self, cursor: str, role: Role) -> npt.NDArray[np.int64]:
        """``(C,)``: the examples of the present task that ``cursor`` covers, by class; all 0 if they have changed."""
        if self._task is None:
            return np.zeros(1, dtype=np.int64)
        return self._task.counts(role, self._known(cursor, self._task.keys(role)))

    def _job(self, request: messages.JobRequest) -> Reply:
        manifest = request.manifest
        if manifest.model != self.backbone.shape:
            raise _RefusalError(FailureCode.WRONG_MODEL)
        try:
            self._take(manifest)
        except TaskError as error:
            _log.error("client %s refuses the task: %s", self.name, error)
            raise _RefusalError(FailureCode.BAD_TASK) from None
        except ConfigError as error:
            _log.error("client %s refuses a job with noise: %s", self.name, error)
            raise _RefusalError(FailureCode.OTHER_MODE) from None
        return messages.JobReply()

    def _take(self, manifest: Manifest) -> ClientTask:
        """Hold this job from now on. What was computed for the same task and method is kept."""
        task, method = manifest.task, manifest.method
        try:
            check_task(method, task)
            task.check_classes(self.examples)
        except (ValueError, InputError) as error:
            raise TaskError(str(error)) from error
        if self._task is None or (self._task.task, self._task.method) != (task, method):
            sums = self._sums_for(manifest, self._reference)
            scorer = self._scorers.of(task, manifest.layers.start, self._check_time)
            self._task = ClientTask(manifest, scorer, self.examples, sums, split_seed(self._split_key, method))
        if self._checks is None or self._checks.manifest.digest != manifest.digest:
            self._context = None  # its name belongs to one job
        self._checks = RequestChecks(manifest)
        if method.is_one_shot:
            self._context = context_id(manifest.digest, manifest.no_context), manifest.no_context
        return self._task

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise _TooLongError

    def _vectors(self, request: messages.VectorsRequest) -> Reply:
        own = self._in_job
        keys = own.keys(Role.TRAIN)
        self._require(keys)
        known = self._known(request.cursor, keys)
        vectors, wire_dtype = own.vectors(known), own.method.vectors.wire_dtype
        reply = messages.VectorsReply(vectors, self._cursor(keys), known == 0, self.backbone.dtype, wire_dtype)
        return self._checked(reply, vectors.is_finite and _fits(vectors, wire_dtype))

    def _install(self, request: messages.ContextRequest) -> Reply:
        self._context = (request.context_id, request.context)
        return messages.ContextReply()

    def _update(self, request: messages.UpdateRequest) -> Reply:
        own, context = self._in_context
        part = own.part(Role.TRAIN)
        self._require(part.labels)
        order = order_seed(self._split_key, own.method)
        place = ClientRound(self.name, request.round, request.phase_start, request.phase_rounds, order)
        update = calibrate(own.scorer, part, context, request.coefficients, own.method, place, lockstep=self.lockstep)
        reply = messages.UpdateReply(update.coefficients, len(part.labels), update.loss)
        return self._checked(reply, update.coefficients.is_finite and bool(np.isfinite(update.loss)))

    def _gradient(self, request: messages.GradientRequest) -> Reply:
        own, context = self._in_context
        part = own.part(Role.TRAIN)
        self._require(part.labels)
        rows = drawn(own.keys(Role.TRAIN), request.round, own.method)
        sums = own.sums.gradient(own.scorer, part, context, request.coefficients, own.method, rows)
        return self._checked(messages.GradientReply(sums), sums.is_finite)

    def _evaluate(self, request: messages.EvaluateRequest) -> Reply:
        own, context = self._in_context
        self._require(own.roles[Role.SELECTION])
        tallies = own.tallies(context, request.coefficients, request.candidates)
        return self._checked(messages.EvaluateReply(tallies), all(bool(np.isfinite(tally.loss_sum)) for tally in tallies))

    def _compare(self, request: messages.CompareRequest) -> Reply:
        own, context = self._in_context
        self._require(own.roles[Role.GATE])
        comparison = own.comparison(context, request.coefficients, request.readout)
        return self._checked(messages.CompareReply(comparison), bool(np.isfinite(comparison.squared_gains)))

    def _statistics(self, request: messages.StatisticsRequest | messages.NoisyStatisticsRequest) -> Reply:
        own, context = self._in_context
        self._require(own.roles[Role.TRAIN])
        reply = own.statistics(context, request.coefficients)
        return self._checked(reply, reply.sums.is_finite)

    def _products(self, request: messages.ProductsRequest) -> Reply:
        own, context = self._in_context
        self._require(own.roles[Role.TRAIN])
        sums = own.products(context, request.coefficients, request.refinement)
        return self._checked(messages.ProductsReply(sums), sums.is_finite)

    def _require(self, examples: Sequence[object]) -> None:
        """Refuse without examples. With noise the sum of none is as good as any: a code would tell that there are none."""
        if not examples and not self._in_job.method.promises_noise:
            raise _RefusalError(FailureCode.NO_EXAMPLES)

    def _check(self, request: messages.StepRequest) -> None:
        """Check that the request is one of the job that this client holds, and that its numbers fit the job."""
        if isinstance(request, messages.JobRequest | messages.VectorsRequest | messages.ContextRequest):
            held, named = self._checks and self._checks.manifest.digest, request.job
        else:
            held, named = self._context and self._context[0], request.context_id
        if self._checks is None or held != named:
            raise _RefusalError(FailureCode.NO_CONTEXT)
        if not self._checks.fits(request):
            raise _RefusalError(FailureCode.BAD_REQUEST)

    @property
    def _in_job(self) -> ClientTask:
        assert self._task is not None  # the request was checked
        return self._task

    @property
    def _in_context(self) -> tuple[ClientTask, Context]:
        assert self._context is not None  # the request was checked
        return self._in_job, self._context[1]

    def _cursor(self, keys: Sequence[str]) -> str:
        """The number of vectorised examples, and a keyed digest of them."""
        digest = hmac.digest(self._secret, "\x1f".join(keys).encode(), hashlib.sha256)[:16]
        return f"{len(keys)}:{digest.hex()}"

    def _known(self, cursor: str, keys: Sequence[str]) -> int:
        """How many of the first examples ``cursor`` covers; 0 if they have changed."""
        count = int(cursor.partition(":")[0] or 0)
        same = 0 < count <= len(keys) and hmac.compare_digest(cursor, self._cursor(keys[:count]))
        return count if same else 0

    @staticmethod
    def _checked(reply: Reply, finite: bool) -> Reply:
        return reply if finite else Failure(FailureCode.NOT_FINITE)

    _HANDLERS: ClassVar[Mapping[type[Request], Callable[..., Reply]]] = {
        messages.JobRequest: _job,
        messages.VectorsRequest: _vectors,
        messages.ContextRequest: _install,
        messages.UpdateRequest: _update,
        messages.GradientRequest: _gradient,
        messages.EvaluateRequest: _evaluate,
        messages.StatisticsRequest: _statistics,
        messages.NoisyStatisticsRequest: _statistics,
        messages.ProductsRequest: _products,
        messages.CompareRequest: _compare,
    }


def _fits(vectors: ContextVectors, wire_dtype: str) -> bool:
    """Whether no mean overflows in the dtype of the wire."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(vectors.means.astype(wire_dtype)).all())
