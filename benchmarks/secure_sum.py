"""Claim: a secure round of the default preset takes at most 1.3 times the bytes of open mode, and a client 10 ms of processor.

Both sides send the same made-up replies through the local engine, which encodes and decodes all messages, and all bytes of all
exchanges count, both ways, with the heads of the ledgers; no model runs. A run of secure mode begins with stage 1, the first
sum, in which the clients are also told of each other. After it come, in any order: a round and an evaluation of the default
preset, and, without a claim, a round of the paper's scalars. Milliseconds of processor are those of one client, from the bytes
of a request to the bytes of the reply, and of the server for all clients, with and without lost clients.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from tests.support.endpoints import engine_of, secure_layer

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.vectors import WRITES, ContextVectors
from ifedicl.data import Role
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.handler import Endpoint
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.federation.manifest import CONTEXT_ID_SIZE, Manifest
from ifedicl.federation.messages import (
    Envelope,
    EvaluateReply,
    EvaluateRequest,
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
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.kinds.classify import Task
from ifedicl.ledger.entries import Head
from ifedicl.ledger.usage import History
from ifedicl.metrics import Tally
from ifedicl.owner.recorder import Unrecorded
from ifedicl.settings import TOGETHER, Method, PrivacySettings, load_preset

MOST_BYTES = 1.3
"""Times those of open mode."""
MOST_MS = 10.0
RULES = PrivacySettings(mode="secure", dropout=0.3)
TASK = Task(name="made-up", labels=("a", "b"))


EXAMPLES = 100
"""Of each client."""
HEAD = 40
"""Bytes of the head of a ledger, in a reply and in some requests."""


@dataclass
class MadeUp:
    """A client that takes any job, and has fixed replies to all else."""

    name: str
    replies: Mapping[str, Reply]
    dtype = "float32"

    def handle(self, request: Request) -> Reply:
        """The same reply to every request of a kind."""
        return JobReply() if isinstance(request, JobRequest) else self.replies[request.kind]

    def count(self, _role: Role) -> int:
        """More examples than any rule requires."""
        return EXAMPLES

    def secret_for(self, purpose: str) -> bytes:
        """A fixed key; it is not secret."""
        return f"{self.name} {purpose}".encode().ljust(32)[:32]


class Timed:
    """A client's end that counts processor seconds, from envelope to envelope."""

    def __init__(self, client: Endpoint) -> None:
        self._client = client
        self.name = client.name
        self.seconds = 0.0

    def handle(self, envelope: Envelope, /) -> Envelope:
        """The client's reply. The request is decoded anew, as on a machine of its own."""
        data = envelope.to_bytes()
        start = time.process_time()
        reply = self._client.handle(Envelope.from_bytes(data)).to_bytes()
        self.seconds += time.process_time() - start
        return Envelope.from_bytes(reply)


class Counting:
    """An engine that adds the heads of ledgers to the bytes, and loses some clients before they send their numbers."""

    def __init__(self, inner: Engine, lost: Collection[str] = ()) -> None:
        self._inner = inner
        self._lost = lost

    def clients(self) -> tuple[str, ...]:
        """Names of all clients."""
        return self._inner.clients()

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """The deliveries, with a failure for each lost client."""
        for delivery in self._inner.exchange(requests, deadline, heads):
            request, reply = requests[delivery.client], delivery.reply
            if delivery.client in self._lost and isinstance(request, MaskRequest):
                reply = Failure(FailureCode.LOST)
            down = delivery.bytes_down + HEAD * request.carries_head
            yield replace(delivery, reply=reply, bytes_down=down, bytes_up=delivery.bytes_up + HEAD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="also print where a client's time goes in a round")
    arguments = parser.parse_args()
    manifest = made_up_job(arguments.layers, arguments.width)
    worst = dict.fromkeys(("ratio", "ms a client"), 0.0)
    for count in arguments.clients:
        run = Run(count, manifest)
        for name, request in requests_of(manifest, count).items():
            facts = run.measured(request, arguments.repeats, with_losses=name != "stage 1")
            print(json.dumps({"step": name, "clients": count} | facts), flush=True)
            if name == "round":
                worst = {kind: max(value, facts[kind]) for kind, value in worst.items()}
        if arguments.profile:
            run.profile(requests_of(manifest, count)["round"])
    kept = worst["ratio"] <= MOST_BYTES and worst["ms a client"] <= MOST_MS
    print(json.dumps({"claim": f"a round: at most {MOST_BYTES} times the bytes, {MOST_MS} ms a client", **worst, "kept": kept}))


def made_up_job(layers: int, width: int) -> Manifest:
    """A job with secure sums on a model of this size."""
    method = Method.model_validate({**load_preset("subspace").model_dump(), "privacy": RULES.model_dump()})
    return Manifest.of(TASK, method, ModelShape("f" * 64, layers, width))


def requests_of(manifest: Manifest, count: int) -> dict[str, Request]:
    """The requests to this many clients, in order."""
    bits = (EXAMPLES * count - 1).bit_length()
    default, place = start_of(manifest.identity.form), "0" * CONTEXT_ID_SIZE
    return {
        "stage 1": VectorsRequest(manifest.digest, ""),
        "round": UpdateRequest(place, 10, 0, 16, default, bits),
        "evaluation": EvaluateRequest(place, default),
        "round of scalars": UpdateRequest(place, 10, 0, 16, start_of(Form(manifest.model.layers)), bits),
    }


def start_of(form: Form) -> Coefficients:
    """Coefficients as of some round."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.normal(scale=0.05, size=shape).astype(np.float32) for name, shape in form.shapes.items()}
    return Coefficients.of(arrays).rounded


def replies_to(request: Request, manifest: Manifest) -> Reply:
    """A made-up reply."""
    draw = np.random.default_rng(1)
    if isinstance(request, VectorsRequest):
        means = draw.normal(size=(1, manifest.model.layers, len(WRITES), manifest.model.width)).astype(np.float32)
        return VectorsReply(
            ContextVectors.from_wire(means, np.array([EXAMPLES])), "100:" + "0" * 32, True, "float32", "float32"
        )
    if isinstance(request, EvaluateRequest):
        return EvaluateReply((Tally(20, 10, 9.0),))
    assert isinstance(request, UpdateRequest)
    moved = {name: array + draw.uniform(-0.01, 0.01, array.shape) for name, array in request.coefficients.arrays.items()}
    return UpdateReply(Coefficients.of({name: array.astype(np.float32) for name, array in moved.items()}), EXAMPLES, 0.5)


class Run:
    """One federation, in open and in secure mode."""

    def __init__(self, count: int, manifest: Manifest) -> None:
        self._manifest = manifest
        self._clients = [MadeUp(f"client-{number:03d}", {}) for number in range(1, count + 1)]
        pins = {client.name: identity_of(client).public for client in self._clients}
        layers = [secure_layer(client, pins, RULES) for client in self._clients]
        self._ends = [Timed(Unrecorded(layer, History())) for layer in layers]
        self._lost = [client.name for client in self._clients[: int(RULES.dropout * count)]]
        inner, calibration = LocalEngine(self._ends), manifest.method.calibration
        self._whole = SecureEngine(Counting(inner), RULES, calibration)
        list(self._whole.exchange({TOGETHER: JobRequest(manifest)}, 60.0, {}))
        self._losing = SecureEngine(Counting(inner, self._lost), RULES, calibration)

    def measured(self, request: Request, repeats: int, *, with_losses: bool) -> dict[str, float]:
        """Bytes of one client, up and down, against open mode; milliseconds, median of the repeats.

        Stage 1 is the first sum of a run, so it happens once.
        """
        self._prepare(request)
        plain = Counting(engine_of(self._clients)).exchange({client.name: request for client in self._clients}, 60.0, {})
        open_bytes = statistics.mean(delivery.bytes_down + delivery.bytes_up for delivery in plain)
        runs = [self._timed(self._whole, request) for _ in range(repeats if with_losses else 1)]
        secure = statistics.mean(part.bytes_down + part.bytes_up for part in runs[0][0].parts)
        count = len(self._clients)
        facts = {
            "open bytes": round(open_bytes),
            "secure bytes": round(secure),
            "ratio": round(secure / open_bytes, 3),
            "ms a client": round(1e3 * statistics.median(client for _, client, _ in runs) / count, 2),
            "ms server": round(1e3 * statistics.median(server for _, _, server in runs), 1),
        }
        if with_losses:
            self._timed(self._losing, request)  # in its first sum the clients are told of each other
            broken = [server for _, _, server in (self._timed(self._losing, request) for _ in range(repeats))]
            facts[f"ms server, {len(self._lost)} lost"] = round(1e3 * statistics.median(broken), 1)
        return facts

    def profile(self, request: Request) -> None:
        """Print where the time of a sum goes, of all clients and the server."""
        self._prepare(request)
        profiler = cProfile.Profile()
        profiler.runcall(self._timed, self._whole, request)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)

    def _prepare(self, request: Request) -> None:
        """Give all clients their reply to this request."""
        reply = replies_to(request, self._manifest)
        for client in self._clients:
            client.replies = {request.kind: reply}

    def _timed(self, engine: SecureEngine, request: Request) -> tuple[Delivery, float, float]:
        """The result, and processor seconds of all clients together and of the server."""
        before, start = sum(end.seconds for end in self._ends), time.process_time()
        (delivery,) = engine.exchange({TOGETHER: request}, 60.0, {})
        assert not isinstance(delivery.reply, Failure)
        took, clients = time.process_time() - start, sum(end.seconds for end in self._ends) - before
        return delivery, clients, took - clients


if __name__ == "__main__":
    main()
