"""The HTTP routes, and their error responses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import ACTIVATION, CONTEXT
from ifedicl.core.vectors import Array32
from ifedicl.errors import AdapterError, BusyError, DataError, IfediclError, StoppedError, UnknownRunError
from ifedicl.rows import has_lone_surrogate
from ifedicl.serve.catalog import Catalog, Served
from ifedicl.serve.limits import Limits
from ifedicl.serve.meters import Meters
from ifedicl.serve.runviews import Runs, clients_of, per_class_of
from ifedicl.serve.schemas import (
    AdapterDetail,
    AdapterFacts,
    AdapterList,
    AdapterName,
    ClassifyAnswer,
    ClassifyRequest,
    FaultAnswer,
    Labelled,
    LimitFacts,
    ModelFacts,
    RunLines,
    RunList,
)
from ifedicl.serve.worker import Worker

_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": FaultAnswer, "description": "not JSON, not UTF-8, or a Host header that names another server"},
    401: {"model": FaultAnswer, "description": "no key, or not a key of this server"},
    404: {"model": FaultAnswer, "description": "no such adapter or run"},
    408: {"model": FaultAnswer, "description": "the request took too long to arrive"},
    413: {"model": FaultAnswer, "description": "the request is too large"},
    422: {"model": FaultAnswer, "description": "a field is wrong, or a text cannot be labelled"},
    429: {"model": FaultAnswer, "description": "the queue is full; ask again after Retry-After seconds"},
    503: {"model": FaultAnswer, "description": "no answer in time, the server is stopping, or it cannot read its keys"},
}
_STATUS: Mapping[type[IfediclError], tuple[int, str]] = {
    AdapterError: (404, "adapter"),
    DataError: (422, "text"),
    UnknownRunError: (404, "run"),
    BusyError: (429, "busy"),
    StoppedError: (503, "stopping"),
}
_PARTS = {"adapters.js", "api.js", "app.js", "classify.js", "draw.js", "icon.svg", "runs.js", "style.css", "table.js"}
_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@dataclass(frozen=True, eq=False)
class ServerState:
    """All parts of one running server.

    Attributes:
        model: facts of the backbone.
        catalog: the served adapters.
        worker: the model's thread.
        meters: metrics for Prometheus.
        runs: the runs that the page may show.
        limits: bounds of requests.
    """

    model: ModelFacts
    catalog: Catalog
    worker: Worker
    meters: Meters
    runs: Runs
    limits: Limits

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Label texts.

        Raises:
            AdapterError: the adapter is not served.
            DataError: a text is too long, empty or not Unicode.
            BusyError: the queue is full.
            StoppedError: the server is stopping.
            TimeoutError: there was no answer in time.
        """
        served, texts = self.catalog.get(request.adapter), request.listed
        asked = (served.placed, served.raw) if request.zero_shot else (served.placed,)
        self._check(texts, len(asked))
        future = asyncio.wrap_future(self.worker.submit(asked, texts))  # a timeout cancels it
        answer = await asyncio.wait_for(future, self.limits.seconds)
        self.meters.labelled(served.name, len(texts))
        labels = served.loaded.adapter.task.labels
        return ClassifyAnswer(
            model=self.model,
            adapter=AdapterName(name=served.name, version=served.loaded.version),
            results=_labelled(labels, answer.logs[0]),
            zero_shot=_labelled(labels, answer.logs[1]) if request.zero_shot else None,
            truncated=answer.truncated,
        )

    def _check(self, texts: list[str], asked: int) -> None:
        most = self.limits.texts_of(asked)
        if len(texts) > most:
            why = " with zero_shot, which counts each text twice" if most < self.limits.texts else ""
            raise DataError(f"texts: received {len(texts)}; allowed: at most {most} in one request{why}. Send them in parts")
        for number, text in enumerate(texts, start=1):
            if len(text) > self.limits.characters:
                raise DataError(
                    f"text number {number} has {len(text)} characters; allowed: at most {self.limits.characters}. Cut it: the "
                    "model's window does not hold more"
                )
            if has_lone_surrogate(text):
                raise DataError(f"text number {number} holds a lone surrogate; send whole Unicode characters")


def router(state: ServerState) -> APIRouter:
    """All routes."""
    routes = APIRouter()

    @routes.post(
        "/v1/classify",
        response_model=ClassifyAnswer,
        responses=_FAULTS,
        tags=["labels"],
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _schema(ClassifyRequest)}}}
        },
    )
    async def classify(request: Request) -> Response:
        """Label one text or many."""
        try:
            asked = ClassifyRequest.model_validate_json(await request.body())
        except ValidationError as error:
            return _invalid(error)
        try:
            return _json(await state.classify(asked))
        except TimeoutError:
            return fault(
                503, "slow", f"no answer within {state.limits.seconds:g} seconds; send fewer texts, or ask again later"
            )

    @routes.get("/v1/adapters", tags=["adapters"], responses={401: _FAULTS[401]})
    async def adapters() -> AdapterList:
        """List the adapters that are served."""
        limits = LimitFacts(
            texts=state.limits.texts_of(1),
            texts_with_zero_shot=state.limits.texts_of(2),
            characters=state.limits.characters,
            body_bytes=state.limits.body_bytes,
        )
        own = [AdapterFacts(**_facts(served)) for served in state.catalog]
        return AdapterList(model=state.model, adapters=own, limits=limits)

    @routes.get("/v1/adapters/{name}", tags=["adapters"], responses={number: _FAULTS[number] for number in (401, 404)})
    def adapter(name: str) -> AdapterDetail:
        """Show one adapter: coefficients, figures, provenance."""
        return _detail(state.catalog.get(name))

    @routes.get("/v1/runs", tags=["runs"], responses={401: _FAULTS[401]})
    def runs() -> RunList:
        """List the runs in the server's folder of runs."""
        return RunList(runs=state.runs.list())

    @routes.get(
        "/v1/runs/{name:path}",
        response_model=RunLines,
        tags=["runs"],
        responses={number: _FAULTS[number] for number in (401, 404, 422)},
    )
    def run(
        name: str,
        since: Annotated[int, Query(ge=0, description="`next` of the answer before")] = 0,
        generation: Annotated[int | None, Query(description="of the answer before")] = None,
    ) -> RunLines | Response:
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
        if not state.worker.is_open:
            return JSONResponse({"status": "stopping"}, 503)
        if not len(state.catalog):
            return JSONResponse({"status": "no adapter"}, 503)
        return JSONResponse({"status": "ready"})

    @routes.get("/metrics", tags=["health"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(state.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return _part("index.html")

    @routes.get("/{file}", include_in_schema=False)
    async def part(file: str) -> Response:
        if file not in _PARTS:
            return fault(404, "path", "there is nothing at this path; /docs lists what there is")
        return _part(file)

    return routes


def _part(file: str) -> Response:
    """One file of the page."""
    content = (resources.files("ifedicl.serve") / "page" / file).read_bytes()
    kind = _KINDS[file.rpartition(".")[2]]
    return Response(content, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})


def fault(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error response. All errors have this form."""
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def error_response(error: IfediclError) -> Response:
    """The response to one of our own errors."""
    status, code = _STATUS.get(type(error), (500, "server"))
    return fault(status, code, str(error), {"Retry-After": "1"} if status == 429 else None)


def _invalid(error: ValidationError) -> Response:
    """Names the wrong fields, never their content: that may be a text."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        return fault(400, "json", f"{faults[0]['msg']}; send JSON in UTF-8")
    said = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'request'}: {item['msg']}" for item in faults[:5])
    return fault(422, "field", said)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


def _labelled(labels: tuple[str, ...], logs: Array32) -> list[Labelled]:
    return [
        Labelled(label=labels[int(row.argmax())], probabilities=dict(zip(labels, np.exp(row).tolist(), strict=True)))
        for row in logs
    ]


def _facts(served: Served) -> dict[str, Any]:
    adapter, loaded = served.loaded.adapter, served.loaded
    return {
        "name": served.name,
        "version": loaded.version,
        "task": adapter.task.name,
        "labels": list(adapter.task.labels),
        "origin": loaded.origin,
        "coefficients": adapter.coefficients.count,
    }


def _detail(served: Served) -> AdapterDetail:
    loaded, adapter = served.loaded, served.loaded.adapter
    scales, core = adapter.coefficients.scales, adapter.coefficients.core
    run = loaded.run
    return AdapterDetail(
        **_facts(served),
        template=adapter.task.template,
        label_words=list(adapter.task.label_words),
        readout=adapter.readout is not None,
        first_layer=adapter.context.first_layer,
        context_scale=scales[..., CONTEXT].tolist(),
        activation_scale=scales[..., ACTIVATION].tolist(),
        subspace_core=None if core is None else np.linalg.norm(core, axis=(2, 3)).tolist(),
        figures={**loaded.figures, **_known(adapter)},
        per_class=[] if run is None else per_class_of(run),
        clients=[] if run is None else clients_of(run),
        provenance=dict(adapter.provenance),
    )


def _known(adapter: Adapter) -> dict[str, Any]:
    named = ("rounds", "chosen_round", "clients", "examples_vectorised")
    return {name: adapter.provenance[name] for name in named if name in adapter.provenance}
