"""An engine around another one. It shows the coordinator one client, which stands for the sum over all clients."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ifedicl.errors import ObjectionError
from ifedicl.federation import messages
from ifedicl.federation.client_pool import lacks_job
from ifedicl.federation.engine import Delivery, Engine
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.reply_validation import is_usable_empty
from ifedicl.federation.secure.channel_book import CHANNEL_SIZE, ChannelBook
from ifedicl.federation.secure.forms import short_form
from ifedicl.federation.secure.link import Link
from ifedicl.federation.secure.quantised import SUMS, shaped
from ifedicl.federation.secure.short_form import OtherFormError
from ifedicl.federation.secure.sum_client import SESSION_SIZE
from ifedicl.federation.secure.sum_steps import ObjectedError, SumSteps, too_few
from ifedicl.ledger.entries import Head
from ifedicl.secagg.collector import Collector
from ifedicl.secagg.roster import Roster, binding_of
from ifedicl.settings import TOGETHER, CalibrationSettings, PrivacySettings

_log = logging.getLogger(__name__)


class SecureEngine:
    """Turns each request of the coordinator into one secure sum over the inner engine's clients, in four exchanges or five."""

    def __init__(self, inner: Engine, rules: PrivacySettings, calibration: CalibrationSettings | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            inner: reaches the clients' secure layers.
            rules: of the sums.
            calibration: of the job; None: updates travel as they are, in more bits than changes need.
        """
        self._inner = inner
        self._rules = rules
        self._calibration = calibration if rules.noise is None else None
        self._book = ChannelBook()
        self._ready: dict[str, tuple[str, ...]] = {}  # clients that were ready for the last sum, by kind of request
        self._weight_bits: dict[str, int] = {}  # by kind of request, if it needs another form than the coordinator's; 0: none
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
            self._book.forget(to)
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
        has_objected = False
        while True:
            try:
                return self._tried(self._formed(asked), link, heads)
            except OtherFormError as error:
                # A second time in a run: as they are, which any number of examples fits
                link.failures.clear()
                self._weight_bits[asked.kind] = 0 if asked.kind in self._weight_bits else error.weight_bits
                _log.warning(
                    "%s replies do not fit the number of examples that was expected: the sum is tried again in another form",
                    asked.kind,
                )
            except ObjectedError as error:
                self._left_out |= dict.fromkeys(error.names, FailureCode.PROTOCOL)
                if has_objected:
                    what = "agree on keys and shares in two tries"
                    raise too_few(asked.kind, what, (), self._rules.min_survivors, link) from None
                _log.warning(
                    "others found keys or shares of %s wrong, or it found theirs wrong: the sum of %s is tried again without",
                    ", ".join(error.names),
                    asked.kind,
                )
                has_objected = True

    def _tried(self, asked: Request, link: Link, heads: Mapping[str, Head]) -> Reply:
        # Step 1: each client computes and keeps its reply; the others are not on the roster
        session, summed, cursors = secrets.token_bytes(SESSION_SIZE), SUMS[type(asked)], _cursors(asked)
        content = messages.encode(replace(asked, cursor="") if isinstance(asked, messages.VectorsRequest) else asked)
        begin, short = messages.BeginRequest(session, content), short_form(self._calibration, asked)
        absent = self._refused | self._left_out
        members = [name for name in self._inner.clients() if name not in absent]
        expected = self._expected(asked.kind, members)
        to_each = self._begin_requests(begin, members, expected, cursors)
        ready = link.ask(to_each, messages.BeginReply, lambda reply: reply.session == session, heads)
        link.failures |= absent
        if FailureCode.LIGHT in link.failures.values() and self._weight_bits.get(asked.kind) != 0:
            raise OtherFormError(0)
        ready = self._with_channels(_with_usual_layout(ready, link), link)
        self._ready.pop(asked.kind, None)
        self._ready[asked.kind] = tuple(ready)  # the last one is the newest
        if code := self._not_ready(asked, ready, link, heads):
            return Failure(code)
        binding = binding_of(session, self._rules.model_dump_json(), content)
        roster = Roster(binding, self._book.keys(ready), self._rules.threshold(len(ready)))

        # Steps 2 to 5, and the total
        layout = next(iter(ready.values())).layout
        form = (short or summed).form(layout)
        steps = SumSteps(session, roster, link, asked.kind)
        at_once = {name: reply.deal for name, reply in ready.items()} if set(ready) == set(expected) else {}
        deals = steps.dealt_at_once(at_once) or steps.deal(self._book)
        masked = steps.mask(deals, form)
        collector = Collector(roster, deals, masked)
        lost = [name for name in deals if name not in masked]
        revealed = steps.reveal(lost, steps.agree(masked))
        shares = steps.shares(collector.unopened(revealed), revealed)
        try:
            integers = collector.unmasked(masked, revealed, shares)
        except ObjectionError as error:
            raise ObjectedError(error.names) from error
        total = shaped(form.numbers(integers), layout)
        is_noisy = self._rules.noise is not None
        reply = short.together(total) if short else summed.rule.of_total(total, is_noisy=is_noisy)
        reply = reply or Failure(FailureCode.NO_EXAMPLES)
        if isinstance(reply, messages.VectorsReply):
            known = {**cursors, **{name: ready[name].cursor for name in masked}}
            dtypes = ", ".join(sorted({ready[name].dtype for name in masked}))
            reply = replace(reply, cursor=json.dumps(known), replaces=not cursors, dtype=dtypes)
        return reply

    def _formed(self, asked: Request) -> Request:
        """The request, with the form that replies of its kind turned out to need."""
        needed = 0 if self._calibration is None else self._weight_bits.get(asked.kind)
        if not isinstance(asked, messages.UpdateRequest | messages.StatisticsRequest | messages.ProductsRequest):
            return asked
        if asked.weight_bits and needed is not None:
            return replace(asked, weight_bits=needed and max(asked.weight_bits, needed))
        return asked

    def _expected(self, kind: str, members: Sequence[str]) -> tuple[str, ...]:
        """The clients that will probably be ready; empty: they cannot deal before a roster is known."""
        before = self._ready.get(kind) or next(reversed(self._ready.values()), ())
        expected = tuple(name for name in before if name in members)
        enough = len(expected) >= self._rules.threshold(len(expected))
        return expected if enough and self._book.can_deal_at_once(expected) else ()

    def _begin_requests(
        self, begin: messages.BeginRequest, members: Sequence[str], expected: Sequence[str], cursors: Mapping[str, str]
    ) -> dict[str, messages.BeginRequest]:
        """The first request of a sum, by client. Clients that are asked the same get one object, which engines pack once."""
        at_once = replace(begin, roster=self._book.numbers(expected))
        kinds = {
            (introduce, deals): replace(at_once if deals else begin, introduce=introduce)
            for introduce in (False, True)
            for deals in (False, True)
        }
        asked = {name: kinds[self._book.lacks(name), name in expected] for name in members}
        return {name: replace(own, cursor=cursors[name]) if cursors.get(name) else own for name, own in asked.items()}

    def _with_channels(self, ready: Mapping[str, messages.BeginReply], link: Link) -> dict[str, messages.BeginReply]:
        """The clients whose channel keys are known now."""
        for name, reply in ready.items():
            if self._book.lacks(name) and len(reply.channel) == CHANNEL_SIZE:
                self._book.enter(name, reply.channel)
        link.failures |= {name: FailureCode.BAD_REPLY for name in ready if self._book.lacks(name)}
        return {name: reply for name, reply in ready.items() if not self._book.lacks(name)}

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
        if isinstance(asked, messages.StatisticsRequest | messages.NoisyStatisticsRequest | messages.ProductsRequest) and all(
            code.is_final for code in codes
        ):
            return FailureCode.REFUSED  # a run works without a readout
        raise too_few(asked.kind, "have something to add", ready, self._rules.min_survivors, link)


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
