"""Claim: to check a request against the owner's job and rules takes less than 5 ms, and so does to check a job.

Each check is timed alone, without the model's work and the ledger's disk: decoding, the shape and bounds of the numbers, the
policy's rules, the limits, the name under which a request is counted. The shape is that of an 8B model (32 layers, width 4096).
The global vectors, which come once a job, are 9 MB: their time, most of it the SHA-256, is printed without a claim.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.blend import SHARES
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.penalties import PENALTIES
from ifedicl.core.readout import TEMPERATURES, Readout, feature_count, hidden_count
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES
from ifedicl.data import Role
from ifedicl.federation import messages
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request, StepRequest
from ifedicl.federation.request_validation import RequestChecks
from ifedicl.kinds.classify import Task
from ifedicl.ledger.usage import History, ReplyFacts
from ifedicl.owner.guard import Guard
from ifedicl.owner.policy import open_policy
from ifedicl.settings import Method

AT_MOST = 5.0  # milliseconds
TASK = Task(name="made-up", labels=("a", "b", "c", "d"))
MODEL = ModelShape("0" * 64, layers=32, width=4096)
RANK = 8


def manifest() -> Manifest:
    """A job with all that can be checked: a subspace, a readout, a gate."""
    sections = {"subspace": {"rank": RANK}, "readout": {}, "holdout": {"selection": 0.2, "gate": 0.1}, "rounds": {"rounds": 30}}
    return Manifest.of(TASK, Method.model_validate(sections), MODEL)


def requests(job: Manifest) -> dict[str, StepRequest]:
    """One request of each kind, of random numbers."""
    draw, layers = np.random.default_rng(0), len(job.layers)
    rows = draw.normal(size=(layers, len(WRITES), MODEL.width, RANK))
    basis = np.linalg.qr(rows)[0].swapaxes(2, 3).astype(np.float32)
    vectors = draw.normal(size=(layers, len(WRITES), MODEL.width)).astype(np.float32)
    context = Context(vectors, np.ascontiguousarray(basis), job.layers.start)
    name = context_id(job.digest, context)
    shapes = {key: draw.normal(size=array.shape).astype(np.float32) for key, array in job.identity.arrays.items()}
    values = Coefficients.of(shapes)
    pooled = job.method.pooled_layers(MODEL.layers)
    size = feature_count(hidden_count(MODEL.width, pooled), len(TASK.labels))
    readouts = tuple(Readout(draw.normal(size=(len(TASK.labels), size)).astype(np.float32), pooled) for _ in PENALTIES)
    return {
        "vectors": messages.VectorsRequest(job.digest, ""),
        "update": messages.UpdateRequest(name, 3, 0, 30, values),
        "evaluate": messages.EvaluateRequest(name, values),
        "readouts": messages.EvaluateRequest(name, values, readouts, TEMPERATURES, SHARES),
        "statistics": messages.StatisticsRequest(name, values),
        "compare": messages.CompareRequest(name, values, readouts[0]),
        "context": messages.ContextRequest(job.digest, context, "float32"),
    }


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


class Checking:
    """A client that checks a request and computes nothing."""

    name = "made-up"
    split = ""
    spent_epsilon = None

    def __init__(self, job: Manifest) -> None:
        self.checks = RequestChecks(job)

    def handle(self, request: Request) -> Reply:
        """A job is taken; any other request fits, and has no examples."""
        if isinstance(request, messages.JobRequest):
            return messages.JobReply()
        assert not isinstance(request, messages.SumRequest)
        assert self.checks.fits(request)
        return Failure(FailureCode.NO_EXAMPLES)

    def cursor(self, role: Role) -> str:
        """None is ever asked for."""
        raise NotImplementedError

    def examples_behind(self, cursor: str, role: Role) -> npt.NDArray[np.int64]:
        """None are ever asked for."""
        raise NotImplementedError


def history() -> History:
    """An owner's history of 1,000 replies in 20 runs."""
    found = History()
    for number in range(1000):
        facts = ReplyFacts(f"{number % 20:064x}", f"{number:032x}")
        found.note({"kind": "update_reply", "bytes": 1000, "engine_bytes": 0} | facts.as_json)
    return found


def main() -> int:
    """Time each check; exit code 1 if one takes too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    job = manifest()
    guard = Guard(Checking(job), open_policy(), history())
    asked: dict[str, Request] = {"job": messages.JobRequest(job), **requests(job)}
    figures = {}
    for kind, request in asked.items():
        frame = messages.encode(request)

        def check(frame: bytes = frame) -> None:
            reply = guard.handle(messages.decode_request(frame)).reply
            assert not isinstance(reply, Failure) or reply.code is FailureCode.NO_EXAMPLES

        figures[kind] = milliseconds(check, arguments.repeats)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{kind}: {value:.2f} ms" for kind, value in figures.items()))
    return int(max(value for kind, value in figures.items() if kind != "context") > AT_MOST)


if __name__ == "__main__":
    raise SystemExit(main())
