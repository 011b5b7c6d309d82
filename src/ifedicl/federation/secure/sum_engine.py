"""An engine around another one. It shows the coordinator one client, which stands for the sum over all clients."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ifedicl.errors import ObjectionError, TooFewClientsError
from ifedicl.federation import messages
from ifedicl.federation.client_pool import lacks_job
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.reply_validation import is_usable_empty
from ifedicl.federation.secure.link import Link
from ifedicl.federation.secure.quantised import SUMS, count_of, shaped
from ifedicl.ledger.entries import Head
from ifedicl.secagg.collector import unmasked
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.keys import SIGNATURE_SIZE
from ifedicl.secagg.masks import Integers
from ifedicl.secagg.party import SEALED_SIZE
from ifedicl.secagg.roster import Advert, Roster, binding_of
from ifedicl.settings import TOGETHER, PrivacySettings

R = TypeVar("R")
_SumReply: TypeAlias = messages.DealReply | messages.MaskReply | messages.AgreeReply | messages.RevealReply
S = TypeVar("S", bound=_SumReply)

_log = logging.getLogger(__name__)


class SecureEngine:
    """Turns each request of the coordinator into one secure sum over the inner engine's clients, in five exchanges."""

    def __init__(self, inner: Engine, rules: PrivacySettings) -> None:
        """Take the engine that reaches the clients' secure layers, and the rules of the sums."""
        self._inner = inner
        self._rules = rules
        self._forgetful: tuple[str, ...] = ()  # clients without the job or its global vectors; empty: send them to all
        self._supplied: tuple[str, ...] = ()  # clients that received them last
        self._refused: dict[str, FailureCode] = {}  # clients that did not take the job, and why
        self._left_out: dict[str, FailureCode] = {}  # clients whose keys or shares the others found wrong

    def clients(self) -> tuple[str, ...]:
        """One name, which stands for all clients."""
        return (TOGETHER,)

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        """Yield one delivery: the total as a reply, and the cost to each client as its parts. Each exchange has the deadline.

        Raises:
            TooFewClientsError: fewer survivors than the threshold; nothing was revealed.
            SecureSumError: the replies cannot be unmasked.
        """
        (asked,) = requests.values()
        start, link = time.perf_counter(), Link(self._inner, deadline)
        if isinstance(asked, messages.JobRequest | messages.ContextRequest):
            reply = self._sent_to_all(asked, link)
        else:
            reply = self._summed(asked, link, heads)
        down, up = (sum(getattr(part, way) for part in link.costs) for way in ("bytes_down", "bytes_up"))
        yield Delivery(TOGETHER, reply, down, up, time.perf_counter() - start, parts=link.costs)

    def _sent_to_all(self, asked: messages.JobRequest | messages.ContextRequest, link: Link) -> Reply:
        """Send the job or the global vectors to the clients that lack them. One client's reply stands for all."""
        to = self._supplied = self._forgetful or self._inner.clients()
        if isinstance(asked, messages.JobRequest):
            replies: dict[str, messages.JobReply | messages.ContextReply] = {
                **link.ask(dict.fromkeys(to, asked), messages.JobReply, is_usable_empty)
            }
            self._refused = {name: code for name, code in self._refused.items() if name not in to} | link.failures
        else:
            self._forgetful = ()
            replies = {**link.ask(dict.fromkeys(to, asked), messages.ContextReply, is_usable_empty)}
        codes = set(link.failures.values())
        return next(iter(replies.values()), Failure(codes.pop() if len(codes) == 1 else FailureCode.LOST))

    def _summed(self, asked: Request, link: Link, heads: Mapping[str, Head]) -> Reply:
        """The total, or a code in its place. Clients whose keys or shares others find wrong are left out, in one more try."""
        try:
            return self._tried(asked, link, heads)
        except _ObjectedError as error:
            _log.warning(
                "others found keys or shares of %s wrong, or it found theirs wrong: the sum of %s is tried again without",
                ", ".join(error.names),
                asked.kind,
            )
            self._left_out |= dict.fromkeys(error.names, FailureCode.PROTOCOL)
        try:
            return self._tried(asked, link, heads)
        except _ObjectedError as error:
            self._left_out |= dict.fromkeys(error.names, FailureCode.PROTOCOL)
            raise _too_few(asked.kind, "agree on keys and shares in two tries", (), self._rules.min_survivors, link) from None

    def _tried(self, asked: Request, link: Link, heads: Mapping[str, Head]) -> Reply:
        # Step 1: each client computes and keeps its reply, and advertises keys; the others are not on the roster
        session, summed, cursors = secrets.token_hex(16), SUMS[type(asked)], _cursors(asked)
        content = messages.encode(replace(asked, cursor="") if isinstance(asked, messages.VectorsRequest) else asked)
        begin = messages.BeginRequest(session, content)
        # Clients without a cursor get one shared object, which engines pack once.
        absent = self._refused | self._left_out
        members = [name for name in self._inner.clients() if name not in absent]
        to_each = {name: replace(begin, cursor=cursors[name]) if cursors.get(name) else begin for name in members}
        ready = link.ask(to_each, messages.BeginReply, lambda reply: reply.session == session, heads)
        link.failures |= absent
        ready = _with_usual_layout(ready, link)
        if code := self._not_ready(asked, ready, link, heads):
            return Failure(code)
        adverts = {name: Advert(reply.mask_key, reply.channel_key, reply.signature) for name, reply in ready.items()}
        binding = binding_of(session, self._rules.model_dump_json(), content)
        roster = Roster(binding, adverts, self._rules.threshold(len(ready)))

        # Steps 2 to 5, and the total
        layout = next(iter(ready.values())).layout
        steps = _SumSteps(session, roster, link, asked.kind)
        dealt = steps.deal()
        grid = summed.grid
        masked = steps.mask(dealt, grid, count_of(layout))
        revealed = steps.reveal(dealt, steps.agree(masked))
        commitments = {name: reply.commitment for name, reply in dealt.items()}
        try:
            integers = unmasked(roster, commitments, masked, revealed)
        except ObjectionError as error:
            raise _ObjectedError(error.names) from error
        total = shaped(grid.numbers(integers), layout)
        is_noisy = self._rules.noise is not None
        reply = summed.rule.of_total(total, is_noisy=is_noisy) or Failure(FailureCode.NO_EXAMPLES)
        if isinstance(reply, messages.VectorsReply):
            known = {**cursors, **{name: ready[name].cursor for name in masked}}
            dtypes = ", ".join(sorted({ready[name].dtype for name in masked}))
            reply = replace(reply, cursor=json.dumps(known), replaces=not cursors, dtype=dtypes)
        return reply

    def _not_ready(
        self, asked: Request, ready: Mapping[str, messages.BeginReply], link: Link, heads: Mapping[str, Head]
    ) -> FailureCode | None:
        """The code in place of a sum; None: enough clients are ready.

        Raises:
            TooFewClientsError: too few are, and no single code explains it.
        """
        forgetful = {name for name, code in link.failures.items() if lacks_job(name, code, heads)}
        forgetful -= {*self._supplied, *self._refused, *self._left_out}
        self._supplied, self._forgetful = (), tuple(name for name in self._inner.clients() if name in forgetful)
        if forgetful:
            return FailureCode.NO_CONTEXT
        if changed := [name for name, code in link.failures.items() if code is FailureCode.CHANGED]:
            _log.warning("earlier examples of %s changed; their earlier vectors stay in the sums", ", ".join(changed))
        if len(ready) >= self._rules.min_survivors:
            return None
        codes = set(link.failures.values())
        if not ready and codes == {FailureCode.NO_EXAMPLES}:
            return FailureCode.NO_EXAMPLES
        if codes == {FailureCode.SPENT}:
            return FailureCode.SPENT
        if isinstance(asked, messages.VectorsRequest) and asked.cursor:
            return FailureCode.TOO_FEW  # too few clients have new examples: the sums stay as they are
        if isinstance(asked, messages.StatisticsRequest | messages.NoisyStatisticsRequest) and all(
            code.is_final for code in codes
        ):
            return FailureCode.REFUSED  # a run works without a readout
        raise _too_few(asked.kind, "have something to add", ready, self._rules.min_survivors, link)


class _ObjectedError(Exception):
    """Some clients object to others. ``names`` are to be left out, so that the rest can go on."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = tuple(names)


class _SumSteps:
    """Steps 2 to 5 of one sum."""

    def __init__(self, session: str, roster: Roster, link: Link, step: str) -> None:
        self._session = session
        self._roster = roster
        self._link = link
        self._step = step

    def deal(self) -> dict[str, messages.DealReply]:
        """Step 2: each client deals sealed shares of its secrets to the others."""
        names, adverts = self._roster.names, self._roster.adverts.values()
        keys = tuple((advert.mask_key, advert.channel_key, advert.signature) for advert in adverts)
        request, others = messages.DealRequest(self._session, names, keys), len(names) - 1

        def usable(reply: messages.DealReply) -> bool:
            sizes = {len(text) for text in reply.sealed}
            return len(reply.sealed) == others and sizes <= {SEALED_SIZE}

        return self._enough(self._ask(dict.fromkeys(names, request), messages.DealReply, usable), "dealt shares")

    def mask(self, dealt: Mapping[str, messages.DealReply], grid: FixedPoint, count: int) -> dict[str, Integers]:
        """Step 3: each client's masked numbers, integers ``(count,)``."""
        sealed = {name: dict(zip(self._others(name), reply.sealed, strict=True)) for name, reply in dealt.items()}
        requests = {
            name: messages.MaskRequest(
                self._session,
                tuple(self._position(sender) for sender in dealt if sender != name),
                tuple(sealed[sender][name] for sender in dealt if sender != name),
            )
            for name in dealt
        }
        shape = (count, grid.bits // 8)

        def usable(reply: messages.MaskReply) -> bool:
            return reply.masked.shape == shape and reply.masked.dtype == np.uint8

        masked = self._ask(requests, messages.MaskReply, usable)
        return {name: grid.unpacked(reply.masked) for name, reply in self._enough(masked, "sent masked numbers").items()}

    def agree(self, masked: Mapping[str, Integers]) -> dict[str, bytes]:
        """Step 4: each survivor's signature of the lists of those who dealt and of those who survived."""
        request = messages.AgreeRequest(self._session, tuple(map(self._position, masked)))
        signed = self._ask(
            dict.fromkeys(masked, request), messages.AgreeReply, lambda reply: len(reply.signature) == SIGNATURE_SIZE
        )
        return {name: reply.signature for name, reply in self._enough(signed, "signed the lists").items()}

    def reveal(self, dealt: Mapping[str, messages.DealReply], signatures: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
        """Step 5: from each survivor that signed, its shares of one of two secrets of each client that dealt."""
        signers = tuple(map(self._position, signatures))
        request = messages.RevealRequest(self._session, signers, tuple(signatures.values()))
        revealed = self._ask(
            dict.fromkeys(signatures, request), messages.RevealReply, lambda reply: len(reply.shares) == len(dealt)
        )
        enough = self._enough(revealed, "revealed shares")
        return {name: dict(zip(dealt, reply.shares, strict=True)) for name, reply in enough.items()}

    def _ask(self, requests: Mapping[str, Request], expected: type[S], usable: Callable[[S], bool]) -> dict[str, S]:
        """The usable replies of this sum.

        Raises:
            _ObjectedError: some clients object to others.
        """

        def fits(reply: S | messages.ObjectReply) -> bool:
            if reply.session != self._session:
                return False
            return isinstance(reply, messages.ObjectReply) or usable(reply)

        kinds: Any = (expected, messages.ObjectReply)  # isinstance takes both
        replies: dict[str, S | messages.ObjectReply] = self._link.ask(requests, kinds, fits)
        objections = [
            (name, self._roster.names[position])
            for name, reply in replies.items()
            if isinstance(reply, messages.ObjectReply)
            for position in reply.positions
            if position < len(self._roster.names)
        ]
        if objections:
            raise _ObjectedError(_fewest_to_leave_out(objections))
        return {name: reply for name, reply in replies.items() if isinstance(reply, expected)}

    def _enough(self, replies: dict[str, R], what: str) -> dict[str, R]:
        if len(replies) < self._roster.threshold:
            raise _too_few(self._step, what, replies, self._roster.threshold, self._link)
        return replies

    def _others(self, name: str) -> list[str]:
        return [other for other in self._roster.names if other != name]

    def _position(self, name: str) -> int:
        return self._roster.positions[name] - 1


def _fewest_to_leave_out(objections: Sequence[tuple[str, str]]) -> list[str]:
    """Clients without whom nobody objects to anybody: again and again the one in most objections, on either side.

    One client with a wrong key is in the objections of all others. One that objects to all others is in them alone.
    """
    open_ones, left_out = set(objections), list[str]()
    while open_ones:
        counts = Counter(name for pair in open_ones for name in pair)
        targets = Counter(target for _, target in open_ones)
        worst = max(sorted(counts), key=lambda name: (counts[name], targets[name]))
        left_out.append(worst)
        open_ones = {pair for pair in open_ones if worst not in pair}
    return left_out


def _too_few(step: str, what: str, replies: Collection[object], needed: int, link: Link) -> TooFewClientsError:
    reasons = ", ".join(f"{name}: {code.value}" for name, code in link.failures.items())
    return TooFewClientsError(
        f"secure sum of {step}: {len(replies)} clients {what}, {needed} are needed by privacy.min_survivors and "
        f"privacy.dropout ({reasons}). Nothing was revealed, and earlier rounds are kept: resume when they are back"
    )


def _with_usual_layout(ready: Mapping[str, messages.BeginReply], link: Link) -> dict[str, messages.BeginReply]:
    """The clients with the most common layout; the others cannot be summed with them."""
    layouts = Counter(json.dumps(reply.layout) for reply in ready.values())
    usual = layouts.most_common(1)[0][0] if layouts else ""
    for name, reply in ready.items():
        if json.dumps(reply.layout) != usual:
            link.failures[name] = FailureCode.BAD_REPLY
    return {name: reply for name, reply in ready.items() if json.dumps(reply.layout) == usual}


def _cursors(asked: Request) -> dict[str, str]:
    """Each client's cursor, from the coordinator's one cursor."""
    known = asked.cursor if isinstance(asked, messages.VectorsRequest) else ""
    return {str(name): str(cursor) for name, cursor in json.loads(known or "{}").items()}
