"""The ASGI application: routes behind access control, and the page that shows the OpenAPI description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.exceptions import HTTPException

from ifedicl import __version__
from ifedicl.errors import IfediclError
from ifedicl.serve.access import AccessControl
from ifedicl.serve.api_keys import Keys
from ifedicl.serve.hosts import Hosts
from ifedicl.serve.routes import ServerState, error_response, fault, router


def application(state: ServerState, keys: Keys | None, host: str) -> FastAPI:
    """The ASGI application of one server.

    Args:
        state: the parts of the server.
        keys: API keys; None: no key is needed, but the Host header must name this server.
        host: address or name that the server listens at.
    """
    # FastAPI's own documentation pages load scripts from another host. Ours is docs().
    app = FastAPI(title="ifedicl", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        environment = Environment(loader=PackageLoader("ifedicl.serve", "page"), autoescape=select_autoescape())
        return HTMLResponse(
            environment.get_template("docs.html").render(operations=_operations(app.openapi()), version=__version__)
        )

    app.include_router(router(state))
    app.add_exception_handler(IfediclError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    hosts = Hosts(host) if keys is None else None
    app.add_middleware(AccessControl, limits=state.limits, keys=keys, hosts=hosts, on_answer=state.meters.answered)
    return app


async def _own(_request: Request, error: Exception) -> Response:
    assert isinstance(error, IfediclError)
    return error_response(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors())
    return fault(422, "field", said)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "nothing is at this path; /docs lists all paths", 405: "this path takes another method; see /docs"}
    return fault(error.status_code, "path", words.get(error.status_code, str(error.detail)))


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The OpenAPI description as the page lists it."""
    held = schema.get("components", {}).get("schemas", {})
    return [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("description") or operation.get("summary", ""),
            "parameters": operation.get("parameters", []),
            "takes": _fields(operation.get("requestBody", {}), held),
            "answers": [
                {"status": status, "description": answer.get("description", ""), "fields": _fields(answer, held)}
                for status, answer in operation["responses"].items()
            ],
        }
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _fields(holder: dict[str, Any], held: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, type and meaning of each field of a JSON body."""
    schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    schema = held.get(schema.get("$ref", "").rpartition("/")[2], schema)
    required = schema.get("required", [])
    return [
        {"name": name, "type": _type(own), "description": own.get("description", ""), "required": name in required}
        for name, own in schema.get("properties", {}).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(own) for own in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
