"""Clients that mean ill, or do not know better, against a real server on loopback: clear answers, no crash, no memory lost."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ifedicl.errors import ServeError
from ifedicl.serve.access import AccessControl
from ifedicl.serve.api_keys import new_key
from ifedicl.serve.limits import Limits
from ifedicl.serve.server import _Server, bound
from ifedicl.store import open_store
from ifedicl.store.records import TaskKey
from tests.support import tiny
from tests.support.serving import Running, serving

ASK = {"texts": list(tiny.SENTENCES), "adapter": "mood"}
AT_ONCE = 1_000
MB = 1 << 20


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    return file, new_key(file, "tester")


@pytest.fixture(scope="module")
def server(tiny_adapters: Path, tmp_path_factory: pytest.TempPathFactory, key: tuple[Path, str]) -> Iterator[Running]:
    arguments = [f"{tiny_adapters}/mood", f"{tiny_adapters}/place", "--keys", str(key[0]), "--per-address", "2048"]
    with serving(tmp_path_factory.mktemp("log"), *arguments, "--arrival", "4") as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0  # stopped in order


@pytest.fixture
def client(server: Running, key: tuple[Path, str]) -> Iterator[httpx.Client]:
    """Whatever a test does, the server labels afterwards, and no text stands in its log."""
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {key[1]}"}, timeout=30, trust_env=False
    ) as client:
        yield client
        assert client.post("v1/classify", json=ASK).status_code == 200
    assert server.process.poll() is None
    assert "Traceback" not in server.log
    assert not [text for text in (*tiny.SENTENCES, "aaaa", key[1]) if text in server.log]


def fault(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_text_of_ten_megabytes_is_refused_in_words_with_and_without_its_length(client: httpx.Client) -> None:
    body = json.dumps({"texts": "a" * 10 * MB, "adapter": "mood"}).encode()
    assert fault(client.post("v1/classify", content=body)) == (413, "size")
    pieces = (body[start : start + MB // 4] for start in range(0, len(body), MB // 4))  # chunked: it announces no length
    assert fault(client.post("v1/classify", content=pieces)) == (413, "size")
    within = json.dumps({"texts": "a" * 500_000, "adapter": "mood"}).encode()
    assert fault(client.post("v1/classify", content=within)) == (422, "text")


def test_bytes_that_are_not_utf8_are_refused(client: httpx.Client) -> None:
    assert fault(client.post("v1/classify", content=b'{"texts": "\xc3\x28", "adapter": "mood"}')) == (400, "json")
    assert fault(client.post("v1/classify", content=bytes(range(256)))) == (400, "json")


def test_an_unknown_adapter_is_named_with_those_that_there_are(client: httpx.Client) -> None:
    answer = client.post("v1/classify", json={**ASK, "adapter": "../../etc/passwd"})
    assert fault(answer) == (404, "adapter")
    assert "served: mood, place" in answer.json()["error"]["message"]


def test_without_a_key_or_with_a_wrong_one_nothing_is_read(client: httpx.Client, key: tuple[Path, str]) -> None:
    for own in ("", f"Bearer {key[1][:-1]}", f"Basic {key[1]}", "Bearer", "Bearer \xff"):
        headers = {b"Authorization": own.encode("latin-1")}
        assert fault(httpx.post(f"{client.base_url}v1/classify", json=ASK, headers=headers, trust_env=False)) == (401, "key")
    body = b"x" * (4 * MB)
    assert fault(httpx.post(f"{client.base_url}v1/classify", content=body, trust_env=False)) == (401, "key")


@contextmanager
def bare_server(limits: Limits) -> Iterator[int]:
    """A server with these limits whose every answer is 200, without a model; its port."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    listener, started = bound("0.0.0.0", 0), threading.Event()  # noqa: S104
    app = AccessControl(answer, limits=limits, keys=None, hosts=None, on_answer=lambda *_: None)
    server = _Server(app, limits, lambda _url: started.set())
    thread = threading.Thread(target=server.run, args=([listener.socket],))
    thread.start()
    assert started.wait(20)
    yield listener.socket.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    listener.socket.close()


def from_address(address: str, port: int) -> httpx.Client:
    """A client of the bare server that speaks from this loopback address."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, trust_env=False, timeout=20)


def test_silent_connections_of_one_address_shut_no_other_address_out() -> None:
    with bare_server(Limits(per_address=20, connections=100)) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        time.sleep(0.5)
        with from_address("127.0.0.2", port) as other:
            assert [other.get("/").status_code for _ in range(5)] == [200] * 5
        silent[-1].settimeout(5)
        assert silent[-1].recv(4096).startswith(b"HTTP/1.1 503")
        for own in silent:
            own.close()
        time.sleep(0.5)
        with from_address("127.0.0.1", port) as again:
            assert again.get("/").status_code == 200, "what is closed counts no more"


def test_held_bodies_of_many_connections_have_one_budget() -> None:
    body = b"x" * 50_000
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n"
    with bare_server(Limits(held_bytes=400_000, arrival_seconds=3.0)) as port:
        holding = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        for own in holding:
            own.sendall(head + body)  # and no more
        time.sleep(0.5)
        with from_address("127.0.0.1", port) as client:
            assert fault(client.post("/", content=b"x" * 60_000)) == (503, "busy")
            for own in holding:
                own.close()
            time.sleep(0.5)
            assert client.post("/", content=b"x" * 60_000).status_code == 200


def test_a_client_that_sends_a_byte_now_and_then_is_let_go_and_holds_up_nobody(client: httpx.Client, server: Running) -> None:
    """In the head of a request, and in its body (slow loris); answered 408 within the four seconds that the server gives."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nAuthorization: " + client.headers["Authorization"].encode() + b"\r\n"
    starts = {"head": b"GET /healthz HTTP/1.1\r\nX-Slow: ", "body": head + b'Content-Length: 100\r\n\r\n{"tex', "nothing": b""}
    slow = {name: socket.create_connection(("127.0.0.1", server.port)) for name in starts for _ in range(1)}
    for name, own in slow.items():
        own.sendall(starts[name])
    for _ in range(20):
        assert client.post("v1/classify", json=ASK).status_code == 200
        for name in ("head", "body"):
            _drip(slow[name])
        time.sleep(0.25)
    for name, own in slow.items():
        own.settimeout(5)
        received = b"".join(iter(partial(own.recv, 4096), b""))
        assert received.startswith(b"HTTP/1.1 408"), name
        own.close()


def _drip(own: socket.socket) -> None:
    try:
        own.sendall(b"a")
    except OSError:
        return  # it was let go


def test_nonsense_instead_of_http_is_answered(client: httpx.Client, server: Running) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\n\n", b"G" * 100_000 + b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as own:
            own.sendall(nonsense)
            assert own.recv(4096)[:12] == b"HTTP/1.1 400", nonsense[:20]


@pytest.mark.soak
def test_a_thousand_requests_at_once_are_answered_or_asked_to_retry_and_memory_comes_back(
    client: httpx.Client, server: Running
) -> None:
    asyncio.run(_at_once(client, AT_ONCE))  # whatever is allocated once is allocated now
    before = server.resident
    for _ in range(2):
        statuses = asyncio.run(_at_once(client, AT_ONCE))
        assert set(statuses) == {200, 429}, statuses
        assert sum(statuses.values()) == AT_ONCE
        assert statuses[200] >= 512 // len(tiny.SENTENCES)  # as many as may wait
    assert client.get("readyz").status_code == 200
    assert server.resident < before + 20 * MB
    figures = client.get("metrics").text
    assert "ifedicl_waiting_texts 0.0" in figures
    rows, passes = (
        float(next(line for line in figures.splitlines() if line.startswith(f"ifedicl_pass_rows_{name}")).split()[1])
        for name in ("sum", "count")
    )
    assert rows / passes > 8  # requests shared passes


async def _at_once(client: httpx.Client, count: int) -> Counter[int]:
    """Statuses of ``count`` requests, each on its own connection; plain sockets, so as not to be slower than the server."""
    bodies = [json.dumps({**ASK, "adapter": name}).encode() for name in ("mood", "place")]
    key = client.headers["Authorization"]
    head = f"POST /v1/classify HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: {key}\r\n"

    async def one(number: int) -> int:
        body = bodies[number % 2]
        reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 "), answer
        assert (b"retry-after: 1\r\n" in answer) == answer.startswith(b"HTTP/1.1 429")
        return int(answer.split(b" ", 2)[1])

    async with asyncio.timeout(60):
        return Counter(await asyncio.gather(*map(one, range(count))))


def test_new_versions_of_a_folder_and_a_store_are_served_without_a_restart_and_after_a_kill(
    tiny_adapters: Path, tmp_path: Path
) -> None:
    backbone = tiny.load(tiny_adapters / "model")
    folder, source = tmp_path / "live", str(tiny_adapters / "model")
    store = open_store(str(tmp_path / "tasks.sqlite"))
    arguments = [str(folder), "--store", str(tmp_path / "tasks.sqlite"), "--refresh", "0.2"]

    def answer(running: Running, adapter: str = "live") -> dict[str, Any]:
        got = httpx.post(f"{running.url}v1/classify", json={"texts": ASK["texts"], "adapter": adapter}, trust_env=False)
        return {"status": got.status_code, **got.json()}

    tiny.drawn_adapter(backbone, seed=1, source=source).save(folder)
    with serving(tmp_path, *arguments) as first:
        with pytest.raises(ServeError, match=r"Address already in use. Choose another port"):
            bound("127.0.0.1", first.port)
        before = answer(first)
        tiny.drawn_adapter(backbone, seed=2, source=source).save(folder)
        provenance = {"method": tiny.method().model_dump(mode="json")}
        stored = replace(tiny.drawn_adapter(backbone, seed=3, source=source), provenance=provenance)
        store.put(TaskKey.of_adapter("default", stored), stored)
        after, end = [before, {"status": 404}], time.monotonic() + 30
        while (after[0] == before or after[1]["status"] == 404) and time.monotonic() < end:
            after = [answer(first), answer(first, "mood")]
        assert [item["status"] for item in after] == [200, 200]
        assert before["results"] != after[0]["results"] != after[1]["results"]
        first.process.kill()
        first.process.wait()
        with serving(tmp_path, *arguments, port=first.port) as second:
            assert [answer(second), answer(second, "mood")] == after
    store.close()
