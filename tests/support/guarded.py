"""A scripted client behind an owner's policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings

from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.federation import messages
from ifedicl.federation.client import Client
from ifedicl.federation.handler import Discloser, Disclosure
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request, StepRequest, VectorsReply
from ifedicl.ledger.usage import CountedLedger, ReplyFacts
from ifedicl.metrics import Comparison, Tally
from ifedicl.owner.endpoint import ClientEndpoint, LedgerRecord, build_endpoint
from ifedicl.owner.guard import Guard
from ifedicl.owner.policy import Policy, open_policy
from ifedicl.owner.recorder import Recorder, SumRecorder
from ifedicl.settings import Method, validated
from tests.support import tiny
from tests.support.endpoints import Asked
from tests.support.jobs import FINGERPRINT, job_on, one_of_each
from tests.support.readouts import drawn_products, drawn_sums
from tests.support.scripted import ScriptedClient

LAYERS, WIDTH = 2, 4
MODEL = FINGERPRINT
FORM = Form(LAYERS)
ONE = Context(np.ones((LAYERS, 2, WIDTH), dtype=np.float32))
SAME = Coefficients.identity(FORM)
QUICK = settings(deadline=None, derandomize=True, max_examples=25)


def rules(**sections: Any) -> Policy:
    """A policy that allows everything except what ``sections`` forbid."""
    base = open_policy().model_dump()
    return validated(Policy, {name: {**base[name], **sections.get(name, {})} for name in base}, "test")


def vectors(counts: tuple[int, ...] = (20,), *, cursor: str = "20:x", replaces: bool = True) -> VectorsReply:
    """Vectors of ones, for the examples of each class."""
    means = np.ones((len(counts), LAYERS, 2, WIDTH), dtype=np.float32)
    return VectorsReply(ContextVectors.from_wire(means, np.array(counts)), cursor, replaces, "float32", "float32")


def usual(request: Request) -> Reply:
    """A reply that fits the request."""
    answers: dict[str, Reply] = {
        "job": messages.JobReply(),
        "vectors": vectors(),
        "context": messages.ContextReply(),
        "update": messages.UpdateReply(SAME, 20, 0.5),
        "gradient": messages.GradientReply(GradientSum(SAME.arrays, 5, 2.0)),
        "evaluate": messages.EvaluateReply((Tally(6, 3, 2.0),)),
        "statistics": messages.StatisticsReply(drawn_sums(20)),
        "products": messages.ProductsReply(drawn_products(20)),
        "compare": messages.CompareReply(Comparison(Tally(6, 3, 2.0), Tally(6, 2, 3.0), 1.0, 1, (3, 3), (4, 2))),
    }
    return answers[request.kind]


METHOD = tiny.method(calibration={"batch_size": 8, "local_steps": 4})
GRADIENTS = tiny.method(server={"update": "gradient"})


def asks(method: Method = METHOD) -> dict[str, StepRequest]:
    """One request of each kind."""
    return one_of_each(job_on(ONE, method), ONE, SAME)


def scripted_client(rule: Callable[[Request], Reply | None] = lambda request: None) -> ScriptedClient:
    """A client that answers by ``rule``, or with a reply that fits the request."""
    return ScriptedClient("clinic", usual, rule)


def guarded(
    folder: Path, policy: Policy | None = None, rule: Callable[[Request], Reply | None] = lambda request: None, **options: Any
) -> tuple[Asked, ScriptedClient]:
    """A scripted client behind a policy and a ledger in ``folder``, and the client itself."""
    client: Any = scripted_client(rule)
    record = LedgerRecord(CountedLedger(folder / "ledger.jsonl", client.name), **options)
    return Asked(build_endpoint(client, policy or rules(), record, None, {})), client


def code(reply: Reply) -> FailureCode | None:
    """The code of a failure; ``None`` for any other reply."""
    return reply.code if isinstance(reply, Failure) else None


def installed(guard: Asked, method: Method = METHOD) -> dict[str, StepRequest]:
    """One request of each kind, after the client has its job and its context."""
    requests = asks(method)
    guard.handle(requests["job"])
    guard.handle(requests["context"])
    return requests


BY_CLASS = tiny.method(vectors={"balance": "class"})
READOUT = tiny.method(readout={})
SECURE = tiny.method(weighting="examples", privacy={"mode": "secure"})


def client_of(site: ClientEndpoint) -> Client:
    """The innermost layer of a site."""
    return site.client


class Masking:
    """A stand-in for the layer that masks: what it is asked for in plain leaves as an empty message."""

    name = "clinic"

    def __init__(self, inner: Discloser) -> None:
        self.inner = inner

    def handle(self, request: Request, /) -> Disclosure:
        """What leaves in place of the inner layer's reply."""
        disclosure = self.inner.handle(request)
        if isinstance(disclosure.reply, Failure) or isinstance(request, messages.JobRequest | messages.ContextRequest):
            return disclosure
        return Disclosure(messages.RevealReply(bytes(16), bytes(16), b""), ReplyFacts(run=disclosure.facts.run))


def summed(folder: Path, policy: Policy) -> tuple[Asked, ScriptedClient]:
    """A scripted client whose replies go into sums, behind a policy and a ledger in ``folder``, and the client itself."""
    client = scripted_client()
    ledger = CountedLedger(folder / "ledger.jsonl", client.name)
    plain = SumRecorder(Guard(client, policy, ledger.history, masked=True), ledger.append)
    return Asked(Recorder(Masking(plain), ledger, policy)), client
