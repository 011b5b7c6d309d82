"""A secure sum that is one client's numbers: because the others were asked something else, or had nothing to add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.calibrate import gradient_sum
from ifedicl.core.coefficients import Coefficients
from ifedicl.data import Role
from ifedicl.errors import TooFewClientsError
from ifedicl.federation.engine import Delivery
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import (
    BeginRequest,
    ContextRequest,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    JobReply,
    JobRequest,
    Reply,
    Request,
    UpdateReply,
    UpdateRequest,
    VectorsRequest,
    encode,
)
from ifedicl.federation.secure import sum_client
from ifedicl.federation.secure.sum_client import SecureClient, identity_from
from ifedicl.federation.secure.sum_engine import SecureEngine
from ifedicl.ledger.entries import Head
from ifedicl.secagg.channels import Channels
from ifedicl.settings import TOGETHER, Method, PrivacySettings
from tests.support import tiny
from tests.support.attacker import Overheard, client_behind, cosine, default_rules, flat, job, ones, owner, place_of
from tests.support.jobs import context_of

NAMES = ("north", "south", "east")
RULES = PrivacySettings(mode="secure", min_examples=8)
ASKED = {"weighting": "examples", "privacy": RULES.model_dump()}


def secure_method(**sections: Any) -> Method:
    return tiny.method(**{"calibration": {"batch_size": 4, "local_steps": 4}, **ASKED, **sections})


class LyingEngine:
    """An engine that asks each client what ``lie`` makes of the request, over the owners' ends."""

    def __init__(self, owners: Mapping[str, Overheard], lie: Mapping[tuple[str, type[Request]], Request]) -> None:
        self.owners, self.lie = owners, lie
        self.codes: dict[str, FailureCode] = {}

    def clients(self) -> tuple[str, ...]:
        return tuple(self.owners)

    def exchange(self, requests: Mapping[str, Request], deadline: float, heads: Mapping[str, Head]) -> Iterator[Delivery]:
        for name, request in requests.items():
            reply = self.owners[name].handle(self.lie.get((name, type(request)), request))
            if isinstance(reply, Failure):
                self.codes[name] = reply.code
            yield Delivery(name, reply, 1, 1, 0.1)


def owners(backbone: Backbone, folder: Path, *, over_flare: bool = False, counts: Mapping[str, int] = {}) -> Any:
    pins = {name: identity_from(name.encode().ljust(32)).public for name in NAMES}
    return {
        name: owner(
            backbone,
            folder,
            name=name,
            examples=tiny.examples(counts.get(name, 40), seed=position),
            policy=default_rules(allow={"gradient_sums": True}),
            sums=RULES,
            peers=pins,
            over_flare=over_flare,
        )
        for position, name in enumerate(NAMES)
    }


def summed(engine: LyingEngine, request: Request) -> Reply:
    (delivery,) = SecureEngine(engine, RULES).exchange({TOGETHER: request}, 60.0, {})
    return delivery.reply


def begun(every: Mapping[str, Overheard], lie: Mapping[tuple[str, type[Request]], Request], manifest: Manifest) -> LyingEngine:
    """An engine over owners who were sent the job and its global vectors, or what ``lie`` makes of them."""
    engine = LyingEngine(every, lie)
    for request in (JobRequest(manifest), context_of(manifest, ones(manifest))):
        summed(engine, request)
    return engine


def own_update(victim: Overheard, manifest: Manifest) -> UpdateReply:
    """The victim's own numbers, which nobody else may see."""
    client = client_behind(victim)
    reply = client.handle(UpdateRequest(place_of(manifest), 0, 0, 2, manifest.identity))
    assert isinstance(reply, UpdateReply)
    return reply


@pytest.mark.parametrize("over_flare", [False, True])
def test_clients_that_were_told_another_method_enter_no_sum_with_the_others(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over_flare: bool
) -> None:
    real = job(backbone, secure_method())
    quiet = job(backbone, secure_method(calibration={"batch_size": 4, "local_steps": 4, "learning_rate": 1e-6}))
    lie: dict[tuple[str, type[Request]], Request] = {}
    for name in NAMES[1:]:
        lie[name, JobRequest] = JobRequest(quiet)
        lie[name, ContextRequest] = context_of(quiet, ones(quiet))

    update = UpdateRequest(place_of(real), 0, 0, 2, real.identity)
    # With the defence: the others do not know these global vectors, because the name is of the job that they hold.
    engine = begun(owners(backbone, tmp_path, over_flare=over_flare), lie, real)
    assert summed(engine, update) == Failure(FailureCode.NO_CONTEXT)
    assert engine.codes == dict.fromkeys(NAMES[1:], FailureCode.NO_CONTEXT)
    # Without it: a name that is only a string, and channel keys that are signed for any job.
    monkeypatch.setattr("ifedicl.federation.messages.requests.context_id", lambda _job, _context: place_of(real))
    monkeypatch.setattr(sum_client, "Channels", lambda name, identity, peers, _job: Channels(name, identity, peers, "any"))
    every = owners(backbone, tmp_path / "undefended", over_flare=over_flare)
    reply = summed(begun(every, lie, real), update)
    assert isinstance(reply, UpdateReply)
    victim = own_update(every["north"], real)
    share = victim.examples / reply.examples
    found = (flat(reply.coefficients) - flat(real.identity)) / share
    wanted = flat(victim.coefficients) - flat(real.identity)
    assert cosine(found, wanted) > 0.999
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_clients_that_got_other_global_vectors_enter_no_sum_with_the_others(backbone: Backbone, tmp_path: Path) -> None:
    manifest = job(backbone, secure_method())
    other = ones(manifest)
    other.vectors[:] = 0.0
    lie: dict[tuple[str, type[Request]], Request] = {("south", ContextRequest): context_of(manifest, other)}
    engine = begun(owners(backbone, tmp_path), lie, manifest)
    asked = UpdateRequest(place_of(manifest), 0, 0, 2, manifest.identity)
    assert summed(engine, asked) == Failure(FailureCode.NO_CONTEXT)
    assert engine.codes == {"south": FailureCode.NO_CONTEXT}


def test_clients_that_hold_jobs_with_other_rules_cannot_sign_one_roster(backbone: Backbone, tmp_path: Path) -> None:
    """Two jobs instead of one: the request's bytes are the same, and the rules differ."""
    real = job(backbone, secure_method())
    strict = job(backbone, secure_method(privacy={**RULES.model_dump(), "dropout": 0.0}))
    engine = begun(owners(backbone, tmp_path), {("south", JobRequest): JobRequest(strict)}, real)
    assert engine.codes == {"south": FailureCode.NO_CONTEXT}  # the vectors of a job that it does not hold


@pytest.mark.parametrize("session", [b"", b"s", b"a" * 10_000, bytes(15), bytes(32)], ids=len)
def test_a_name_of_a_sum_that_is_not_one_is_refused_and_not_kept(backbone: Backbone, tmp_path: Path, session: bytes) -> None:
    victim = owners(backbone, tmp_path)["north"]
    assert victim.handle(JobRequest(job(backbone, secure_method()))) == JobReply()
    assert victim.handle(BeginRequest(session, b"")) == Failure(FailureCode.PROTOCOL)
    good = BeginRequest(bytes(16), encode(VectorsRequest("0" * 64, "")))
    assert isinstance(victim.handle(good), Failure)
    layer = victim.endpoint.outermost._inner
    assert not layer._used  # neither names of nothing nor sums that did not begin


def test_the_same_request_over_other_clients_counts_again(backbone: Backbone, tmp_path: Path) -> None:
    """Two totals can be subtracted, so each costs an update; the job's limit ends it."""
    manifest = job(backbone, secure_method())
    every = owners(backbone, tmp_path)
    engine = begun(every, {}, manifest)
    request = UpdateRequest(place_of(manifest), 0, 0, 2, manifest.identity)
    for _ in range(manifest.limits.updates):
        assert isinstance(summed(engine, request), UpdateReply)
    assert summed(engine, request) == Failure(FailureCode.SPENT)


def test_a_job_with_weaker_rules_than_the_owners_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    weaker = ({"dropout": 0.45}, {"colluders": 0}, {"min_survivors": 2, "colluders": 0})
    weak = [job(backbone, secure_method(privacy={**RULES.model_dump(), **change})) for change in weaker]
    plain = job(backbone, tiny.method(weighting="examples", calibration={"batch_size": 4, "local_steps": 4}))
    for victim in owners(backbone, tmp_path).values():
        for manifest in (*weak, plain):
            assert victim.handle(JobRequest(manifest)) == Failure(FailureCode.OTHER_MODE)


def test_an_open_owner_answers_no_job_that_promises_sums(backbone: Backbone, tmp_path: Path) -> None:
    """The owner would approve sums, and each reply would leave as it is."""
    victim = owner(backbone, tmp_path)
    assert victim.handle(JobRequest(job(backbone, secure_method()))) == Failure(FailureCode.OTHER_MODE)


def test_empty_hands_are_no_members_of_a_gradient_sum(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = secure_method(
        server={"update": "gradient", "draw": 0.4}, calibration={}, holdout={"selection": 0.25}, rounds={"rounds": 3}
    )
    manifest = job(backbone, method)
    request = GradientRequest(place_of(manifest), 0, manifest.identity)
    counts = {"north": 120, "south": 14, "east": 14}

    engine = begun(owners(backbone, tmp_path, counts=counts), {}, manifest)
    with pytest.raises(TooFewClientsError, match="too_few"):
        summed(engine, request)
    assert engine.codes == {"south": FailureCode.TOO_FEW, "east": FailureCode.TOO_FEW}
    # Without the defence: the others have drawn next to nothing, and the sum is nearly one client's.
    monkeypatch.setattr(SecureClient, "_code_against", lambda *_: None)
    monkeypatch.setattr("ifedicl.owner.guard.check_behind", lambda *_: None)
    every = owners(backbone, tmp_path / "undefended", counts=counts)
    engine = begun(every, {}, manifest)
    monkeypatch.setattr("ifedicl.federation.client.drawn", _few_of(("north",), every))
    reply = summed(engine, request)
    assert isinstance(reply, GradientReply)
    own = client_behind(every["north"])._in_job
    rows = range(len(own.keys(Role.TRAIN)))
    alone = gradient_sum(own.scorer, own.part(Role.TRAIN), ones(manifest), manifest.identity, method, list(rows))
    assert cosine(flat(Coefficients.of(reply.sums.arrays)), flat(Coefficients.of(alone.arrays))) > 0.9999


def _few_of(full: tuple[str, ...], every: Mapping[str, Overheard]) -> Any:
    """A draw of all examples of some clients, and of none of the others."""
    all_keys = {client_behind(every[name])._in_job.keys(Role.TRAIN) for name in full}
    return lambda keys, _round, _method: list(range(len(keys))) if keys in all_keys else []
