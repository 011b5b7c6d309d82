"""A stand-in for the model hub: as much of its HTTP interface as downloads and uploads use, in memory, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_MAIN = "main"


@dataclass
class Repository:
    """Commits by their ids; ``heads`` are branches and tags."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit id."""
        return self.heads.get(revision) or (revision if revision in self.commits else None)

    def commit(self, changed: dict[str, bytes]) -> str:
        """Add a commit to the main branch."""
        files = {**self.commits.get(self.heads.get(_MAIN, ""), {}), **changed}
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()  # noqa: S324 - as git names commits
        self.commits[name], self.heads[_MAIN] = files, name
        return name


@dataclass
class Hub:
    """What it holds, and every request that reached it, as method and path.

    Attributes:
        token: that uploads need.
        blobs: large files, by SHA-256, before a commit names them.
    """

    url: str = ""
    token: str = "of a test"
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_arguments: object) -> None:
        pass

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {urlsplit(self.path).path}")
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        try:
            for pattern, method in _ROUTES.items():
                verb, _, form = pattern.partition(" ")
                if self.command in verb.split("|") and (found := re.fullmatch(form, path)):
                    getattr(self, method)(body, **found.groupdict())
                    return
            raise _RefusedError(404, "EntryNotFound")
        except _RefusedError as refusal:
            self._send(b"{}", refusal.status, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code})

    def _body(self) -> bytes:
        """Of known length, or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - the names of the base class

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(content))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    def _needs_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise _RefusedError(401, "Unauthorized")

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            raise _RefusedError(404, "RepoNotFound")
        commit = repository.at(revision)
        if commit is None:
            raise _RefusedError(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def made(self, body: bytes) -> None:
        self._needs_token()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        told = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            self._send(json.dumps(told).encode(), 409)
            return
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self._json(told)

    def checked(self, body: bytes) -> None:
        self._json({"warnings": [], "errors": []})

    def announced(self, body: bytes, name: str, revision: str) -> None:
        self._needs_token()
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        self._json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]})

    def batch(self, body: bytes, name: str) -> None:
        self._needs_token()
        wanted = json.loads(body)["objects"]
        link = f"{self.hub.url}/lfs/"
        objects = [
            {"oid": item["oid"], "size": item["size"], "actions": {"upload": {"href": link + item["oid"]}}} for item in wanted
        ]
        self._json({"transfer": "basic", "objects": objects})

    def stored(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusedError(422, "Corrupt")
        self.hub.blobs[oid] = body
        self._send(b"")

    def committed(self, body: bytes, name: str, revision: str) -> None:
        self._needs_token()
        changed: dict[str, bytes] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.repositories[name].commit(changed)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def told(self, body: bytes, name: str, revision: str = _MAIN) -> None:
        commit, held = self._found(name, revision)
        private = self.hub.repositories[name].private
        siblings = [{"rfilename": path} for path in held]
        self._json({"id": name, "modelId": name, "sha": commit, "private": private, "siblings": siblings, "tags": []})

    def listed(self, body: bytes, name: str, revision: str) -> None:
        _, held = self._found(name, revision)
        self._json([{"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in held.items()])

    def given(self, body: bytes, name: str, revision: str, path: str) -> None:
        commit, held = self._found(name, revision)
        if path not in held:
            raise _RefusedError(404, "EntryNotFound")
        self._send(held[path], headers={"ETag": f'"{_oid(held[path])}"', "X-Repo-Commit": commit, "Accept-Ranges": "none"})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - as git names files


_NAME, _REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_ROUTES = {
    "POST /api/repos/create": "made",
    "POST /api/validate-yaml": "checked",
    rf"POST /api/models/{_NAME}/preupload/{_REVISION}": "announced",
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": "batch",
    r"PUT /lfs/(?P<oid>\w+)": "stored",
    rf"POST /api/models/{_NAME}/commit/{_REVISION}": "committed",
    rf"GET /api/models/{_NAME}": "told",
    rf"GET /api/models/{_NAME}/revision/{_REVISION}": "told",
    rf"GET /api/models/{_NAME}/tree/{_REVISION}": "listed",
    rf"GET|HEAD /{_NAME}/resolve/{_REVISION}/(?P<path>.+)": "given",
}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
