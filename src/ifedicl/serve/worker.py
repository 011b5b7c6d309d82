"""The thread that owns the model: it takes examples of all queued requests in turn, runs them together, and answers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.multi_adapter import Apart, Placed
from ifedicl.errors import BusyError, IfediclError, ServeError, StoppedError
from ifedicl.kinds.examples import AnyExample
from ifedicl.serve.turns import Turn, groups, scores_of

_log = logging.getLogger(__name__)
T = TypeVar("T")
_WINDOW = 64
"""Rows that are scheduled together: enough for little padding, few enough that a new request waits for few."""


@dataclass(frozen=True)
class Scored:
    """The answer to one request.

    Attributes:
        scores: for each model that was asked, what :meth:`AnyTask.answered` reads; of a classification ``(N, C)``.
        labels: the encoded answers of the examples, as it reads them too.
        truncated: texts that were cut to fit the model's window.
    """

    scores: tuple[npt.NDArray[Any], ...]
    labels: tuple[Any, ...]
    truncated: int


class _NobodyWaitsError(Exception):
    """All requests of a pass were given up."""


@dataclass(eq=False)
class _Submission:
    """A request in work."""

    models: tuple[Placed | Apart, ...]
    examples: tuple[AnyExample, ...]
    future: Future[Scored]
    turns: list[Turn] = field(default_factory=list)
    scores: dict[int, npt.NDArray[Any]] = field(default_factory=dict)
    truncated: int = 0
    taken: int = 0
    is_open: bool = True

    def __post_init__(self) -> None:
        work_of = self.models[0].scorer.task.work_of
        self.works = [work_of(example) for example in self.examples]
        self.size = len(self.models) * sum(self.works)
        """Of all turns, the work."""

    def encode(self) -> None:
        """Make the turns: each example once for each model that is asked, one model after the other."""
        encoded = self.models[0].scorer.encoded(self.examples)
        each = list(zip(encoded.prompts.tokens, encoded.labels, self.works, strict=True))
        self.turns = [Turn(model, *one) for model in self.models for one in each]
        self.truncated = encoded.prompts.truncated

    def answer(self) -> Scored:
        """The answer; all turns must be done."""
        count = len(self.examples)
        starts = range(0, len(self.turns), count)
        scores = [np.concatenate([self.scores[at] for at in range(start, start + count)]) for start in starts]
        return Scored(tuple(scores), tuple(turn.label for turn in self.turns[:count]), self.truncated)


class Worker:
    """Answers requests for any number of adapters over one model, in one thread."""

    def __init__(self, backbone: Backbone, *, most_waiting: int, on_pass: Callable[[int, float], None]) -> None:
        """Start the thread.

        Args:
            backbone: other threads may use it too; they and this one wait for each other.
            most_waiting: rows that may be queued or in work.
            on_pass: called in the thread after what was run together, with its rows and seconds.
        """
        self._backbone = backbone
        self._most = most_waiting
        self._on_pass = on_pass
        self._wake = threading.Condition()
        self._arrived: deque[_Submission] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._open = True
        self._waiting = 0
        self._jobs: deque[_Submission] = deque()  # of the thread alone: encoded, and not all of their rows taken
        self._thread = threading.Thread(target=self._run, name="ifedicl-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that are queued or in work."""
        return self._waiting

    @property
    def is_open(self) -> bool:
        """Whether it accepts requests."""
        return self._open and self._thread.is_alive()

    def submit(self, models: Sequence[Placed | Apart], examples: Sequence[AnyExample]) -> Future[Scored]:
        """Queue examples for an adapter, and perhaps the raw model, with one scorer. Cancelling the future drops the request.

        Each counts for as many texts as :meth:`AnyTask.work_of` says, for each model.

        Raises:
            BusyError: the queue is full.
            StoppedError: the server is stopping.
        """
        job = _Submission(tuple(models), tuple(examples), Future())
        with self._wake:
            if not self._open:
                raise StoppedError("the server is stopping; ask again in a moment, or another server")
            if self._waiting + job.size > self._most:
                reason = f"the queue holds {self._waiting} texts, {job.size} more are over its limit of {self._most}"
                raise BusyError(f"{reason}. Ask again in a moment")
            self._waiting += job.size
            self._arrived.append(job)
            self._wake.notify()
        return job.future

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` on the model's thread, between two passes."""
        future: Future[T] = Future()
        with self._wake:
            if not self._open:
                raise StoppedError("the server is stopping")
            self._calls.append((work, future))
            self._wake.notify()
        return future

    def stop(self) -> None:
        """Accept no more requests, finish those in work, and end the thread."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            self._do(self._window())

    def _admit(self) -> bool:
        """Wait for work and take in new requests. False once the worker is stopped and nothing is left."""
        with self._wake:
            while self._open and not (self._arrived or self._calls or self._jobs):
                self._wake.wait()
            calls, self._calls = list(self._calls), deque()
            arrived, self._arrived = list(self._arrived), deque()
        for work, future in calls:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
        for job in arrived:
            self._take_in(job)
        return bool(self._open or self._jobs)

    def _take_in(self, job: _Submission) -> None:
        """Encode a request; if that fails, its future gets the error."""
        if not job.future.cancelled():
            try:
                job.encode()
            except Exception as error:
                _resolve(job.future, _visible(error))
            else:
                self._jobs.append(job)
                return
        self._close(job)

    def _window(self) -> list[tuple[_Submission, int]]:
        """The next examples, one of each request in turn, so that a long request delays no other."""
        taken, room = list[tuple[_Submission, int]](), _WINDOW
        while self._jobs and (not taken or self._jobs[0].turns[self._jobs[0].taken].work <= room):
            job = self._jobs.popleft()
            taken.append((job, job.taken))
            room -= job.turns[job.taken].work
            job.taken += 1
            if job.taken < len(job.turns):
                self._jobs.append(job)
        return taken

    def _do(self, window: list[tuple[_Submission, int]]) -> None:
        for batch in groups([job.turns[at] for job, at in window]):
            rows = [window[position] for position in batch if not window[position][0].future.done()]
            if rows:
                self._pass(rows)
        for job, _ in window:
            if job.future.done():  # cancelled meanwhile
                self._close(job)

    def _pass(self, rows: list[tuple[_Submission, int]]) -> None:
        def wanted() -> None:
            if all(job.future.done() for job, _ in rows):
                raise _NobodyWaitsError

        start, turns = time.perf_counter(), [job.turns[at] for job, at in rows]
        try:
            result = scores_of(self._backbone, turns, wanted)
        except _NobodyWaitsError:
            return
        except Exception as error:
            for job, _ in rows:
                _resolve(job.future, _visible(error))
                self._close(job)
            return
        for (job, at), scores in zip(rows, result, strict=True):
            job.scores[at] = scores
            if len(job.scores) == len(job.turns):
                self._close(job)
                _resolve(job.future, _answered(job))
        self._on_pass(sum(turn.work for turn in turns), time.perf_counter() - start)

    def _close(self, job: _Submission) -> None:
        """Free the request's place in the queue."""
        if not job.is_open:
            return
        job.is_open = False
        if job in self._jobs:
            self._jobs.remove(job)
        with self._wake:
            self._waiting -= job.size


def _answered(job: _Submission) -> Scored | Exception:
    """The answer, or why there is none: an error here is the request's own, and the thread goes on."""
    try:
        return job.answer()
    except Exception as error:
        return _visible(error)


def _resolve(future: Future[Scored], outcome: Scored | Exception) -> None:
    with suppress(InvalidStateError):  # the request was cancelled, or has failed already
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _visible(error: Exception) -> Exception:
    """The error as the client may see it. Of other libraries' errors only the type is logged: the message may quote a text."""
    if isinstance(error, IfediclError):
        return error
    _log.error("a request failed in the model: %s", type(error).__name__)
    return ServeError("the model failed on this request; the server's log has the type of the error")
