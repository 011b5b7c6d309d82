"""The HTTP routes."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, TypeAlias

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ifedicl.core.coefficients import ACTIVATION, CONTEXT
from ifedicl.core.vectors import Array32
from ifedicl.errors import DataError
from ifedicl.kinds.classify import Task, as_classification
from ifedicl.rows import has_lone_surrogate
from ifedicl.serve import schemas
from ifedicl.serve.catalog import Catalog, Served
from ifedicl.serve.faults import fault
from ifedicl.serve.limits import Limits
from ifedicl.serve.meters import Meters
from ifedicl.serve.runviews import Runs, clients_of, per_class_of
from ifedicl.serve.worker import LabelScores, Worker

_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.FaultAnswer, "description": description}
    for status, description in (
        (400, "not JSON, not UTF-8, or a Host header that names another server"),
        (401, "no key, or not a key of this server"),
        (404, "no such adapter or run"),
        (408, "the request took too long to arrive"),
        (413, "the request is too large"),
        (415, "the body is compressed"),
        (422, "a field is wrong, or a text cannot be labelled"),
        (429, "the queue is full; ask again after Retry-After seconds"),
        (503, "no answer in time, the server is stopping, or it cannot read its keys"),
    )
}
_GZIP = b"\x1f\x8b"
_CLIENT_LEFT = 499  # as proxies write it in their logs
Left: TypeAlias = Callable[[], Awaitable[None]]
"""A call that ends when a client has closed its connection."""
_JSON_KINDS: Mapping[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
_PARTS = {"", "adapters.js", "api.js", "app.js", "classify.js", "draw.js", "icon.svg", "runs.js", "style.css", "table.js"}
_KINDS = {"": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@dataclass(frozen=True, eq=False)
class ServerState:
    """All parts of one running server."""

    model: schemas.ModelFacts
    catalog: Catalog
    worker: Worker
    meters: Meters
    runs: Runs
    limits: Limits

    async def classify(self, request: schemas.ClassifyRequest, gone: Left | None = None) -> schemas.ClassifyAnswer:
        """Label texts.

        Args:
            request: texts and adapter.
            gone: what it returns ends when nobody waits for the answer any more; texts that are not labelled by then are
                left out.

        Raises:
            ClientDisconnect: nobody waits any more.
            AdapterError: the adapter is not served.
            DataError: a text is too long, empty or not Unicode.
            BusyError: the queue is full.
            StoppedError: the server is stopping.
            TimeoutError: there was no answer in time.
        """
        served, texts = self.catalog.get(request.adapter), request.listed
        models = (served.placed, served.raw) if request.zero_shot else (served.placed,)
        self._check(texts, len(models))
        answer = await self._answer(asyncio.wrap_future(self.worker.submit(models, texts)), gone)
        self.meters.labelled(served.name, len(texts))
        labels = _task_of(served).labels
        return schemas.ClassifyAnswer(
            model=self.model,
            adapter=schemas.AdapterName(name=served.name, version=served.loaded.version),
            results=_labelled(labels, answer.logs[0], request.min_confidence),
            zero_shot=_labelled(labels, answer.logs[1], request.min_confidence) if request.zero_shot else None,
            truncated=answer.truncated,
        )

    async def _answer(self, future: asyncio.Future[LabelScores], gone: Left | None) -> LabelScores:
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

    def _check(self, texts: list[str], models: int) -> None:
        most, most_characters = self.limits.texts_of(models), self.limits.characters
        if len(texts) > most:
            why = " with zero_shot, which counts each text twice" if most < self.limits.texts else ""
            raise DataError(f"texts: received {len(texts)}; allowed: at most {most} in one request{why}. Send them in parts")
        for number, text in enumerate(texts, start=1):
            if len(text) > most_characters:
                raise DataError(
                    f"text number {number} has {len(text)} characters; allowed: at most {most_characters}. Cut it: the model's "
                    "window does not hold more"
                )
            if has_lone_surrogate(text):
                raise DataError(f"text number {number} holds a lone surrogate; send whole Unicode characters")


def router(state: ServerState) -> APIRouter:
    """All routes."""
    routes = APIRouter()
    request_schema = schemas.ClassifyRequest.model_json_schema(ref_template="#/components/schemas/{model}")

    @routes.post(
        "/v1/classify",
        response_model=schemas.ClassifyAnswer,
        responses=_FAULTS,
        tags=["labels"],
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema}}}},
    )
    async def classify(request: Request) -> Response:
        """Label one text or many."""
        body = (await request.body()).removeprefix(codecs.BOM_UTF8)
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity" or body.startswith(_GZIP):
            received = "gzip" if coding == "identity" else coding[:40]
            return fault(415, "encoding", f"Content-Encoding: received {received}; allowed: none. Send it without compression")
        try:
            asked = schemas.ClassifyRequest.model_validate_json(body)
        except ValidationError as error:
            return _invalid(error)
        if twice := _repeated(body):
            return fault(422, "field", f"{', '.join(twice)}: received more than once; allowed: once. Remove one")
        try:
            answer = await state.classify(asked, lambda: _left(request))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)  # for the figures: nobody reads it
        except TimeoutError:
            return fault(503, "slow", f"no answer within {state.limits.seconds:g} seconds; send fewer texts or ask again later")
        return Response(answer.model_dump_json(), media_type="application/json")

    @routes.get("/v1/adapters", tags=["adapters"], responses=_faults(401))
    async def adapters() -> schemas.AdapterList:
        """List the adapters that are served."""
        limits = schemas.LimitFacts(
            texts=state.limits.texts_of(1),
            texts_with_zero_shot=state.limits.texts_of(2),
            characters=state.limits.characters,
            body_bytes=state.limits.body_bytes,
        )
        adapters = [schemas.AdapterFacts(**_facts(served)) for served in state.catalog]
        return schemas.AdapterList(model=state.model, adapters=adapters, limits=limits)

    @routes.get("/v1/adapters/{name}", tags=["adapters"], responses=_faults(401, 404))
    def adapter(name: str) -> schemas.AdapterDetail:
        """Show one adapter: coefficients, figures, provenance."""
        return _detail(state.catalog.get(name))

    @routes.get("/v1/runs", tags=["runs"], responses=_faults(401))
    def runs() -> schemas.RunList:
        """List the runs in the server's folder of runs."""
        return schemas.RunList(runs=state.runs.list())

    @routes.get("/v1/runs/{name:path}", response_model=schemas.RunLines, tags=["runs"], responses=_faults(401, 404, 422))
    def run(
        name: str,
        since: Annotated[int, Query(ge=0, description="`next` of the answer before")] = 0,
        generation: Annotated[int | None, Query(description="of the answer before")] = None,
    ) -> schemas.RunLines | Response:
        """Follow a run: the lines of its metrics.jsonl from a byte offset on."""
        try:
            return state.runs.lines(name, since, generation)
        except DataError as error:
            return fault(422, "field", str(error))

    @routes.get("/healthz", tags=["health"])
    async def healthz() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz", tags=["health"], responses={503: {"description": "the server cannot label now"}})
    async def readyz() -> Response:
        """Whether the server can label: the model's thread runs, and an adapter is served."""
        if state.worker.is_open and len(state.catalog):
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "no adapter" if state.worker.is_open else "stopping"}, 503)

    @routes.get("/metrics", tags=["health"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(state.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/", include_in_schema=False)
    @routes.get("/{file}", include_in_schema=False)
    async def page(request: Request) -> Response:
        file = request.path_params.get("file", "")
        if file not in _PARTS:
            raise HTTPException(404)
        content = (resources.files("ifedicl.serve") / "page" / (file or "index.html")).read_bytes()
        media_type = f"{_KINDS[file.rpartition('.')[2]]}; charset=utf-8"
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return routes


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _FAULTS[status] for status in statuses}


def _invalid(error: ValidationError) -> Response:
    """The response that names the wrong fields and the kinds of their values, never their content: that may be a text."""
    faults = error.errors(include_url=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return fault(400, "json", f"{faults[0]['msg']}; send JSON in UTF-8")
    reasons = {_place(item): _reason(item) for item in faults}  # texts are tried as one string and as a list
    inner = [reason for place, reason in reasons.items() if not any(other.startswith(f"{place}.") for other in reasons)]
    return fault(422, "field", "; ".join(inner[:5]))


def _place(item: ErrorDetails) -> str:
    """The field, and in a list the number from 0."""
    names = [str(part) for part in item["loc"]]
    return ".".join([*names[:1], *(part for part in names[1:] if part.isdigit())])


def _reason(item: ErrorDetails) -> str:
    names, fields = item["loc"], schemas.ClassifyRequest.model_fields
    if not names:
        return f"request: received {_kind(item['input'])}; allowed: an object with {', '.join(fields)}. Send such an object"
    if item["type"] == "extra_forbidden":
        return f"{str(names[0])[:40]}: received a name that does not exist; allowed: {', '.join(fields)}. Leave it out"
    received = "nothing" if item["type"] == "missing" else _kind(item["input"])
    remedy = "Add it" if item["type"] == "missing" else "Send another value"
    return f"{_place(item)}: received {received}; allowed: {fields[str(names[0])].description}. {remedy}"


def _kind(value: object) -> str:
    """The kind of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    return _JSON_KINDS.get(type(value), "a number")


async def _left(request: Request) -> None:
    """Ends when the client of a request, whose body was read, closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _repeated(body: bytes) -> list[str]:
    """Fields that stand in the body's object more than once; JSON readers take the last one without a word."""
    counts: Counter[str] = Counter()

    def count(pairs: list[tuple[str, object]]) -> None:
        counts.update(name for name, _ in pairs)

    json.loads(body, object_pairs_hook=count)
    return [name for name, number in counts.items() if number > 1]


def _labelled(labels: tuple[str, ...], logs: Array32, least: float) -> list[schemas.Labelled]:
    return [
        schemas.Labelled(
            label=labels[int(row.argmax())] if row.max() >= least else None,
            probabilities=dict(zip(labels, row.tolist(), strict=True)),
        )
        for row in np.exp(logs)
    ]


def _task_of(served: Served) -> Task:
    """The task; other kinds are not served."""
    return as_classification(served.loaded.adapter.task, "the server")


def _facts(served: Served) -> dict[str, Any]:
    """The fields of AdapterFacts."""
    loaded, task = served.loaded, _task_of(served)
    return {
        "name": served.name,
        "version": loaded.version,
        "task": task.name,
        "labels": list(task.labels),
        "origin": loaded.origin,
        "coefficients": loaded.adapter.coefficients.count,
    }


def _detail(served: Served) -> schemas.AdapterDetail:
    run, adapter, figures = served.loaded.run, served.loaded.adapter, dict(served.loaded.figures)
    scales, core = adapter.coefficients.scales, adapter.coefficients.core
    for name in ("rounds", "chosen_round", "clients", "examples_vectorised"):
        if name in adapter.provenance:
            figures[name] = adapter.provenance[name]
    return schemas.AdapterDetail(
        **_facts(served),
        template=adapter.task.template,
        label_words=list(_task_of(served).label_words),
        readout=adapter.readout is not None,
        first_layer=adapter.context.first_layer,
        context_scale=scales[..., CONTEXT].tolist(),
        activation_scale=scales[..., ACTIVATION].tolist(),
        subspace_core=None if core is None else np.linalg.norm(core, axis=(2, 3)).tolist(),
        figures=figures,
        per_class=[] if run is None else per_class_of(run),
        clients=[] if run is None else clients_of(run),
        provenance=dict(adapter.provenance),
    )
