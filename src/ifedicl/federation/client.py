"""A data owner's client. Its replies are all that leaves it."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate, drawn
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Example, Role
from ifedicl.errors import BudgetSpentError, DataError, IfediclError, TaskError
from ifedicl.federation import messages
from ifedicl.federation.client_task import ClientTask, ExampleSums
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.settings import Method
from ifedicl.task import Task

_log = logging.getLogger(__name__)


class _RefusalError(Exception):
    """Ends a request with a failure code."""

    def __init__(self, code: FailureCode) -> None:
        super().__init__(code)
        self.code = code


class Client:
    """One data owner: its examples, and the frozen model that all clients share.

    Its state can be sent or computed again, so it may restart at any time.
    """

    def __init__(
        self, name: str, examples: Sequence[Example], backbone: Backbone, *, secret: bytes, sums: ExampleSums | None = None
    ) -> None:
        """Take the owner's examples.

        Args:
            name: of the client in the federation.
            examples: its labelled text.
            backbone: the frozen model; simulated clients share one.
            secret: keys the cursors, so that they reveal nothing about the examples; the same after a restart.
            sums: sums the examples; None: without a DP guarantee.
        """
        self.name = name
        self._sums = sums or ExampleSums()
        self.examples = tuple(examples)
        self.backbone = backbone
        self._secret = secret
        self._task: ClientTask | None = None
        self._context: tuple[str, Context] | None = None
        self._handlers: Mapping[type[Request], Callable[..., Reply]] = {
            messages.VectorsRequest: self._vectors,
            messages.ContextRequest: self._install,
            messages.UpdateRequest: self._update,
            messages.GradientRequest: self._gradient,
            messages.EvaluateRequest: self._evaluate,
            messages.StatisticsRequest: self._statistics,
            messages.CompareRequest: self._compare,
        }

    def handle(self, request: Request, /) -> Reply:
        """Answer one request. Never raises: an error becomes a :class:`Failure` with a code and no text."""
        handler = self._handlers.get(type(request))
        if handler is None:
            return Failure(FailureCode.OTHER_MODE)
        try:
            return handler(request)
        except _RefusalError as refusal:
            return Failure(refusal.code)
        except BudgetSpentError as error:
            _log.warning("client %s does not answer a %s request: %s", self.name, request.kind, error)
            return Failure(FailureCode.SPENT)
        except IfediclError as error:
            _log.error("client %s cannot answer a %s request: %s", self.name, request.kind, error)
            return Failure(FailureCode.INTERNAL)
        except Exception:
            _log.exception("client %s could not answer a %s request", self.name, request.kind)
            return Failure(FailureCode.INTERNAL)

    def with_sums(self, sums: ExampleSums) -> Self:
        """The same client with other sums."""
        return type(self)(self.name, self.examples, self.backbone, secret=self._secret, sums=sums)

    @property
    def spent_epsilon(self) -> float | None:
        """The ε of all sums so far, for one example; None: there is no DP guarantee."""
        return self._sums.spent_epsilon

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

    def prepare(self, task: Task, method: Method) -> None:
        """Encode all examples for a task before the first request, so that the owner gets errors with text.

        Raises:
            TaskError: the model cannot score the task.
            DataError: a text has no tokens.
        """
        own = self._task_of(task, method)
        try:
            for role in Role:
                own.part(role)
        except DataError as error:
            raise DataError(f"client {self.name}: {error}") from error

    @property
    def cursor(self) -> str:
        """The client's own name for the training examples of the present task; empty before there is one."""
        return self._cursor(self._task.train_keys) if self._task else ""

    def examples_behind(self, cursor: str) -> npt.NDArray[np.int64]:
        """``(C,)``: the training examples of the present task that ``cursor`` covers, by class; all 0 if they have changed."""
        if self._task is None:
            return np.zeros(1, dtype=np.int64)
        return self._task.counts(self._known(cursor, self._task.train_keys))

    def _vectors(self, request: messages.VectorsRequest) -> Reply:
        own = self._task_for(request.task, request.method, request.fingerprint)
        keys = own.train_keys
        if not keys:
            raise _RefusalError(FailureCode.NO_EXAMPLES)
        known = self._known(request.cursor, keys)
        vectors, wire_dtype = own.vectors(known), request.method.vectors.wire_dtype
        reply = messages.VectorsReply(vectors, self._cursor(keys), known == 0, self.backbone.dtype, wire_dtype)
        return self._checked(reply, vectors.is_finite and _fits(vectors, wire_dtype))

    def _install(self, request: messages.ContextRequest) -> Reply:
        own, context = self._task_for(request.task, request.method, request.fingerprint), request.context
        fits = context.layers == own.layers and context.vectors.shape[2] == self.backbone.width
        if not fits or not context.is_finite:
            raise _RefusalError(FailureCode.BAD_REQUEST)
        self._context = (request.context_id, context)
        return messages.ContextReply()

    def _update(self, request: messages.UpdateRequest) -> Reply:
        own, context = self._in_context(request.context_id, request.coefficients)
        part = own.part(Role.TRAIN)
        if not part.labels:
            raise _RefusalError(FailureCode.NO_EXAMPLES)
        place = ClientRound(self.name, request.round, request.phase_start, request.phase_rounds)
        update = calibrate(own.scorer, part, context, request.coefficients, own.method, place)
        reply = messages.UpdateReply(update.coefficients, len(part.labels), update.loss)
        return self._checked(reply, update.coefficients.is_finite and bool(np.isfinite(update.loss)))

    def _gradient(self, request: messages.GradientRequest) -> Reply:
        own, context = self._in_context(request.context_id, request.coefficients)
        part = own.part(Role.TRAIN)
        if not part.labels:
            raise _RefusalError(FailureCode.NO_EXAMPLES)
        if not own.method.takes_gradients:
            raise _RefusalError(FailureCode.BAD_REQUEST)
        rows = drawn(own.train_keys, request.round, own.method)
        sums = own.sums.gradient(own.scorer, part, context, request.coefficients, own.method, rows)
        return self._checked(messages.GradientReply(sums), sums.is_finite)

    def _evaluate(self, request: messages.EvaluateRequest) -> Reply:
        own, context = self._in_context(request.context_id, request.coefficients)
        if not own.roles[request.role]:
            raise _RefusalError(FailureCode.NO_EXAMPLES)
        self._check_readouts(request.readouts)
        tallies = own.tallies(request.role, context, request.coefficients, request.candidates)
        return self._checked(messages.EvaluateReply(tallies), all(bool(np.isfinite(tally.loss_sum)) for tally in tallies))

    def _compare(self, request: messages.CompareRequest) -> Reply:
        own, context = self._in_context(request.context_id, request.coefficients)
        if not own.roles[Role.GATE]:
            raise _RefusalError(FailureCode.NO_EXAMPLES)
        self._check_readouts(request.readouts)
        comparison = own.comparison(context, request.coefficients, request.readout)
        return self._checked(messages.CompareReply(comparison), bool(np.isfinite(comparison.squared_gains)))

    def _check_readouts(self, readouts: Sequence[Readout]) -> None:
        assert self._task is not None
        if readouts and self._task.method.readout is None:
            raise _RefusalError(FailureCode.BAD_REQUEST)
        classes, layer = len(self._task.task.labels), self._task.method.pooled_layer(self.backbone.layers)
        for readout in readouts:
            fits = readout.fits(classes, self.backbone.width, self.backbone.layers) and readout.pooled_layer == layer
            if not fits or not np.isfinite(readout.weights).all():
                raise _RefusalError(FailureCode.BAD_REQUEST)

    def _statistics(self, request: messages.StatisticsRequest) -> Reply:
        own, context = self._in_context(request.context_id, request.coefficients)
        if not own.roles[Role.TRAIN]:
            raise _RefusalError(FailureCode.NO_EXAMPLES)
        if own.method.readout is None:
            raise _RefusalError(FailureCode.BAD_REQUEST)
        sums = own.readout_sums(context, request.coefficients)
        return self._checked(messages.StatisticsReply(sums), sums.is_finite)

    def _task_for(self, task: Task, method: Method, fingerprint: str) -> ClientTask:
        if fingerprint != self.backbone.fingerprint:
            raise _RefusalError(FailureCode.WRONG_MODEL)
        if method.promises_noise and self._sums.spent_epsilon is None:
            _log.error("client %s refuses a task with noise: it does not clip and add noise", self.name)
            raise _RefusalError(FailureCode.OTHER_MODE)
        try:
            return self._task_of(task, method)
        except TaskError as error:
            _log.error("client %s refuses the task: %s", self.name, error)
            raise _RefusalError(FailureCode.BAD_TASK) from None

    def _task_of(self, task: Task, method: Method) -> ClientTask:
        if self._task is None or (self._task.task, self._task.method) != (task, method):
            self._context = None  # vectors of one task do not fit another
            scorer = Scorer(self.backbone, task, first_layer=method.injection.active_layers(self.backbone.layers).start)
            self._task = ClientTask(task, method, scorer, self.examples, self._sums)
        return self._task

    def _in_context(self, context_id: str, coefficients: Coefficients) -> tuple[ClientTask, Context]:
        if self._task is None or self._context is None or self._context[0] != context_id:
            raise _RefusalError(FailureCode.NO_CONTEXT)
        form = Form(len(self._task.layers), self._context[1].rank)
        if coefficients.form != form or not coefficients.is_finite:
            raise _RefusalError(FailureCode.BAD_REQUEST)
        return self._task, self._context[1]

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


def key_for(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, from a client's secret."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)


def _fits(vectors: ContextVectors, wire_dtype: str) -> bool:
    """Whether no mean overflows in the dtype of the wire."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(vectors.means.astype(wire_dtype)).all())
