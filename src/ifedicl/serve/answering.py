"""A request to its answer: which adapter, whether it fits the limits, and the wait for the model's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect

from ifedicl.errors import DataError, WrongRouteError
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import AnyExample
from ifedicl.serve import schemas
from ifedicl.serve.asked.any_route import TEXT, Answers, KindRoute, Request
from ifedicl.serve.catalog import Catalog
from ifedicl.serve.limits import Limits
from ifedicl.serve.meters import Meters
from ifedicl.serve.runviews import Runs
from ifedicl.serve.worker import Scored, Worker

Left: TypeAlias = Callable[[], Awaitable[None]]
"""A call that ends when a client has closed its connection."""


@dataclass(frozen=True, eq=False)
class ServerState:
    """All parts of one running server."""

    model: schemas.ModelFacts
    catalog: Catalog
    worker: Worker
    meters: Meters
    runs: Runs
    limits: Limits

    async def answer(self, route: KindRoute, request: Request, gone: Left | None = None) -> Answers[Any]:
        """Answer texts.

        Args:
            route: at which they were asked.
            request: texts and adapter.
            gone: what it returns ends when nobody waits for the answer any more; texts that are not answered by then are
                left out.

        Raises:
            ClientDisconnect: nobody waits any more.
            AdapterError: the adapter is not served.
            WrongRouteError: the adapter is of another kind.
            DataError: a text is too long, empty or not Unicode, or there are too many.
            BusyError: the queue is full.
            StoppedError: the server is stopping.
            TimeoutError: there was no answer in time.
        """
        served = self.catalog.get(request.adapter)
        if served.route is not route:
            own = served.route
            raise WrongRouteError(
                f"adapter: {served.name!r} is of the kind {own.task.kind!r}; allowed at {route.path}: {route.task.kind!r}. "
                f"Send {own.request.items} to {own.path}, or name another adapter"
            )
        models = (served.placed, served.raw) if request.zero_shot else (served.placed,)
        rows, task = request.rows, served.loaded.adapter.task
        self._check_work(route, len(rows), len(rows), len(models))  # a row counts as one at least; examples take time to make
        examples = _examples(task, rows)
        self._check_work(route, len(rows), sum(map(task.work_of, examples)), len(models))
        self._check_texts(request)
        scored = await self._scored(asyncio.wrap_future(self.worker.submit(models, examples)), gone)
        self.meters.labelled(served.name, len(examples))
        ours, *raw = (
            [route.result.of(answer, request.min_confidence) for answer in task.answered(scores, scored.labels, examples)]
            for scores in scored.scores
        )
        return route.answers(
            model=self.model,
            adapter=schemas.AdapterName(name=served.name, version=served.loaded.version),
            results=ours,
            zero_shot=raw[0] if raw else None,
            truncated=scored.truncated,
        )

    async def _scored(self, future: asyncio.Future[Scored], gone: Left | None) -> Scored:
        leaving = None if gone is None else asyncio.ensure_future(gone())
        awaited = [task for task in (future, leaving) if task is not None]
        try:
            await asyncio.wait(awaited, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if leaving is not None and leaving.done():
                raise ClientDisconnect
            raise TimeoutError
        finally:
            for task in awaited:
                task.cancel()  # the worker leaves out what is cancelled

    def _check_work(self, route: KindRoute, rows: int, work: int, models: int) -> None:
        most = self.limits.texts_of(models)
        if work > most:
            counted = "" if work == rows else f", which count as {work} ({route.counts})"
            why = " with zero_shot, which counts each text twice" if most < self.limits.texts else ""
            remedy = (
                "Send them in parts" if rows > 1 else "This server takes no such request; it would with a higher --most-texts"
            )
            raise DataError(
                f"{route.request.items}: received {rows}{counted}; allowed: at most {most} in one request{why}. {remedy}"
            )

    def _check_texts(self, request: Request) -> None:
        most = self.limits.characters
        for name, text in request.strings:
            if len(text) > most:
                raise DataError(
                    f"{name} has {len(text)} characters; allowed: at most {most}. Cut it: the model's window does not hold more"
                )


def _examples(task: AnyTask, rows: Sequence[Mapping[str, Any]]) -> list[AnyExample]:
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(task.question_of(row, TEXT))
        except DataError as error:  # it knows no number
            raise DataError(f"text number {number}: {error}") from error
    return examples
