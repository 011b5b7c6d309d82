"""The layer of a client in secure sums: replies leave only as masked numbers, with what takes the masks off their sum."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ifedicl.data import Role
from ifedicl.errors import IfediclError, MessageError, ObjectionError, SecureSumError
from ifedicl.federation import messages
from ifedicl.federation.client_keys import key_for
from ifedicl.federation.handler import Discloser, Disclosure
from ifedicl.federation.messages import Failure, FailureCode, Reply, Request
from ifedicl.federation.reply_sums import flat
from ifedicl.federation.secure.forms import short_form
from ifedicl.federation.secure.quantised import SUMS, layout_of
from ifedicl.federation.secure.sum_memory import HeldJob, Session, Summand
from ifedicl.ledger.usage import ReplyFacts
from ifedicl.secagg import shamir
from ifedicl.secagg.channels import Channels
from ifedicl.secagg.keys import LOCK_SIZE, Identity, lock, unlock
from ifedicl.secagg.party import Party
from ifedicl.secagg.roster import TAG_SIZE, binding_of
from ifedicl.settings import PrivacySettings

_LONGEST_UPDATE = 100.0
"""Maximum Euclidean norm of a change of the coefficients; an honest change is far shorter."""

_log = logging.getLogger(__name__)

_IDENTITY = "secure sum identity"
_TRIES = 2
"""Sums that one reply may be in, if the first one ends without a total."""
SESSION_SIZE = 16
"""Bytes of the name of a sum."""
_CURSOR_SIZE = 64  # all cursors have one length: it would reveal the number of examples
SEALED_CURSOR_SIZE = 2 * (_CURSOR_SIZE + LOCK_SIZE)
"""Characters of a cursor as it travels."""


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
        self._job: HeldJob | None = None
        self._noise = noise
        self._cursor_key = client.secret_for("secure sum cursor")
        self._identity = identity_of(client)
        self._session: Session | None = None
        self._kept: Summand | None = None
        self._used: set[bytes] = set()  # sessions that have begun here
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
                case messages.SharesRequest():
                    return self._shares(request)
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
            self._session = self._kept = None
            channels = Channels(self.name, self._identity, self._peers, request.manifest.digest)
            calibration = request.manifest.method.calibration if asked.noise is None else None
            self._job = HeldJob(asked, calibration, channels)
        return disclosure

    def _begin(self, request: messages.BeginRequest) -> Reply:
        self._session = None
        if len(request.session) != SESSION_SIZE:
            raise SecureSumError(f"session: received a name of {len(request.session)} bytes, not {SESSION_SIZE}")
        if request.session in self._used:
            raise SecureSumError("session: it has begun before; the message is replayed")
        job = self._job
        if job is None:
            return Failure(FailureCode.NO_CONTEXT)
        kept, asked = self._kept, (request.request, request.cursor)
        if kept is None or kept.asked != asked or kept.is_sent or kept.tries >= _TRIES:
            self._kept = None
            found = self._summand(request, job)
            if isinstance(found, Failure):
                return found
            self._kept = kept = found
        kept.tries += 1
        self._used.add(request.session)  # no more than the owner's limits let through, times the tries
        party = Party(job.channels, binding_of(request.session, job.rules.model_dump_json(), request.request))
        self._session = Session(request.session, party, kept, job.rules)
        own = job.channels.introduction
        channel = own.key + own.signature if request.introduce else b""
        deal = self._dealt(job.keys(request.roster)) if request.roster else b""
        return messages.BeginReply(request.session, kept.layout, self._client.dtype, kept.cursor, channel, deal)

    def _summand(self, request: messages.BeginRequest, job: HeldJob) -> Summand | Failure:
        """Compute what this client adds, or the code in its place."""
        asked = messages.decode_request(request.request)
        summed = SUMS.get(type(asked))
        if summed is None:
            raise SecureSumError(f"request: {asked.kind} replies cannot be summed")
        if isinstance(asked, messages.VectorsRequest):
            asked = replace(asked, cursor=self._unlocked(request.cursor))
        short = short_form(job.calibration, asked)
        if short is not None and short.is_light(self._client.count(Role.TRAIN)):
            return Failure(FailureCode.LIGHT)
        reply = self._answer(asked)
        if isinstance(reply, Failure):
            return reply
        if code := self._code_against(asked, reply, job.rules):
            return Failure(code)
        if short is not None:
            parts = short.apart(reply)
        elif isinstance(reply, messages.StatisticsReply | messages.ProductsReply):
            parts = summed.rule.apart(reply)  # open mode rounds it more than a sum needs
        else:
            parts = summed.rule.apart(messages.decode_reply(messages.encode(reply)))  # what open mode would have sent
        form = (short or summed).form(layout_of(parts))
        cursor = self._locked(reply.cursor) if isinstance(reply, messages.VectorsReply) else ""
        asked_bytes = request.request, request.cursor
        return Summand(asked_bytes, asked.kind, flat(parts), form, layout_of(parts), cursor)

    def _object(self, error: ObjectionError) -> Reply:
        """Name the clients whose keys are wrong; the sum ends here, and may be tried again without them."""
        assert self._session is not None
        _log.error("client %s leaves a sum: %s", self.name, error)
        session, self._session = self._session, None
        return messages.ObjectReply(session.name, tuple(session.roster.index(name) for name in error.names))

    def _deal(self, request: messages.DealRequest) -> Reply:
        session, job = self._current(request.session), self._job
        assert job is not None
        job.meet(request.introductions)
        return messages.DealReply(session.name, self._dealt(job.keys(request.roster)))

    def _dealt(self, keys: Mapping[str, bytes]) -> bytes:
        """What this client publishes for a roster."""
        session = self._session
        assert session is not None
        threshold = session.rules.threshold(len(keys))
        if len(keys) < threshold:
            raise SecureSumError(f"roster: {len(keys)} clients are too few; the threshold is {threshold}")
        session.roster = tuple(keys)
        return session.party.deal(keys, threshold).to_bytes()

    def _mask(self, request: messages.MaskRequest) -> Reply:
        session = self._current(request.session)
        dealt, summand = _names_at(session.roster, request.dealt), session.summand
        form, clients = summand.form, len(session.roster)
        if session.rules.noise is None:
            integers = form.integers(summand.numbers)
            form.check(integers, clients)
        else:
            # A refusal would be an answer that this client's own share of the noise alone hides. So nothing is refused.
            integers = form.bounded(summand.numbers, clients)
        if self._noise is not None:
            integers = integers + self._noise.noise(summand.kind, len(integers))
        masked = session.party.mask(integers, dealt)
        summand.is_sent = True
        return messages.MaskReply(session.name, summand.form.packed(masked))

    def _agree(self, request: messages.AgreeRequest) -> Reply:
        session = self._current(request.session)
        tags = session.party.agree(_names_at(session.roster, request.survivors))
        return messages.AgreeReply(session.name, b"".join(tags.values()))

    def _reveal(self, request: messages.RevealRequest) -> Reply:
        session = self._current(request.session)
        names, tags = _names_at(session.roster, request.senders), request.tags
        if len(tags) != TAG_SIZE * len(names):
            raise SecureSumError(f"tags: {len(tags)} bytes of {len(names)} clients")
        each = [tags[start : start + TAG_SIZE] for start in range(0, len(tags), TAG_SIZE)]
        revealed = session.party.reveal(dict(zip(names, each, strict=True)))
        self._kept = None  # the sum is out: another one of the same request costs another reply
        pairs = b"".join(map(shamir.to_bytes, revealed.pairs.values()))
        return messages.RevealReply(session.name, shamir.to_bytes(revealed.own), pairs)

    def _shares(self, request: messages.SharesRequest) -> Reply:
        session = self._current(request.session)
        shares = session.party.shares(_names_at(session.roster, request.owners))
        self._session = None
        return messages.SharesReply(session.name, b"".join(map(shamir.to_bytes, shares.values())))

    def _current(self, name: bytes) -> Session:
        if self._session is None or self._session.name != name:
            raise SecureSumError("session: it is not under way here; the message is replayed or late")
        return self._session

    def _code_against(self, asked: Request, reply: Reply, rules: PrivacySettings) -> FailureCode | None:
        """The code in place of a reply that must not enter a sum; None: it may.

        With noise any reply may: noise hides each example, and a code would tell of them.
        """
        if rules.noise is not None:
            return None
        minimum = max(rules.min_examples, self._rules.min_examples)
        if isinstance(asked, messages.VectorsRequest) and isinstance(reply, messages.VectorsReply):
            if asked.cursor and reply.replaces:
                return FailureCode.CHANGED
            if reply.vectors.examples < minimum:
                return FailureCode.TOO_FEW
        if isinstance(reply, messages.GradientReply) and reply.sums.examples < minimum:
            return FailureCode.TOO_FEW  # an empty hand would count as one of the crowd
        if asked.role is Role.TRAIN and self._client.count(Role.TRAIN) < minimum:
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
