"""A client under differential privacy: what it sends is clipped, noised in sum, accounted for, and nothing else leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.calibrate import example_gradients
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients
from ifedicl.data import Role
from ifedicl.dp.accountant import epsilon
from ifedicl.errors import ConfigError, TooFewClientsError
from ifedicl.federation.assignment import run_digest
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.dp_client import DPClient
from ifedicl.federation.dp_sums import DPSums
from ifedicl.federation.events import Delivered, Event
from ifedicl.federation.messages import (
    BeginRequest,
    CompareRequest,
    ContextRequest,
    EvaluateRequest,
    Failure,
    FailureCode,
    GradientReply,
    GradientRequest,
    Reply,
    Request,
    StatisticsRequest,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.secure.sum_client import identity_of
from ifedicl.inspection import what_leaves
from ifedicl.ledger.ledger import SUMMED, Ledger, read
from ifedicl.ledger.usage import CountedLedger, History
from ifedicl.owner.endpoint import LedgerRecord, build_endpoint
from ifedicl.owner.guard import Guard
from ifedicl.owner.policy import open_policy
from ifedicl.owner.recorder import Recorder
from ifedicl.settings import Method, ModelSettings, NoiseSettings, load_settings
from ifedicl.settings.describe import mode_of
from tests.support import tiny
from tests.support.endpoints import Asked, engine_of, secure_layer
from tests.support.private import method, private_method

STEP = 2.0**-24
PUBLIC = tiny.examples(8, seed=9)


class Ward:
    """One client and its promise."""

    def __init__(
        self, name: str, backbone: Backbone, rows: Any, settings: NoiseSettings, run: Method, survivors: int = 3
    ) -> None:
        self.private = DPSums(settings, survivors, run, PUBLIC, step=STEP)
        self.layer = DPClient(Client(name, rows, backbone, secret=name.encode()), self.private)
        self.name, self.client, self._answer = name, self.layer.client, self.layer.handle

    def handle(self, request: Request) -> Reply:
        return self._answer(request)


def wards(backbone: Backbone, settings: NoiseSettings, run: Method, count: int = 3) -> list[Ward]:
    rows = tiny.examples(5 * count)
    return [Ward(f"ward-{n}", backbone, rows[5 * n : 5 * n + 5], settings, run) for n in range(count)]


def ready(ward: Ward, backbone: Backbone, run: Method) -> GradientRequest:
    """Stage 1 and the global vectors; the request for the first round."""
    reply = ward.handle(VectorsRequest(tiny.TASK, run, backbone.fingerprint, ""))
    assert isinstance(reply, VectorsReply)
    from ifedicl.core.subspace import Context

    layers = run.injection.active_layers(backbone.layers)
    context = Context(reply.vectors.mean().astype(np.float32), first_layer=layers.start)
    ward.handle(ContextRequest(tiny.TASK, run, backbone.fingerprint, context, "c"))
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    return GradientRequest("c", 0, Coordinator(engine_of([ward.client]), tiny.TASK, run, shape)._state.coefficients)


def asked(ward: Ward, request: GradientRequest) -> GradientSum:
    reply = ward.handle(request)
    assert isinstance(reply, GradientReply), reply
    return reply.sums


def test_vectors_are_those_of_public_text_whoever_is_asked(backbone: Backbone) -> None:
    run = method()
    replies = []
    for ward in wards(backbone, NoiseSettings(), run):
        reply = ward.handle(VectorsRequest(tiny.TASK, run, backbone.fingerprint, ""))
        assert isinstance(reply, VectorsReply)
        replies.append(reply)
    for reply in replies[1:]:
        np.testing.assert_array_equal(reply.vectors.means, replies[0].vectors.means)
        np.testing.assert_array_equal(reply.vectors.counts, [len(PUBLIC)])


def test_a_gradient_sum_is_that_of_clipped_examples_and_says_nothing_else(backbone: Backbone) -> None:
    run = method()
    ward = wards(backbone, NoiseSettings(clip=0.3), run)[0]
    request = ready(ward, backbone, run)
    sums = asked(ward, request)
    assert (sums.examples, sums.loss) == (0, 0.0)
    promise = ward.private._latest
    assert promise is not None
    job, context = ward.client._in_context("c", request.coefficients)
    part, total = job.part(Role.TRAIN), np.zeros(len(job.layers) * 4)
    rows = range(len(part.labels))
    clipped = 0
    for _, arrays in example_gradients(job.scorer, part, context, request.coefficients, run, rows):
        for gradient in arrays["scales"]:
            row = (gradient * promise.weights["scales"]).ravel()
            length = float(np.linalg.norm(row))
            clipped += length > promise.bound.clip
            total += row * min(1.0, promise.bound.clip / length)
    assert clipped > 0
    np.testing.assert_allclose(sums.arrays["scales"].ravel(), total, atol=5 * promise.bound.step)
    assert sums.arrays["scales"].any()


def test_noise_is_on_what_depends_on_examples_and_only_there(backbone: Backbone) -> None:
    run = method()
    ward = wards(backbone, NoiseSettings(), run)[0]
    asked(ward, ready(ward, backbone, run))
    layers = len(run.injection.active_layers(backbone.layers))
    noise = ward.private.noise("gradient", 2 + layers * 4)
    assert not noise[:2].any()
    assert np.count_nonzero(noise[2:]) > 0.7 * (noise.size - 2)
    assert not ward.private.noise("vectors", 10).any()
    assert not np.array_equal(noise, ward.private.noise("gradient", len(noise)))


def test_the_noise_of_the_fewest_survivors_is_what_the_promise_asks_for(backbone: Backbone) -> None:
    run, settings = method(), NoiseSettings(epsilon=2.0, colluders=1)
    ward = wards(backbone, settings, run)[0]
    asked(ward, ready(ward, backbone, run))
    promise = ward.private._latest
    assert promise is not None
    size = 2 + promise.bound.size
    drawn = np.stack([ward.private.noise("gradient", size)[2:] for _ in range(800)])
    noise = drawn * STEP / promise.bound.step
    # Three survivors of whom one colludes: two shares are the whole.
    assert 2 * noise.var() == pytest.approx(promise.release.variance, rel=0.06)
    assert epsilon([promise.release] * 3, settings.delta) == pytest.approx(2.0, rel=1e-3)


def test_the_budget_ends_a_client_after_the_rounds_that_were_promised(backbone: Backbone) -> None:
    run = method()
    ward = wards(backbone, NoiseSettings(epsilon=1.0), run)[0]
    request = ready(ward, backbone, run)
    for _ in range(3):
        asked(ward, request)
    assert 0.99 < ward.private.budget.spent_epsilon <= 1.0
    reply = ward.handle(request)
    assert isinstance(reply, Failure)
    assert len(ward.private.budget.spent) == 3


def test_a_budget_that_an_earlier_run_spent_is_not_there_again(backbone: Backbone) -> None:
    run = method()
    first = wards(backbone, NoiseSettings(epsilon=1.0), run)[0]
    asked(first, ready(first, backbone, run))
    again = DPSums(NoiseSettings(epsilon=1.0), 3, run, PUBLIC, step=STEP, spent_rounds=3)
    layer = DPClient(Client("ward", tiny.examples(5), backbone, secret=b"w"), again)
    ward = first
    ward.private, ward.client, ward._answer = again, layer.client, layer.handle
    assert isinstance(ward.handle(ready(ward, backbone, run)), Failure)


def test_what_no_noise_is_planned_for_is_refused(backbone: Backbone) -> None:
    run = method()
    ward = wards(backbone, NoiseSettings(), run)[0]
    start: Coefficients = ready(ward, backbone, run).coefficients
    requests: list[Request] = [
        UpdateRequest("c", 0, 0, 3, start),
        EvaluateRequest("c", Role.SELECTION, start),
        StatisticsRequest("c", start),
        CompareRequest("c", start, None),
        VectorsRequest(tiny.TASK, method(rounds={"rounds": 4}), backbone.fingerprint, ""),
    ]
    for request in requests:
        assert ward.handle(request) == Failure(FailureCode.BAD_REQUEST)
    with pytest.raises(KeyError):
        wards(backbone, NoiseSettings(), run)[0].private.noise("gradient", 10)


@pytest.mark.parametrize(
    ("run", "settings", "survivors", "field"),
    [
        (method(), NoiseSettings(colluders=3), 3, "noise.colluders"),
        (method(server={"update": "local"}), NoiseSettings(), 3, "server.update"),
        (method(server={"optimizer": "momentum"}), NoiseSettings(), 3, "server.optimizer"),
        (method(readout={}, holdout={"selection": 0.2}), NoiseSettings(), 3, "readout"),
        (method(holdout={"gate": 0.2}), NoiseSettings(), 3, "holdout.gate"),
        (method(rounds={"select_by": "loss"}), NoiseSettings(), 3, "rounds.select_by"),
    ],
)
def test_settings_that_guarantee_nothing_are_refused(run: Method, settings: NoiseSettings, survivors: int, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        DPSums(settings, survivors, run, PUBLIC, step=STEP)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_federation_runs_on_what_private_clients_send(backbone: Backbone, rank: int) -> None:
    subspace = {"subspace": {"rank": rank}} if rank else {}
    run = method(**subspace)
    clients = wards(backbone, NoiseSettings(), run)
    shape = ModelShape(backbone.fingerprint, backbone.layers, backbone.width)
    outcome = Coordinator(engine_of(clients), tiny.TASK, run, shape).run()
    assert outcome.chosen_round == 3
    assert not outcome.coefficients.is_identity
    assert not any(exchange.failure for exchange in outcome.state.traffic)


# --- whole runs --------------------------------------------------------------------------------------------------------


def run_of(backbone: Backbone, run: Method, folder: Path, **options: Any) -> runs.Federated:
    rows = tiny.examples(24)
    clients = runs.simulate(backbone, tiny.TASK, {f"ward-{n}": rows[6 * n : 6 * n + 6] for n in range(4)})
    return runs.federate(
        clients,
        ModelSettings(source="tiny"),
        tiny.TASK,
        run,
        ledgers=folder / "ledgers",
        public=PUBLIC,
        options=runs.RunOptions(checkpoint=folder / "state.safetensors", **options),
    )


def test_a_private_federation_says_what_it_tells_in_adapter_and_ledger(backbone: Backbone, tmp_path: Path) -> None:
    federated = run_of(backbone, private_method(), tmp_path)
    told = federated.adapter.provenance["privacy"]
    assert 1.99 < told["epsilon"] <= 2.0
    assert told["delta"] == 1e-5
    spent = [
        entry.facts["epsilon"] for entry in Ledger(tmp_path / "ledgers" / "ward-0.jsonl", "ward-0") if entry.event == SUMMED
    ]
    assert spent[0] == 0.0  # vectors of public text
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(told["epsilon"], abs=1e-3)


def test_the_sum_that_the_coordinator_gets_is_noisy(backbone: Backbone, tmp_path: Path) -> None:
    adapters = [run_of(backbone, private_method(), tmp_path / str(number)).adapter for number in range(2)]
    first, second = (adapter.coefficients.scales for adapter in adapters)
    assert not np.array_equal(first, second)  # the noise is never drawn twice
    np.testing.assert_array_equal(adapters[0].context.vectors, adapters[1].context.vectors)


def test_more_rounds_than_were_promised_are_refused_and_a_restart_forgets_nothing(backbone: Backbone, tmp_path: Path) -> None:
    run = private_method()
    run_of(backbone, run, tmp_path)
    with pytest.raises(TooFewClientsError):
        run_of(backbone, run, tmp_path, more_rounds=1)


def test_a_private_run_that_was_killed_within_a_round_ends_with_the_rounds_that_its_budget_allows(
    backbone: Backbone, tmp_path: Path
) -> None:
    """The gradients of the round that was lost are spent, so the last round of three cannot be had."""

    class Killed(Exception):  # noqa: N818
        pass

    def kill(event: Event) -> None:
        if isinstance(event, Delivered) and (event.traffic.step, event.traffic.round) == ("gradient", 1):
            raise Killed

    with pytest.raises(Killed):
        run_of(backbone, private_method(), tmp_path, observer=kill)
    federated = run_of(backbone, private_method(), tmp_path, resume=True)
    assert federated.outcome.chosen_round == federated.outcome.state.round == 2
    assert 1.99 < federated.adapter.provenance["privacy"]["epsilon"] <= 2.0


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"holdout": {"selection": 0.2}}, "holdout"),
        ({"server": {"update": "local"}}, "server.update"),
        ({"privacy": {"mode": "secure"}}, "noise"),
        ({"privacy": {"noise": None}}, "noise"),
        ({"privacy": {"noise": {"colluders": 3}}}, "colluders"),
    ],
)
def test_a_config_whose_mode_would_guarantee_nothing_is_an_error(sections: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        private_method(**sections)


def test_an_owners_limit_of_epsilon_stops_its_client(backbone: Backbone, tmp_path: Path) -> None:
    run, policy = method(), open_policy()
    limited = policy.model_copy(update={"most": policy.most.model_copy(update={"epsilon": 1.5})})
    ward = wards(backbone, NoiseSettings(epsilon=2.0), run)[0]
    ledger = CountedLedger(Ledger(tmp_path / "ledger.jsonl", ward.name))
    ward._answer = Asked(Recorder(Guard(ward.layer, limited, ledger.history), ledger, limited.most)).handle
    request = ready(ward, backbone, run)
    answers = [ward.handle(request) for _ in range(3)]
    assert isinstance(answers[0], GradientReply)
    assert [reply.code for reply in answers if isinstance(reply, Failure)] == [FailureCode.SPENT] * 2
    # Without a promise nothing leaves at all.
    plain = Client("plain", tiny.examples(5), backbone, secret=b"p")
    open_guard = Asked(build_endpoint(plain, limited, LedgerRecord(Ledger(tmp_path / "plain.jsonl", "plain")), None, {}))
    reply = open_guard.handle(VectorsRequest(tiny.TASK, run, backbone.fingerprint, ""))
    assert isinstance(reply, Failure)
    assert reply.code is FailureCode.REFUSED


CONFIG = """
weighting = "examples"
[task]
name = "mood"
labels = ["good", "bad"]
template = "Text: {{text}}\\nMood:"
[model]
source = "{model}"
dtype = "float32"
device = "cpu"
[data]
train = "train.jsonl"
split = {{ clients = 4, alpha = 100.0 }}
public = "public.txt"
[holdout]
selection = 0.0
[rounds]
rounds = 2
select_by = "last"
[server]
update = "gradient"
[privacy]
mode = "private"
min_examples = 2
[privacy.noise]
epsilon = 3.0
"""


def test_a_config_in_private_mode_runs_says_so_and_does_not_go_on_for_free(tmp_path: Path, llama_folder: Path) -> None:
    rows = [{"text": row.text, "label": row.label} for row in tiny.examples(24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "public.txt").write_text("".join(row.text + "\n" for row in PUBLIC))
    (tmp_path / "config.toml").write_text(CONFIG.format(model=llama_folder))
    settings = load_settings(tmp_path / "config.toml")
    assert mode_of(settings.method).startswith("private: ")
    assert any("noise" in sentence for sentence in what_leaves(settings))
    result = runs.run(settings, tmp_path / "run")
    assert result.federated is not None
    assert result.federated.adapter.provenance["privacy"]["epsilon"] <= 3.0
    run = run_digest(settings.task, settings.method, result.federated.adapter.fingerprint)
    ledgers = [read(path)[0] for path in RunFolder(tmp_path / "run").ledgers.glob("*.jsonl")]
    assert len(ledgers) == len(result.clients)
    assert {History.of(entries).spent(run).rounds for entries in ledgers} == {2}
    with pytest.raises(TooFewClientsError):
        runs.run(settings, tmp_path / "run", more_rounds=1)


def test_private_mode_without_public_text_is_an_error(tmp_path: Path, llama_folder: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.format(model=llama_folder).replace('public = "public.txt"\n', ""))
    with pytest.raises(ConfigError, match=r"data\.public"):
        load_settings(tmp_path / "config.toml")


def test_a_clip_that_the_sum_cannot_resolve_lets_nothing_out(backbone: Backbone) -> None:
    run = method()
    ward = wards(backbone, NoiseSettings(clip=1e-6), run)[0]
    assert ward.handle(ready(ward, backbone, run)) == Failure(FailureCode.INTERNAL)
    assert not ward.private.budget.spent


def test_a_client_that_cannot_keep_the_promise_refuses_the_task(backbone: Backbone) -> None:
    run = private_method()
    assert run.privacy is not None
    plain = Client("plain", tiny.examples(8), backbone, secret=b"p")
    request = VectorsRequest(tiny.TASK, run, backbone.fingerprint, "")
    assert plain.handle(request) == Failure(FailureCode.OTHER_MODE)
    masking = secure_layer(plain, {"plain": identity_of(plain).public}, run.privacy.model_copy(update={"noise": None}))
    begin = BeginRequest("0" * 32, run.privacy, encode(request))
    assert masking.handle(begin).reply == Failure(FailureCode.OTHER_MODE)


def test_an_owner_asks_for_its_own_noise_or_more(backbone: Backbone) -> None:
    ward = wards(backbone, NoiseSettings(), method())[0]
    own = private_method(privacy={"noise": {"epsilon": 1.0}}).privacy
    asked = private_method().privacy  # of ε 2
    assert own is not None
    assert asked is not None
    masking = secure_layer(ward.client, {ward.name: identity_of(ward.client).public}, own, ward.layer, ward.layer)
    request = VectorsRequest(tiny.TASK, private_method(), backbone.fingerprint, "")
    for rules in (asked, own.model_copy(update={"mode": "secure", "noise": None})):
        assert masking.handle(BeginRequest(rules.mode.ljust(32, "0"), rules, encode(request))).reply == Failure(
            FailureCode.OTHER_MODE
        )
