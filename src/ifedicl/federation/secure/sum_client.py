"""The layer of a client that takes part in secure sums only: its replies leave as keys, sealed shares and masked numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.core.vectors import Array64
from ifedicl.data import Role
from ifedicl.errors import MessageError, SecureSumError
from ifedicl.federation import messages
from ifedicl.federation.client import key_for
from ifedicl.federation.handler import Discloser, Disclosure
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.secure.quantised import SUMS, flat, layout_of
from ifedicl.secagg.fixed_point import FixedPoint
from ifedicl.secagg.keys import LOCK_SIZE, Identity, lock, unlock
from ifedicl.secagg.party import Party
from ifedicl.secagg.roster import Advert, binding_of
from ifedicl.settings import PrivacySettings

_LONGEST_UPDATE = 100.0
"""Euclidean norm of the longest change of the coefficients that leaves; an honest one is far shorter."""

_log = logging.getLogger(__name__)

_IDENTITY = "secure sum identity"
_CURSOR_SIZE = 64  # all cursors look alike: a longer one would tell how many examples there are
SEALED_CURSOR_SIZE = 2 * (_CURSOR_SIZE + LOCK_SIZE)
"""Characters of a cursor as it travels."""
_FROM_TRAINING = {"vectors", "update", "gradient", "statistics"}  # the others are counts over held-out examples


class SumMember(Protocol):
    """What a secure sum needs of the client whose numbers it hides."""

    @property
    def name(self) -> str:
        """How the others know it."""
        ...

    @property
    def dtype(self) -> str:
        """What its model computes in."""
        ...

    def count(self, role: Role) -> int:
        """How many examples of the present task have a role."""
        ...

    def secret_for(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose; the same after a restart."""
        ...


class NoiseSource(Protocol):
    """One client's share of the noise of differential privacy."""

    def noise(self, kind: str, size: int) -> npt.NDArray[np.int64]:
        """``(size,)``: what is added to the numbers of an answer, in steps of the fixed point.

        Args:
            kind: of the request.
            size: how many numbers the answer has.
        """
        ...


@dataclass
class _Session:
    """A sum that this client takes part in."""

    name: str
    party: Party
    kind: str
    numbers: Array64
    grid: FixedPoint
    rules: PrivacySettings
    roster: tuple[str, ...] = ()
    dealt: tuple[str, ...] = ()


class SecureClient:
    """The layer that masks. It knows one sum at a time; what goes wrong ends it, and no step is taken twice."""

    def __init__(
        self,
        inner: Discloser,
        client: SumMember,
        peers: Mapping[str, bytes],
        rules: PrivacySettings,
        noise: NoiseSource | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            inner: answers plain requests: the client behind its owner's policy.
            client: whose identity and secret the sums use.
            peers: the identities of all clients that it sums with, by name, from a source that is not the coordinator.
            rules: the owner's own; a coordinator may ask for stricter ones.
            noise: this client's share of the noise; None: it adds none.
        """
        self._inner = inner
        self._client = client
        self._peers = peers
        self._rules = rules
        self._noise = noise
        self._cursor_key = client.secret_for("secure sum cursor")
        self._identity = identity_of(client)
        self._session: _Session | None = None
        self._used: set[str] = set()  # sessions that were begun here
        self._run = ""  # digest of the run that asked last

    @property
    def name(self) -> str:
        """The client's."""
        return self._client.name

    def handle(self, request: Request, /) -> Disclosure:
        """Answer one request. Plain ones are refused, but for the global vectors, whose answer says nothing. Never raises."""
        reply = self._reply(request)  # which may name another run than the request before
        return Disclosure(reply, self._run)

    def _reply(self, request: Request) -> Reply:
        try:
            match request:
                case messages.ContextRequest():
                    return self._answer(request)
                case messages.BeginRequest():
                    return self._begin(request)
                case messages.DealRequest():
                    return self._deal(request)
                case messages.MaskRequest():
                    return self._mask(request)
                case messages.RevealRequest():
                    return self._reveal(request)
                case _:
                    return Failure(FailureCode.OTHER_MODE)
        except (SecureSumError, MessageError, ValueError) as error:
            _log.error("client %s leaves the sum at a %s request: %s", self.name, request.kind, error)
            code = FailureCode.PROTOCOL
        except Exception:
            _log.exception("client %s could not answer a %s request", self.name, request.kind)
            code = FailureCode.INTERNAL
        self._session = None
        return Failure(code)

    def _answer(self, request: Request) -> Reply:
        disclosure = self._inner.handle(request)
        self._run = disclosure.run
        return disclosure.reply

    def _begin(self, request: messages.BeginRequest) -> Reply:
        self._session = None
        if request.session in self._used:
            raise SecureSumError(f"session {request.session} was begun before: replayed")
        self._used.add(request.session)
        if not _as_strict(request.rules, self._rules):
            _log.error("client %s refuses a sum under weaker rules than its own: %s", self.name, request.rules)
            return Failure(FailureCode.OTHER_MODE)
        if request.rules.noise is not None and self._noise is None:
            _log.error("client %s has no noise to add, which this run promises: it stays out", self.name)
            return Failure(FailureCode.OTHER_MODE)
        asked = messages.decode_request(request.request)
        summed = SUMS.get(type(asked))
        if summed is None:
            raise SecureSumError(f"{asked.kind} requests are not summed")
        if isinstance(asked, messages.VectorsRequest):
            asked = replace(asked, cursor=self._opened(request.cursor))
        reply = self._answer(asked)
        if isinstance(reply, Failure):
            return reply
        if code := self._kept_back(asked, reply, request.rules):
            return Failure(code)
        parts = summed.rule.apart(
            messages.decode_reply(messages.encode(reply))
        )  # what the coordinator would have had in open mode
        binding = binding_of(request.session, request.rules.model_dump_json(), request.request)
        party = Party(self.name, self._identity, self._peers, binding)
        grid = summed.grid
        self._session = _Session(request.session, party, asked.kind, flat(parts), grid, request.rules)
        advert = party.advertise()
        cursor = self._sealed(reply.cursor) if isinstance(reply, messages.VectorsReply) else ""
        keys = advert.mask_key, advert.channel_key, advert.signature
        return messages.BeginReply(request.session, *keys, layout_of(parts), self._client.dtype, cursor)

    def _deal(self, request: messages.DealRequest) -> Reply:
        session = self._current(request.session)
        threshold = session.rules.threshold(len(request.names))
        if len(request.names) < threshold:
            raise SecureSumError(f"{len(request.names)} clients are too few to hide among; {threshold} are needed")
        adverts = {name: Advert(*keys) for name, keys in zip(request.names, request.keys, strict=True)}
        deal = session.party.deal(adverts, threshold)
        session.roster = request.names
        return messages.DealReply(session.name, tuple(deal.sealed.values()), deal.commitment)

    def _mask(self, request: messages.MaskRequest) -> Reply:
        session = self._current(request.session)
        senders = _named(session.roster, request.senders)
        whole = session.grid.integers(session.numbers)
        if self._noise is not None:
            whole = whole + self._noise.noise(session.kind, len(whole))
        session.grid.check(whole, len(session.roster))
        masked = session.party.mask(whole, dict(zip(senders, request.sealed, strict=True)))
        present = {*senders, self.name}
        session.dealt = tuple(name for name in session.roster if name in present)
        return messages.MaskReply(session.name, session.grid.packed(masked))

    def _reveal(self, request: messages.RevealRequest) -> Reply:
        session = self._current(request.session)
        shares = session.party.reveal(_named(session.roster, request.survivors))
        self._session = None
        return messages.RevealReply(session.name, tuple(shares[name] for name in session.dealt))

    def _current(self, name: str) -> _Session:
        if self._session is None or self._session.name != name:
            raise SecureSumError(f"a message of session {name}, which is not under way here: replayed, or late")
        return self._session

    def _kept_back(self, asked: Request, reply: Reply, rules: PrivacySettings) -> FailureCode | None:
        """Why a reply does not leave, not even in a sum."""
        fewest = max(rules.min_examples, self._rules.min_examples)
        if isinstance(asked, messages.VectorsRequest) and isinstance(reply, messages.VectorsReply):
            if asked.cursor and reply.replaces:
                return FailureCode.CHANGED
            if reply.vectors.examples < fewest:
                return FailureCode.TOO_FEW
        if asked.kind in _FROM_TRAINING and self._client.count(Role.TRAIN) < fewest:
            return FailureCode.TOO_FEW
        if isinstance(asked, messages.UpdateRequest) and isinstance(reply, messages.UpdateReply):
            before, after = asked.coefficients.arrays, reply.coefficients.arrays
            change = np.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before))
            if change > _LONGEST_UPDATE:
                _log.error(
                    "client %s keeps an update back: it is %g long, at most %g may leave", self.name, change, _LONGEST_UPDATE
                )
                return FailureCode.PROTOCOL
        return None

    def _sealed(self, cursor: str) -> str:
        """Only this client can read how many examples it stands for."""
        return lock(self._cursor_key, cursor.ljust(_CURSOR_SIZE).encode()).hex()

    def _opened(self, sealed: str) -> str:
        return unlock(self._cursor_key, bytes.fromhex(sealed)).decode().rstrip() if sealed else ""


def identity_of(client: SumMember) -> Identity:
    """Who a client is to the others; its public half is what they pin."""
    return Identity(client.secret_for(_IDENTITY))


def identity_from(secret: bytes) -> Identity:
    """The same, of a client's secret alone."""
    return Identity(key_for(secret, _IDENTITY))


def _as_strict(asked: PrivacySettings, own: PrivacySettings) -> bool:
    if not (asked.is_secure and asked.min_survivors >= own.min_survivors and asked.dropout <= own.dropout):
        return False
    if own.noise is None:
        return True
    noise = asked.noise
    return noise is not None and (
        noise.epsilon <= own.noise.epsilon and noise.delta <= own.noise.delta and noise.colluders >= own.noise.colluders
    )


def _named(roster: tuple[str, ...], positions: tuple[int, ...]) -> list[str]:
    """Clients at these positions.

    Raises:
        SecureSumError: the roster has no such position.
    """
    if max(positions, default=0) >= len(roster):
        raise SecureSumError("a client that is not on the roster")
    return [roster[position] for position in positions]
