"""Claim: with 20 clients, stage 1 takes at most 1.5 times the bytes of open mode in float32, keys and shares included.

Both sides send the same made-up replies through the local engine, which encodes and decodes all messages; no model runs. Also
printed, without a claim: the same for a round of the paper's scalars, where most bytes are keys and shares; and the processor
time of the protocol in milliseconds, of one client (without encoding, which is in the server's figure) and of the server for
all clients, with and without lost clients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tests.support.endpoints import engine_of, engine_over, secure_layer

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.vectors import WRITES, ContextVectors
from ifedicl.data import Role
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.handler import Disclosure
from ifedicl.federation.manifest import CONTEXT_ID_SIZE, Manifest
from ifedicl.federation.messages import (
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    MaskRequest,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
)
from ifedicl.federation.secure.sum_client import SecureClient, identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.ledger.entries import Head
from ifedicl.settings import TOGETHER, Method, PrivacySettings
from ifedicl.task import Task

AT_MOST = 1.5
RULES = PrivacySettings(mode="secure", dropout=0.3)
TASK = Task(name="made-up", labels=("a", "b"))


@dataclass
class MadeUp:
    """A client that takes any job, and has a fixed reply to all else."""

    name: str
    reply: Reply
    dtype = "float32"

    def handle(self, request: Request) -> Reply:
        """The same reply to every request of a job."""
        return JobReply() if isinstance(request, JobRequest) else self.reply

    def count(self, _role: Role) -> int:
        """More examples than any rule requires."""
        return 100

    def secret_for(self, purpose: str) -> bytes:
        """A fixed key; it is not secret."""
        return f"{self.name} {purpose}".encode().ljust(32)[:32]


class Timed:
    """An endpoint that counts processor seconds."""

    def __init__(self, client: SecureClient) -> None:
        self._client = client
        self.seconds = 0.0

    @property
    def name(self) -> str:
        """The client's name."""
        return self._client.name

    def handle(self, request: Request, /) -> Disclosure:
        """The client's reply."""
        start = time.process_time()
        disclosure = self._client.handle(request)
        self.seconds += time.process_time() - start
        return disclosure


class Losing:
    """An engine that loses some clients before they send their numbers, so that the server must remove their masks."""

    def __init__(self, inner: Engine, lost: Sequence[str]) -> None:
        self._inner = inner
        self._lost = set(lost)

    def clients(self) -> tuple[str, ...]:
        """Names of all clients."""
        return self._inner.clients()

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """The deliveries, with a failure for each lost client."""
        for delivery in self._inner.exchange(requests, deadline, heads):
            gone = delivery.client in self._lost and isinstance(requests[delivery.client], MaskRequest)
            yield replace(delivery, reply=Failure(FailureCode.LOST)) if gone else delivery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    kept = True
    manifest = made_up_job(arguments.layers, arguments.width)
    for count in arguments.clients:
        for name, (request, reply) in messages(manifest).items():
            facts = measured(count, manifest, request, reply, arguments.repeats)
            print(json.dumps({"step": name, "clients": count} | facts))
            kept = kept and not (name == "vectors" and count == 20 and facts["ratio"] > AT_MOST)
    print(json.dumps({"claim": f"ratio of vectors for 20 clients at most {AT_MOST}", "kept": kept}))


def made_up_job(layers: int, width: int) -> Manifest:
    """A job with secure sums on a model of this size."""
    method = Method.model_validate({"weighting": "examples", "privacy": RULES.model_dump()})
    return Manifest.of(TASK, method, ModelShape("f" * 64, layers, width))


def messages(manifest: Manifest) -> dict[str, tuple[Request, Reply]]:
    """A request and reply of stage 1, and of a round with scalars only."""
    draw = np.random.default_rng(0)
    layers = manifest.model.layers
    means = draw.normal(size=(1, layers, len(WRITES), manifest.model.width)).astype(np.float32)
    vectors = ContextVectors.from_wire(means, np.array([100]))
    scales = Coefficients.identity(Form(layers))
    return {
        "vectors": (
            VectorsRequest(manifest.digest, ""),
            VectorsReply(vectors, "100:" + "0" * 32, True, "float32", "float32"),
        ),
        "update": (UpdateRequest("0" * CONTEXT_ID_SIZE, 10, 0, 10, scales), UpdateReply(scales, 100, 0.5)),
    }


def measured(count: int, manifest: Manifest, request: Request, reply: Reply, repeats: int) -> dict[str, float]:
    """Bytes of one client, up and down, against open mode; milliseconds, median of the repeats."""
    clients = [MadeUp(f"client-{number:02d}", reply) for number in range(1, count + 1)]
    plain = [
        delivery.bytes_down + delivery.bytes_up for delivery in engine_of(clients).exchange(both(clients, request), 60.0, {})
    ]
    pins = {client.name: identity_of(client).public for client in clients}
    endpoints = [Timed(secure_layer(client, pins, RULES)) for client in clients]
    for endpoint in endpoints:
        endpoint.handle(JobRequest(manifest))
    lost = [client.name for client in clients[: int(RULES.dropout * count)]]
    whole, losing = (SecureEngine(inner, RULES) for inner in (engine_over(endpoints), Losing(engine_over(endpoints), lost)))
    runs = [timed(whole, endpoints, request) for _ in range(repeats)]
    broken = [timed(losing, endpoints, request) for _ in range(repeats)]
    secure = [part.bytes_down + part.bytes_up for part in runs[0][0].parts]
    return {
        "open bytes": statistics.mean(plain),
        "secure bytes": statistics.mean(secure),
        "ratio": round(statistics.mean(secure) / statistics.mean(plain), 3),
        "ms a client": round(1e3 * statistics.median(client for _, client, _ in runs) / count, 2),
        "ms server": round(1e3 * statistics.median(server for _, _, server in runs), 1),
        f"ms server, {len(lost)} lost": round(1e3 * statistics.median(server for _, _, server in broken), 1),
    }


def timed(engine: SecureEngine, endpoints: Sequence[Timed], request: Request) -> tuple[Delivery, float, float]:
    """The result, and processor seconds of all clients together and of the server."""
    before, start = sum(endpoint.seconds for endpoint in endpoints), time.process_time()
    (delivery,) = engine.exchange({TOGETHER: request}, 60.0, {})
    took, clients = time.process_time() - start, sum(endpoint.seconds for endpoint in endpoints) - before
    return delivery, clients, took - clients


def both(clients: Sequence[MadeUp], request: Request) -> dict[str, Request]:
    return {client.name: request for client in clients}


if __name__ == "__main__":
    main()
