"""Steps 2 to 5 of one secure sum, at the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from ifedicl.errors import SecureSumError, TooFewClientsError
from ifedicl.federation import messages
from ifedicl.federation.messages import Request
from ifedicl.federation.secure.channel_book import ChannelBook
from ifedicl.federation.secure.link import Link
from ifedicl.federation.secure.quantised import Form
from ifedicl.secagg import shamir
from ifedicl.secagg.collector import disagreeing
from ifedicl.secagg.masks import Integers
from ifedicl.secagg.party import Revealed
from ifedicl.secagg.roster import TAG_SIZE, Deal, Roster

R = TypeVar("R")
_SumReply: TypeAlias = (
    messages.DealReply | messages.MaskReply | messages.AgreeReply | messages.RevealReply | messages.SharesReply
)
S = TypeVar("S", bound=_SumReply)


class ObjectedError(Exception):
    """Some clients object to others. ``names`` are to be left out, so that the rest can go on."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.names = tuple(names)


class SumSteps:
    """The exchanges after the first one."""

    def __init__(self, session: bytes, roster: Roster, link: Link, step: str) -> None:
        """Take the sum.

        Args:
            session: its name.
            roster: the clients that are ready.
            link: reaches them.
            step: the kind of the request, for errors.
        """
        self._session = session
        self._roster = roster
        self._link = link
        self._step = step

    def dealt_at_once(self, deals: Mapping[str, bytes]) -> dict[str, Deal]:
        """What all clients dealt in the first exchange, for the roster that came true; empty: not all did."""
        found = {name: self._deal(deals[name]) for name in self._roster.names if name in deals}
        dealt = {name: deal for name, deal in found.items() if deal is not None}
        return self._agreeing(dealt) if len(dealt) == len(self._roster.names) else {}

    def deal(self, book: ChannelBook) -> dict[str, Deal]:
        """Step 2, if the roster is another one than was expected: what each client deals for it.

        Raises:
            ObjectedError: some clients object to others, or do not agree on a secret.
        """
        names = self._roster.names
        numbers, untold = book.numbers(names), {name: book.untold(name, names) for name in names}
        kinds = {news: messages.DealRequest(self._session, numbers, news) for news in set(untold.values())}
        requests = {name: kinds[untold[name]] for name in names}
        replies = self._ask(requests, messages.DealReply, lambda reply: self._deal(reply.deal) is not None)
        book.told(replies, names)
        dealt = {name: deal for name, reply in replies.items() if (deal := self._deal(reply.deal)) is not None}
        return self._agreeing(self._enough(dealt, "dealt shares"))

    def mask(self, dealt: Collection[str], form: Form) -> dict[str, Integers]:
        """Step 3: each client's masked numbers, integers ``(count,)``."""
        request = messages.MaskRequest(self._session, self._positions(dealt))
        masked = self._ask(dict.fromkeys(dealt, request), messages.MaskReply, lambda reply: len(reply.masked) == form.size)
        return {name: form.unpacked(reply.masked) for name, reply in self._enough(masked, "sent masked numbers").items()}

    def agree(self, masked: Collection[str]) -> dict[str, dict[str, bytes]]:
        """Step 4: each survivor's tags of the lists of those who dealt and of those who survived, by sender and receiver."""
        request = messages.AgreeRequest(self._session, self._positions(masked))
        size = TAG_SIZE * (len(masked) - 1)
        replies = self._ask(dict.fromkeys(masked, request), messages.AgreeReply, lambda reply: len(reply.tags) == size)
        alive = [name for name in self._roster.names if name in masked]
        tags = {}
        for name, reply in self._enough(replies, "confirmed the lists").items():
            others = [other for other in alive if other != name]
            tags[name] = dict(zip(others, _cut(reply.tags, TAG_SIZE), strict=True))
        return tags

    def reveal(self, lost: Sequence[str], tags: Mapping[str, Mapping[str, bytes]]) -> dict[str, Revealed]:
        """Step 5: from each survivor that confirmed the lists its own secret, and the secrets that it shares with the lost."""
        requests, size = {}, shamir.SIZE * len(lost)
        senders = [name for name in self._roster.names if name in tags]
        for name in tags:
            others = [other for other in senders if other != name]
            own = b"".join(tags[other][name] for other in others)
            requests[name] = messages.RevealRequest(self._session, self._positions(others), own)
        replies = self._ask(
            requests,
            messages.RevealReply,
            lambda reply: (
                len(reply.pairs) == size and len(_elements(reply.own)) == 1 and bool(_elements(reply.own + reply.pairs))
            ),
        )
        revealed = {}
        for name, reply in self._enough(replies, "revealed shares").items():
            own_secret, *pairs = _elements(reply.own + reply.pairs)
            revealed[name] = Revealed(own_secret, dict(zip(lost, pairs, strict=True)))
        return revealed

    def shares(self, owners: Sequence[str], holders: Collection[str]) -> dict[str, dict[str, int]]:
        """Step 6, if some survivors did not reveal their own secrets: the others' shares of them."""
        asked = {name: [owner for owner in owners if owner != name] for name in holders}
        requests = {name: messages.SharesRequest(self._session, self._positions(own)) for name, own in asked.items() if own}
        if not requests:
            return {}
        replies = self._ask(requests, messages.SharesReply, lambda reply: bool(_elements(reply.shares)))
        found = {name: _elements(reply.shares) for name, reply in replies.items()}
        whole = {name: elements for name, elements in found.items() if len(elements) == len(asked[name])}
        if len(requests) >= self._roster.threshold:
            self._enough(whole, "revealed shares of others")
        return {name: dict(zip(asked[name], elements, strict=True)) for name, elements in whole.items()}

    def _agreeing(self, deals: dict[str, Deal]) -> dict[str, Deal]:
        """The deals, if each pair of clients agrees on a secret.

        Raises:
            ObjectedError: some do not.
        """
        if pairs := disagreeing(self._roster, deals):
            raise ObjectedError(_in_disagreement(pairs))
        return deals

    def _deal(self, data: bytes) -> Deal | None:
        try:
            return Deal.from_bytes(data, len(self._roster.names), self._roster.threshold)
        except SecureSumError:
            return None

    def _ask(self, requests: Mapping[str, Request], expected: type[S], usable: Callable[[S], bool]) -> dict[str, S]:
        """The usable replies of this sum.

        Raises:
            ObjectedError: some clients object to others.
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
            raise ObjectedError(_fewest_to_leave_out(objections))
        return {name: reply for name, reply in replies.items() if isinstance(reply, expected)}

    def _enough(self, replies: dict[str, R], what: str) -> dict[str, R]:
        if len(replies) < self._roster.threshold:
            raise too_few(self._step, what, replies, self._roster.threshold, self._link)
        return replies

    def _positions(self, names: Collection[str]) -> tuple[int, ...]:
        return tuple(sorted(self._roster.positions[name] - 1 for name in names))


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


def _in_disagreement(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Clients without whom all agree: again and again the one in most pairs. Of two that disagree only with each other, both.

    If one of the two could stay, a client could have all others left out one by one.
    """
    open_ones, left_out = set(pairs), list[str]()
    while open_ones:
        counts = Counter(name for pair in open_ones for name in pair)
        most = max(counts.values())
        worst = sorted(counts) if most == 1 else [min(name for name, count in counts.items() if count == most)]
        left_out += worst
        open_ones = {pair for pair in open_ones if not set(worst) & set(pair)}
    return left_out


def too_few(step: str, what: str, replies: Collection[object], needed: int, link: Link) -> TooFewClientsError:
    """The error that ends a sum without enough clients."""
    reasons = ", ".join(f"{name}: {code.value}" for name, code in link.failures.items())
    return TooFewClientsError(
        f"secure sum of {step}: {len(replies)} clients {what}, {needed} are needed by privacy.min_survivors and "
        f"privacy.dropout ({reasons}). Nothing was revealed, and earlier rounds are kept: resume when they are back"
    )


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _elements(data: bytes) -> list[int]:
    """Elements of the field; empty: the bytes are none."""
    try:
        return [shamir.from_bytes(part) for part in _cut(data, shamir.SIZE)]
    except SecureSumError:
        return []
