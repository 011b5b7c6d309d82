"""The ASGI application: routes behind access control, and the page that shows the OpenAPI description."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ifedicl import __version__
from ifedicl.errors import IfediclError
from ifedicl.serve.access import AccessControl
from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys
from ifedicl.serve.asked import ROUTES
from ifedicl.serve.asked.any_route import KindRoute
from ifedicl.serve.faults import error_response, fault
from ifedicl.serve.hosts import Hosts
from ifedicl.serve.routes import body_parts, router

if TYPE_CHECKING:
    from ifedicl.serve.traces import Traces


class HeadAsGet:
    """Middleware: answers HEAD as GET without the body, as load balancers and ``curl -I`` ask."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        inner = {**scope, "method": "GET"}
        await self._app(inner, receive, without_body)
        scope["route"] = inner.get("route")  # the meters count by route


def application(state: ServerState, keys: Keys | None, hosts: Hosts | None, traces: Traces | None = None) -> FastAPI:
    """The ASGI application of a server. The Host header must be one of ``hosts``, if there are any."""
    # FastAPI's own documentation pages load scripts from another host. Ours is docs().
    app = FastAPI(title="ifedicl", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        environment = Environment(loader=PackageLoader("ifedicl.serve", "page"), autoescape=select_autoescape())
        first = next((served.route for served in state.catalog), next(iter(ROUTES.values())))
        page = environment.get_template("docs.html").render(
            operations=_operations(app.openapi()),
            version=__version__,
            first=first.path,
            examples={route.path: example(route, str(request.base_url)) for route in ROUTES.values()},
            needs_key=keys is not None,
        )
        return HTMLResponse(page)

    def example(route: KindRoute, url: str) -> dict[str, str]:
        """A command that asks at this address, and an answer; it names an adapter if there are several."""
        # Where keys are asked for, the names of adapters are for those who have one.
        names = [served.name for served in state.catalog if served.route is route]
        named = {"adapter": names[0]} if names and len(state.catalog) > 1 and keys is None else {}
        body = {**route.example, **named, "zero_shot": True}
        return {
            "curl": _curl(f"{url.rstrip('/')}{route.path}", body, needs_key=keys is not None),
            "answer": json.dumps(route.answer_example, indent=2),
        }

    @app.exception_handler(IfediclError)
    async def ours(_request: Request, error: IfediclError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def wrong_field(_request: Request, error: RequestValidationError) -> Response:
        reasons = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
        return fault(422, "field", "; ".join(reasons))

    @app.exception_handler(HTTPException)
    async def wrong_path(request: Request, error: HTTPException) -> Response:
        allowed = (error.headers or {}).get("Allow", "")
        messages = {
            404: "nothing is at this path; /docs lists all paths",
            405: f"this path takes another method: received {request.method}; allowed: {allowed}; see /docs",
        }
        return fault(error.status_code, "path", messages.get(error.status_code, str(error.detail)), error.headers)

    app.include_router(router(state))
    describe = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        schema["components"]["schemas"] |= body_parts()
        return schema

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's own pages say
    app.add_middleware(HeadAsGet)
    app.add_middleware(AccessControl, limits=state.limits, keys=keys, hosts=hosts, on_answer=state.meters.answered)
    if traces is not None:
        from ifedicl.serve.traces import TracedRequests

        app.add_middleware(TracedRequests, traces=traces)
    return app


def _curl(url: str, body: dict[str, Any], *, needs_key: bool) -> str:
    """A command that sends this body to an address."""
    key = [' -H "Authorization: Bearer $KEY"'] if needs_key else []
    lines = [f"curl -s {shlex.quote(url)} -H 'Content-Type: application/json'", *key]
    return " \\\n ".join([*lines, f" -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"])


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The OpenAPI description as the page lists it."""
    components = schema.get("components", {}).get("schemas", {})
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("description") or operation.get("summary", ""),
            "parameters": operation.get("parameters", []),
            "takes": _fields(operation.get("requestBody", {}), components),
            "answers": [
                {"status": status, "description": answer.get("description", ""), "fields": _fields(answer, components)}
                for status, answer in operation["responses"].items()
            ],
        }
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _fields(holder: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, type and meaning of each field of a JSON body."""
    schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    schema = components.get(schema.get("$ref", "").rpartition("/")[2], schema)
    required = schema.get("required", [])
    return [
        {"name": name, "type": _type(field), "description": field.get("description", ""), "required": name in required}
        for name, field in schema.get("properties", {}).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
