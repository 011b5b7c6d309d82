"""The HTTP routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ifedicl.core.coefficients import ACTIVATION, CONTEXT
from ifedicl.errors import DataError
from ifedicl.serve import bodies, schemas
from ifedicl.serve.answering import ServerState
from ifedicl.serve.asked import ROUTES
from ifedicl.serve.asked.any_route import KindRoute
from ifedicl.serve.catalog import Served
from ifedicl.serve.faults import fault
from ifedicl.serve.runviews import clients_of, per_class_of

_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.FaultAnswer, "description": description}
    for status, description in (
        (400, "not JSON, not UTF-8, or a Host header that names another server"),
        (401, "no key, or not a key of this server"),
        (404, "no such adapter or run"),
        (408, "the request took too long to arrive"),
        (413, "the request is too large"),
        (415, "the body is compressed"),
        (422, "a field is wrong, a text cannot be labelled, or the adapter is of another kind"),
        (429, "the queue is full; ask again after Retry-After seconds"),
        (503, "no answer in time, the server is stopping, or it cannot read its keys"),
    )
}
_CLIENT_LEFT = 499  # as proxies write it in their logs
_PARTS = {"", "adapters.js", "api.js", "app.js", "classify.js", "draw.js", "icon.svg", "runs.js", "style.css", "table.js"}
_KINDS = {"": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def router(state: ServerState) -> APIRouter:
    """All routes."""
    routes = APIRouter()
    for kind in ROUTES.values():
        routes.add_api_route(
            kind.path,
            _asking(state, kind),
            methods=["POST"],
            name=kind.task.kind,
            description=kind.said,
            response_model=kind.answers,
            responses=_FAULTS,
            tags=["labels"],
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": body_schema(kind)}}}},
        )

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


def _asking(state: ServerState, kind: KindRoute) -> Callable[[Request], Awaitable[Response]]:
    """The route of a kind of task."""

    async def asked(request: Request) -> Response:
        body = await bodies.read(request, kind.request)
        if isinstance(body, Response):
            return body
        try:
            answer = await state.answer(kind, body, lambda: _left(request))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)  # for the figures: nobody reads it
        except TimeoutError:
            return fault(503, "slow", f"no answer within {state.limits.seconds:g} seconds; send fewer texts or ask again later")
        return Response(answer.model_dump_json(), media_type="application/json")

    return asked


def body_schema(kind: KindRoute) -> dict[str, Any]:
    """The JSON schema of a request's body; what it refers to is in :func:`body_parts`."""
    schema = kind.request.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def body_parts() -> dict[str, Any]:
    """The schemas of objects within bodies, by name, for the description's components."""
    parts: dict[str, Any] = {}
    for kind in ROUTES.values():
        parts |= kind.request.model_json_schema(ref_template="#/components/schemas/{model}").get("$defs", {})
    return parts


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _FAULTS[status] for status in statuses}


async def _left(request: Request) -> None:
    """Ends when the client of a request, whose body was read, closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _facts(served: Served) -> dict[str, Any]:
    """The fields of AdapterFacts."""
    loaded, task = served.loaded, served.loaded.adapter.task
    return {
        "name": served.name,
        "version": loaded.version,
        "task": task.name,
        "kind": task.kind,
        "asked_at": served.route.path,
        "takes": served.route.request.items,
        "labels": task.facts.get("labels", []),
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
        label_words=adapter.task.facts.get("label_words", []),
        answers=adapter.task.facts,
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
