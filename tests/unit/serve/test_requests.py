"""Requests that other software sends in its own way: answered, or refused with what is allowed."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ifedicl.backbone.load import Backbone
from ifedicl.serve.answering import ServerState
from tests.support.serve import TEXTS, PausedPasses, asking, fault, questions


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(b'{"texts": "a"}', mtime=0), {"Content-Encoding": "gzip"}),
        (gzip.compress(b'{"texts": "a"}', mtime=0), {}),
        (b"anything", {"Content-Encoding": "br"}),
        (b'{"texts": "a"}', {"Content-Encoding": "deflate, gzip"}),
    ],
)
def test_a_compressed_body_is_refused_for_what_it_is(client: TestClient, body: bytes, headers: dict[str, str]) -> None:
    status, code, message = fault(client.post("/v1/classify", content=body, headers=headers))
    assert (status, code) == (415, "encoding")
    assert f"received {headers.get('Content-Encoding', 'gzip')}; allowed: none" in message


def test_a_byte_order_mark_before_the_body_means_nothing(client: TestClient) -> None:
    body = codecs.BOM_UTF8 + json.dumps({"texts": "a", "adapter": "mood"}).encode()
    assert client.post("/v1/classify", content=body).status_code == 200


def test_a_request_whose_client_has_gone_is_given_up(
    state: ServerState, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PausedPasses(monkeypatch)
    first = state.worker.submit([state.catalog.get("mood").placed], questions(TEXTS[:1]))
    assert model.begun.wait(10)
    body = json.dumps({"texts": TEXTS, "adapter": "mood"}).encode()
    incoming: list[dict[str, Any]] = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    outgoing: list[Any] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        outgoing.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"/v1/classify", "query_string": b""}
    server = {"scheme": "http", "http_version": "1.1", "root_path": "", "client": ("127.0.0.1", 1), "server": ("test", 80)}

    async def ask() -> None:
        await asking(state).app({**scope, **server, "headers": [(b"host", b"127.0.0.1")]}, receive, send)

    asyncio.run(ask())
    assert outgoing[0]["status"] == 499
    model.resume()
    first.result(10)
    state.worker.call(lambda: None).result(10)
    assert model.passes == [1]
    assert state.worker.waiting == 0


def test_an_encoding_that_changes_nothing_is_none(client: TestClient) -> None:
    body = json.dumps({"texts": "a", "adapter": "mood"})
    assert client.post("/v1/classify", content=body, headers={"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/", "/app.js", "/v1/adapters", "/v1/adapters/mood", "/docs"]
)
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    got, asked = client.get(path), client.head(path)
    assert (asked.status_code, asked.content) == (got.status_code, b"") == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    assert asked.headers["x-content-type-options"] == "nosniff"


def test_head_is_counted_by_its_route(client: TestClient) -> None:
    client.head("/healthz")
    assert 'path="/healthz",status="200"' in client.get("/metrics").text.replace("route=", "path=")


def test_head_of_what_is_not_there_is_not_there(client: TestClient) -> None:
    assert client.head("/v1/adapters/none").status_code == 404
    assert client.head("/v1/classify").status_code == 405


def test_another_method_is_told_the_methods_that_are_allowed(client: TestClient) -> None:
    answer = client.put("/v1/classify", json={})
    assert fault(answer)[2] == "this path takes another method: received PUT; allowed: POST; see /docs"
    assert answer.headers["Allow"] == "POST"


def test_a_label_below_the_least_confidence_is_null(client: TestClient) -> None:
    body = {"texts": ["a", "b"], "adapter": "mood", "zero_shot": True}
    usual = client.post("/v1/classify", json=body).json()
    withheld = client.post("/v1/classify", json={**body, "min_confidence": 1}).json()
    for part in ("results", "zero_shot"):
        assert all(answer["label"] for answer in usual[part])
        assert [answer["label"] for answer in withheld[part]] == [None, None]
        assert [answer["probabilities"] for answer in withheld[part]] == [answer["probabilities"] for answer in usual[part]]
    refused = client.post("/v1/classify", json={**body, "min_confidence": 1.5})
    assert fault(refused)[2].startswith("min_confidence: received a number; allowed: a number from 0 to 1")


@pytest.mark.parametrize("value", ["no", "true", 1, 0, "on", None, []])
def test_zero_shot_is_true_or_false_and_nothing_that_looks_like_it(client: TestClient, value: Any) -> None:
    answer = client.post("/v1/classify", json={"texts": "a", "adapter": "mood", "zero_shot": value})
    status, code, message = fault(answer)
    assert (status, code) == (422, "field")
    assert message.startswith("zero_shot: received ")
    assert "allowed: true or false" in message


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "texts: received nothing; allowed: one text, or a list of them. Add it"),
        ({"texts": None}, "texts: received null"),
        ({"texts": {"secret": 1}}, "texts: received an object"),
        ({"texts": ["a", None]}, "texts.1: received null"),
        ({"texts": ["a", ["secret"]]}, "texts.1: received a list"),
        ({"texts": "a", "adapter": 4}, "adapter: received a number; allowed: name of the adapter"),
        ("secret", "request: received text; allowed: an object with texts, adapter, zero_shot"),
    ],
)
def test_a_wrong_field_is_named_with_the_kind_that_it_has(client: TestClient, asked: Any, said: str) -> None:
    status, code, message = fault(client.post("/v1/classify", json=asked))
    assert (status, code) == (422, "field")
    assert said in message
    assert "secret" not in message
    assert message.count(": received ") == 1, "one fault"


def test_a_field_that_stands_twice_is_named(client: TestClient) -> None:
    body = b'{"adapter": "mood", "texts": "a", "adapter": "place"}'
    assert fault(client.post("/v1/classify", content=body)) == (
        422,
        "field",
        "adapter: received more than once; allowed: once. Remove one",
    )
