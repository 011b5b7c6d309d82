"""The layer of a client in secure sums: replies leave only as keys, sealed shares, masked numbers and signed lists."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64
from ifedicl.data import Role
from ifedicl.errors import IfediclError, MessageError, ObjectionError, SecureSumError
from ifedicl.federation import messages
from ifedicl.federation.client_keys import key_for
from ifedicl.federation.handler import Discloser, Disclosure
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.reply_sums import flat
from ifedicl.federation.secure.quantised import SUMS, layout_of
from ifedicl.ledger.usage import ReplyFacts
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.keys import LOCK_SIZE, Identity, lock, unlock
from ifedicl.secagg.party import Party
from ifedicl.secagg.roster import Advert, binding_of
from ifedicl.settings import PrivacySettings

_LONGEST_UPDATE = 100.0
"""Maximum Euclidean norm of a change of the coefficients; an honest change is far shorter."""

_log = logging.getLogger(__name__)

_IDENTITY = "secure sum identity"
_TRIES = 2
"""Sums that one reply may be in, if the first one ends without a total."""
_SESSION = re.compile(r"[0-9a-f]{32}")
_CURSOR_SIZE = 64  # all cursors have one length: it would reveal the number of examples
SEALED_CURSOR_SIZE = 2 * (_CURSOR_SIZE + LOCK_SIZE)
"""Characters of a cursor as it travels."""
_FROM_TRAINING = {
    "vectors",
    "update",
    "gradient",
    "statistics",
    "noisy_statistics",
}  # the other replies count held-out examples


class SumMember(Protocol):
    """What a secure sum needs of the client whose numbers it hides."""

    @property
    def name(self) -> str:
        """The client's name in the federation."""

    @property
    def dtype(self) -> str:
        """The dtype that its model computes in."""

    def count(self, role: Role) -> int:
        """The number of examples of the present task with this role."""

    def secret_for(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose; the same after a restart."""


class NoiseSource(Protocol):
    """One client's share of the noise of differential privacy."""

    def noise(self, kind: str, size: int) -> npt.NDArray[np.int64]:
        """``(size,)``: noise for the reply to a request of this kind, in steps of the fixed point."""


@dataclass
class _Summand:
    """What this client adds to a sum. It is kept for one more try, until its masked numbers have left.

    Attributes:
        asked: the bytes of the request and the sealed cursor that it answers.
        kind: of the request.
        numbers: to add.
        grid: their fixed-point format.
        layout: of the numbers.
        cursor: of a vectors reply, sealed; else empty.
        is_sent: whether its masked numbers have left. The server may have a total with them then, whatever the client sees.
        tries: sums that it was in.
    """

    asked: tuple[bytes, str]
    kind: str
    numbers: Array64
    grid: FixedPoint
    layout: messages.Layout
    cursor: str
    is_sent: bool = False
    tries: int = 0


@dataclass
class _Session:
    """The sum that this client takes part in now."""

    name: str
    party: Party
    summand: _Summand
    rules: PrivacySettings
    roster: tuple[str, ...] = ()
    dealt: tuple[str, ...] = ()


class SecureClient:
    """The layer that masks. It takes part in one sum at a time; an error ends the sum, and no step happens twice."""

    def __init__(
        self,
        inner: Discloser,
        client: SumMember,
        peers: Mapping[str, bytes],
        rules: PrivacySettings,
        noise: NoiseSource | None = None,
    ) -> None:
        """Take the layers and rules of one client.

        Args:
            inner: answers plain requests: the client behind its owner's policy.
            client: has the identity and the secret for the sums.
            peers: the identities of all clients of the sums, by name; they do not come from the coordinator.
            rules: the owner's rules; a job may have stricter ones.
            noise: this client's share of the noise; None: no noise.
        """
        self.name = client.name
        self._inner = inner
        self._client = client
        self._peers = peers
        self._rules = rules
        self._job_rules: PrivacySettings | None = None  # of the job that the client holds
        self._noise = noise
        self._cursor_key = client.secret_for("secure sum cursor")
        self._identity = identity_of(client)
        self._session: _Session | None = None
        self._kept: _Summand | None = None
        self._used: set[str] = set()  # sessions that have begun here
        self._facts = ReplyFacts()  # of the run that asked last

    def handle(self, request: Request, /) -> Disclosure:
        """Answer a step of a sum, or take a job or global vectors. Refuse any other plain request. Never raises."""
        if isinstance(request, messages.JobRequest):
            return self._take(request)
        if isinstance(request, messages.ContextRequest):
            return self._inner.handle(request)
        reply = self._reply(request)  # may change the run
        return Disclosure(reply, self._facts)

    def _reply(self, request: Request) -> Reply:
        try:
            match request:
                case messages.BeginRequest():
                    return self._begin(request)
                case messages.DealRequest():
                    return self._deal(request)
                case messages.MaskRequest():
                    return self._mask(request)
                case messages.AgreeRequest():
                    return self._agree(request)
                case messages.RevealRequest():
                    return self._reveal(request)
                case _:
                    return Failure(FailureCode.OTHER_MODE)
        except ObjectionError as error:
            return self._object(error)
        except (SecureSumError, MessageError, ValueError) as error:
            _log.error("client %s leaves the sum at a %s request: %s", self.name, request.kind, error)
            code = FailureCode.PROTOCOL
        except Exception as error:
            is_mistake = not isinstance(error, IfediclError)
            _log.error("client %s cannot answer a %s request: %s", self.name, request.kind, error, exc_info=is_mistake)
            code = FailureCode.INTERNAL
        self._session = None
        return Failure(code)

    def _answer(self, request: Request) -> Reply:
        disclosure = self._inner.handle(request)
        self._facts = ReplyFacts(run=disclosure.facts.run)
        return disclosure.reply

    def _take(self, request: messages.JobRequest) -> Disclosure:
        """Take the job, if its rules are as strict as the owner's."""
        asked = request.manifest.method.privacy
        if asked is None or not _is_as_strict(asked, self._rules):
            _log.error("client %s refuses a job with weaker rules of sums than its owner's: %s", self.name, asked)
            return Disclosure(Failure(FailureCode.OTHER_MODE))
        if asked.noise is not None and self._noise is None:
            _log.error("client %s refuses a job that promises noise: it has no noise to add", self.name)
            return Disclosure(Failure(FailureCode.OTHER_MODE))
        disclosure = self._inner.handle(request)
        if isinstance(disclosure.reply, messages.JobReply):
            self._session, self._kept, self._job_rules = None, None, asked
        return disclosure

    def _begin(self, request: messages.BeginRequest) -> Reply:
        self._session = None
        if _SESSION.fullmatch(request.session) is None:
            raise SecureSumError("session: received another name than 32 hexadecimal digits")
        if request.session in self._used:
            raise SecureSumError("session: it has begun before; the message is replayed")
        rules = self._job_rules
        if rules is None:
            return Failure(FailureCode.NO_CONTEXT)
        kept = self._kept
        if kept is None or kept.asked != (request.request, request.cursor) or kept.is_sent or kept.tries >= _TRIES:
            self._kept = None
            found = self._summand(request, rules)
            if isinstance(found, Failure):
                return found
            self._kept = kept = found
        kept.tries += 1
        self._used.add(request.session)  # no more than the owner's limits let through, times the tries
        binding = binding_of(request.session, rules.model_dump_json(), request.request)
        party = Party(self.name, self._identity, self._peers, binding)
        self._session = _Session(request.session, party, kept, rules)
        advert = party.advertise()
        keys = advert.mask_key, advert.channel_key, advert.signature
        return messages.BeginReply(request.session, *keys, kept.layout, self._client.dtype, kept.cursor)

    def _summand(self, request: messages.BeginRequest, rules: PrivacySettings) -> _Summand | Failure:
        """Compute what this client adds, or the code in its place."""
        asked = messages.decode_request(request.request)
        summed = SUMS.get(type(asked))
        if summed is None:
            raise SecureSumError(f"request: {asked.kind} replies cannot be summed")
        if isinstance(asked, messages.VectorsRequest):
            asked = replace(asked, cursor=self._unlocked(request.cursor))
        reply = self._answer(asked)
        if isinstance(reply, Failure):
            return reply
        if code := self._code_against(asked, reply, rules):
            return Failure(code)
        # What the coordinator would have had in open mode.
        parts = summed.rule.apart(messages.decode_reply(messages.encode(reply)))
        cursor = self._locked(reply.cursor) if isinstance(reply, messages.VectorsReply) else ""
        asked_bytes = request.request, request.cursor
        return _Summand(asked_bytes, asked.kind, flat(parts), summed.grid, layout_of(parts), cursor)

    def _object(self, error: ObjectionError) -> Reply:
        """Name the clients whose keys or shares are wrong; the sum ends here, and may be tried again without them."""
        assert self._session is not None
        _log.error("client %s leaves a sum: %s", self.name, error)
        session, self._session = self._session, None
        return messages.ObjectReply(session.name, tuple(session.roster.index(name) for name in error.names))

    def _deal(self, request: messages.DealRequest) -> Reply:
        session = self._current(request.session)
        threshold = session.rules.threshold(len(request.names))
        if len(request.names) < threshold:
            raise SecureSumError(f"names: {len(request.names)} clients are too few; the threshold is {threshold}")
        adverts = {name: Advert(*keys) for name, keys in zip(request.names, request.keys, strict=True)}
        session.roster = request.names
        deal = session.party.deal(adverts, threshold)
        return messages.DealReply(session.name, tuple(deal.sealed.values()), deal.commitment)

    def _mask(self, request: messages.MaskRequest) -> Reply:
        session = self._current(request.session)
        senders, summand = _names_at(session.roster, request.senders), session.summand
        integers = summand.grid.integers(summand.numbers)
        if self._noise is not None:
            integers = integers + self._noise.noise(summand.kind, len(integers))
        summand.grid.check(integers, len(session.roster))
        masked = session.party.mask(integers, dict(zip(senders, request.sealed, strict=True)))
        summand.is_sent = True
        present = {*senders, self.name}
        session.dealt = tuple(name for name in session.roster if name in present)
        return messages.MaskReply(session.name, summand.grid.packed(masked))

    def _agree(self, request: messages.AgreeRequest) -> Reply:
        session = self._current(request.session)
        return messages.AgreeReply(session.name, session.party.agree(_names_at(session.roster, request.survivors)))

    def _reveal(self, request: messages.RevealRequest) -> Reply:
        session = self._current(request.session)
        names = _names_at(session.roster, request.signers)
        shares = session.party.reveal(dict(zip(names, request.signatures, strict=True)))
        self._session = self._kept = None  # the sum is out: another one of the same request costs another reply
        return messages.RevealReply(session.name, tuple(shares[name] for name in session.dealt))

    def _current(self, name: str) -> _Session:
        if self._session is None or self._session.name != name:
            raise SecureSumError("session: it is not under way here; the message is replayed or late")
        return self._session

    def _code_against(self, asked: Request, reply: Reply, rules: PrivacySettings) -> FailureCode | None:
        """The code in place of a reply that must not enter a sum; None: it may."""
        minimum = max(rules.min_examples, self._rules.min_examples)
        if isinstance(asked, messages.VectorsRequest) and isinstance(reply, messages.VectorsReply):
            if asked.cursor and reply.replaces:
                return FailureCode.CHANGED
            if reply.vectors.examples < minimum:
                return FailureCode.TOO_FEW
        if isinstance(reply, messages.GradientReply) and rules.noise is None and reply.sums.examples < minimum:
            return FailureCode.TOO_FEW  # an empty hand would count as one of the crowd
        if asked.kind in _FROM_TRAINING and self._client.count(Role.TRAIN) < minimum:
            return FailureCode.TOO_FEW
        if isinstance(asked, messages.UpdateRequest) and isinstance(reply, messages.UpdateReply):
            before, after = asked.coefficients.arrays, reply.coefficients.arrays
            change = np.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before))
            if change > _LONGEST_UPDATE:
                _log.error("client %s: the update has norm %g; allowed: up to %g", self.name, change, _LONGEST_UPDATE)
                return FailureCode.PROTOCOL
        return None

    def _locked(self, cursor: str) -> str:
        """The cursor, encrypted: only this client can read its number of examples."""
        return lock(self._cursor_key, cursor.ljust(_CURSOR_SIZE).encode()).hex()

    def _unlocked(self, sealed: str) -> str:
        return unlock(self._cursor_key, bytes.fromhex(sealed)).decode().rstrip() if sealed else ""


def identity_of(client: SumMember) -> Identity:
    """The identity of a client in secure sums; its peers pin the public half."""
    return Identity(client.secret_for(_IDENTITY))


def identity_from(secret: bytes) -> Identity:
    """The identity of a client with this secret."""
    return Identity(key_for(secret, _IDENTITY))


def _is_as_strict(asked: PrivacySettings, own: PrivacySettings) -> bool:
    if not (asked.is_secure and asked.min_survivors >= own.min_survivors and asked.dropout <= own.dropout):
        return False
    if asked.colluders < own.colluders:
        return False
    if own.noise is None:
        return True
    noise = asked.noise
    return noise is not None and noise.epsilon <= own.noise.epsilon and noise.delta <= own.noise.delta


def _names_at(roster: tuple[str, ...], positions: tuple[int, ...]) -> list[str]:
    if max(positions, default=0) >= len(roster):
        raise SecureSumError(f"positions: {max(positions)} is not on a roster of {len(roster)} clients")
    return [roster[position] for position in positions]
