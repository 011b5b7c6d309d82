"""Sends one request to each client, and notes usable replies, failures and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from ifedicl.errors import LimitsReachedError, TooFewClientsError
from ifedicl.federation import messages
from ifedicl.federation.checkpoint import Memory
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.events import Delivered, Event, StepStarted
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.reply_sums import Total
from ifedicl.federation.reply_validation import is_usable_empty
from ifedicl.federation.state import Traffic
from ifedicl.ledger.entries import Head
from ifedicl.ledger.receipts import HeadLog, Received
from ifedicl.settings import Coordination

R = TypeVar("R", bound=Reply)


@dataclass(frozen=True)
class Participation:
    """The clients with usable replies, in client order, and the codes of the others."""

    names: tuple[str, ...]
    failures: Mapping[str, FailureCode]

    @property
    def reasons(self) -> str:
        """The failures as text."""
        return ", ".join(f"{name}: {code.value}" for name, code in self.failures.items())


class ClientPool:
    """The clients of a run as its coordinator sees them."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        memory: Memory,
        coordination: Coordination,
        observer: Callable[[Event], None],
    ) -> None:
        """Take what an exchange needs.

        Args:
            engine: reaches the clients.
            manifest: of the job.
            memory: holds the global vectors, and keeps the cost of each exchange.
            coordination: deadline and minimum clients.
            observer: called with each step and delivery.
        """
        self._engine = engine
        self.manifest = manifest
        self._memory = memory
        self._coordination = coordination
        self._observer = observer
        self._heads = HeadLog(memory.heads_file)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all clients, in a fixed order."""
        return self._engine.clients()

    @property
    def context_id(self) -> str:
        """Names the global vectors in this job."""
        context = self._memory.state.context
        assert context is not None
        return context_id(self.manifest.digest, context)

    def introduce(self, names: Iterable[str]) -> dict[str, FailureCode]:
        """Send the job's manifest, and return the codes of the clients that do not take it: they answer no other request."""
        requests = dict.fromkeys(names, messages.JobRequest(self.manifest))
        return self._exchange(requests, messages.JobReply, is_usable_empty, lambda _name, _reply: None)[1]

    def install(self, names: Iterable[str]) -> None:
        """Send the global vectors (stage 2a). A client that lacks them replies so to the next request."""
        requests = dict.fromkeys(names, self._context_request)
        self._exchange(requests, messages.ContextReply, is_usable_empty, lambda _name, _reply: None)

    @property
    def _context_request(self) -> messages.ContextRequest:
        context = self._memory.state.context
        assert context is not None
        return messages.ContextRequest(self.manifest.digest, context, self.manifest.method.vectors.wire_dtype)

    def ask(
        self, requests: Mapping[str, Request], expected: type[R], usable: Callable[[R], bool]
    ) -> tuple[dict[str, R], Participation]:
        """The usable replies, in client order. :meth:`total` needs less memory where a sum is enough."""
        replies: dict[str, R] = {}
        answers = self.collect(requests, expected, usable, replies.__setitem__)
        return {name: replies[name] for name in answers.names}, answers

    def ask_all(self, request: Request, expected: type[R], usable: Callable[[R], bool]) -> tuple[dict[str, R], Participation]:
        """The usable replies of all clients to one request."""
        return self.ask(dict.fromkeys(self.names, request), expected, usable)

    def total(
        self, requests: Mapping[str, Request], expected: type[R], usable: Callable[[R], bool]
    ) -> tuple[R | None, Participation]:
        """The sum of the usable replies; None if they count no example."""
        total = Total(expected)
        answers = self.collect(requests, expected, usable, lambda _, reply: total.add(reply))
        return total.reply, answers

    def collect(
        self, requests: Mapping[str, Request], expected: type[R], usable: Callable[[R], bool], take: Callable[[str, R], None]
    ) -> Participation:
        """Pass each usable reply to ``take`` as it comes, in any order.

        A client that lacks the job or the global vectors receives them and the request again: after a restart, or if its owner
        has approved the job by now.

        Args:
            requests: by client.
            expected: kind of the replies.
            usable: whether a reply is valid.
            take: called with a client's name and its reply, at most once for each client.
        """
        heads = self._memory.state.heads
        names, failures = self._exchange(requests, expected, usable, take)
        without_job = [name for name, code in failures.items() if lacks_job(name, code, heads)]
        if without_job:
            refused = self.introduce(without_job)
            ready = [name for name in without_job if name not in refused]
            if ready and not self.manifest.method.is_one_shot and self._memory.state.context is not None:
                self.install(ready)
            again, failures_again = self._exchange({name: requests[name] for name in ready}, expected, usable, take)
            names |= again
            failures = {name: code for name, code in failures.items() if name not in ready} | refused | failures_again
        return Participation(tuple(name for name in self.names if name in names), failures)

    def are_enough(self, answers: Participation) -> bool:
        """Whether there are ``coordination.min_clients``."""
        return len(answers.names) >= self._coordination.min_clients

    def require(self, answers: Participation, step: str) -> None:
        """Check that there are enough.

        Raises:
            LimitsReachedError: there are fewer than ``coordination.min_clients``, only because of the owners' limits.
            TooFewClientsError: there are fewer for any other reason.
        """
        if self.are_enough(answers):
            return
        is_spent = set(answers.failures.values()) == {FailureCode.SPENT}
        raise (LimitsReachedError if is_spent else TooFewClientsError)(
            f"round {self._memory.state.round + 1}, {step}: {len(answers.names)} of {len(self.names)} clients gave a usable "
            f"reply, coordination.min_clients asks for {self._coordination.min_clients} ({answers.reasons}). Earlier rounds "
            "are kept: resume when they are back, or with a lower coordination.min_clients"
        )

    def _exchange(
        self, requests: Mapping[str, Request], expected: type[R], usable: Callable[[R], bool], take: Callable[[str, R], None]
    ) -> tuple[set[str], dict[str, FailureCode]]:
        if not requests:
            return set(), {}
        request, state = next(iter(requests.values())), self._memory.state
        step = request.kind
        self._observer(StepStarted(step, state.round, len(requests)))
        answered: set[str] = set()
        failures: dict[str, FailureCode] = {}
        traffic: list[Traffic] = []
        received: list[Received] = []
        heads = dict(state.heads)
        known = state.heads if request.carries_head else {}
        for delivery in self._engine.exchange(requests, self._coordination.deadline_seconds, known):
            reply = delivery.reply
            if isinstance(reply, expected) and usable(reply):
                take(delivery.client, reply)
                answered.add(delivery.client)
            else:
                failures[delivery.client] = reply.code if isinstance(reply, Failure) else FailureCode.BAD_REPLY
            for part in delivery.parts or (delivery,):  # of a sum: the cost to each client
                code = part.reply.code if isinstance(part.reply, Failure) else failures.get(part.client)
                traffic.append(_traffic(part, step, state.round, code))
                self._observer(Delivered(traffic[-1]))
                if part.receipt is not None:
                    run, receipt = self.manifest.run, part.receipt
                    received.append(Received(part.client, receipt.head, receipt.sha256, run, step, state.round))
                    if request.carries_head or part.client not in state.heads:
                        advance_head(heads, part)  # else nothing says that the head continues the known one
        self._heads.note(received)
        self._memory.note(replace(self._memory.state, traffic=(*state.traffic, *traffic), heads=heads))
        return answered, failures


def lacks_job(name: str, code: FailureCode, heads: Mapping[str, Head]) -> bool:
    """Whether a client that failed with ``code`` lacks the job: it says so, or the coordinator never heard of its ledger."""
    return code is FailureCode.NO_CONTEXT or (code is FailureCode.LEDGER and name not in heads)


def advance_head(heads: dict[str, Head], delivery: Delivery) -> None:
    """Note the head of a client's ledger after this delivery.

    The head of another ledger does not replace the known one: the client sends code ``ledger``, or the head has no more lines.
    """
    if delivery.receipt is None:
        return
    before, after, reply = heads.get(delivery.client), delivery.receipt.head, delivery.reply
    is_other = isinstance(reply, Failure) and reply.code is FailureCode.LEDGER
    if not is_other and (before is None or after.entries > before.entries):
        heads[delivery.client] = after


def _traffic(delivery: Delivery, step: str, round_number: int, failure: FailureCode | None) -> Traffic:
    return Traffic(
        client=delivery.client,
        step=step,
        round=round_number,
        bytes_down=delivery.bytes_down,
        bytes_up=delivery.bytes_up,
        seconds=delivery.seconds,
        failure=failure and failure.value,
        carrier_bytes=delivery.carrier_bytes,
    )
