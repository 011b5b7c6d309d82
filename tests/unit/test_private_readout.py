"""A readout, figures and a gate under differential privacy: what one example changes, the noise on it, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.audit.guessing import game_of_releases
from ifedicl.backbone.load import Backbone
from ifedicl.core.framed_sums import SENSITIVITY, Frame, FramedSums
from ifedicl.core.readout import Readout
from ifedicl.core.vectors import Array64
from ifedicl.data import Role
from ifedicl.dp.accountant import epsilon
from ifedicl.federation.client import Client
from ifedicl.federation.events import Event
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    NoisyStatisticsReply,
    NoisyStatisticsRequest,
    Reply,
    Request,
    StatisticsRequest,
)
from ifedicl.federation.reply_sums import SUM_RULES, flat
from ifedicl.kinds.classify import Example
from ifedicl.ledger.ledger import SUMMED, read
from ifedicl.ledger.usage import CountedLedger
from ifedicl.metrics import CountedComparison, Tally
from ifedicl.owner.guard import Guard
from ifedicl.owner.policy import LeastSettings, open_policy
from ifedicl.settings import Method, load_preset
from tests.support import tiny
from tests.support.jobs import job_of
from tests.support.private import PUBLIC, dp_sums, private_client, private_method, private_run, sums_in
from tests.support.stopping import StopError, stop_when

PRIVACY = {"mode": "private", "min_survivors": 3, "min_examples": 2, "noise": {"epsilon": 8.0}}


def one_shot(**sections: Any) -> Method:
    """A readout and a gate with noise; sections override."""
    base = load_preset("one-shot").model_dump() | {"rounds": {"rounds": 0, "select_by": "accuracy"}, "privacy": PRIVACY}
    return Method.model_validate(base | {"holdout": {"selection": 0.2, "gate": 0.2}} | sections)


def ready(client: Client, backbone: Backbone, method: Method) -> tuple[Manifest, str]:
    job = job_of(method, backbone)
    assert client.handle(JobRequest(job)) == JobReply()
    return job, context_id(job.digest, job.no_context)


def requests_of(job: Manifest, name: str) -> tuple[Request, ...]:
    """One of each kind that a readout needs."""
    readout = solved(np.random.default_rng(0), job.features).solve(0.1, None, job.method.pooled_layers(job.model.layers))
    return (
        NoisyStatisticsRequest(name, job.identity),
        EvaluateRequest(name, job.identity, (readout,), (1.0,)),
        CompareRequest(name, job.identity, readout),
    )


def solved(draw: np.random.Generator, features: int, *, examples: int = 40, classes: int = 2) -> FramedSums:
    """Sums of random examples in a random frame."""
    frame = Frame.of(draw.normal(size=(12, features)))
    labels = [number % classes for number in range(examples)]
    return FramedSums.of(frame.rows(draw.normal(size=(examples, features))), labels, classes, frame)


def steps_of(reply: Reply, client: Client, request: Request) -> Array64:
    """The noisy numbers of a reply, in steps of the bound's grid; all others are 0 or of public text."""
    sums = sums_in(client)
    numbers = flat(SUM_RULES[type(reply)].apart(reply))[sums._places[request.kind]]
    steps: Array64 = numbers / sums.plan.by_kind[request.kind].bound.step
    np.testing.assert_array_equal(steps, np.rint(steps))
    return steps


@pytest.mark.parametrize("number", [0, 1, 2], ids=["statistics", "evaluate", "compare"])
def test_neighbouring_replies_differ_by_one_examples_own_part_and_no_more_than_the_sensitivity(
    backbone: Backbone, number: int
) -> None:
    """Whole clients, each with its own order of the examples. The roles of the others do not depend on the one that is gone."""
    method, rows = one_shot(), tiny.examples(24)

    def steps(held: list[Example]) -> Array64:
        client = private_client(backbone, held)
        request = requests_of(*ready(client, backbone, method))[number]
        reply = client.handle(request)
        assert not isinstance(reply, Failure), reply
        return steps_of(reply, client, request)

    client = private_client(backbone, list(rows))
    request = requests_of(*ready(client, backbone, method))[number]
    sensitivity, roles = sums_in(client).plan.by_kind[request.kind].bound.sensitivity, client._in_job.roles
    behind, another = roles[(Role.TRAIN, Role.SELECTION, Role.GATE)[number]], roles[(Role.GATE, Role.TRAIN, Role.TRAIN)[number]]
    whole, changes, draw = steps(list(rows)), 0, np.random.default_rng(1)
    for removed in (*behind[:4], another[0]):
        others = [row for row in rows if row is not removed]
        change = whole - steps([others[place] for place in draw.permutation(len(others))])
        assert np.linalg.norm(change) <= sensitivity
        changes += bool(change.any())
    assert changes == len(behind[:4]), "an example changes the replies that it stands behind, and no others"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, np.inf])
def test_no_features_give_a_longer_row_than_the_bound(scale: float) -> None:
    draw = np.random.default_rng(2)
    frame = Frame.of(draw.normal(size=(30, 90)))
    rows = frame.rows(draw.normal(size=(200, 90)) * scale)
    assert rows.shape == (200, Frame.row_size(90))
    assert np.isfinite(rows).all()
    lengths = np.linalg.norm(rows, axis=1)
    assert (lengths <= SENSITIVITY + 1e-9).all()
    if 1.0 <= scale < np.inf:
        assert lengths.max() > 0.8 * SENSITIVITY, "nothing was clipped, so the bound was not tried"


def test_a_reply_has_noise_on_all_that_depends_on_examples_and_nowhere_else(backbone: Backbone) -> None:
    """What is left without noise is the same for other examples."""
    method, clients = one_shot(), [private_client(backbone, tiny.examples(24, seed=seed)) for seed in (0, 5)]
    for number in range(3):
        fixed = []
        for client in clients:
            request = requests_of(*ready(client, backbone, method))[number]
            reply = client.handle(request)
            numbers = flat(SUM_RULES[type(reply)].apart(reply))
            noise = client.noise(request.kind, len(numbers))
            places = sums_in(client)._places[request.kind]
            assert np.count_nonzero(noise[places]) > 0.9 * len(places)
            assert not np.delete(noise, places).any()
            fixed.append(np.delete(numbers, places))
        np.testing.assert_array_equal(fixed[0], fixed[1])


def test_the_replies_about_each_role_cost_the_promised_epsilon(backbone: Backbone) -> None:
    """An example has one role, so the budgets of the roles do not add up."""
    client = private_client(backbone, tiny.examples(24))
    job, name = ready(client, backbone, one_shot())
    for request in requests_of(job, name):
        assert not isinstance(client.handle(request), Failure)
        assert client.spent_epsilon == pytest.approx(8.0, rel=1e-3)
    for planned in sums_in(client).plan.by_kind.values():
        assert 7.99 < epsilon([planned.release], 1e-5) <= 8.0
    for request in requests_of(job, name):
        assert client.handle(request) == Failure(FailureCode.SPENT)


def test_several_replies_about_one_role_share_its_budget(backbone: Backbone) -> None:
    """Rounds, evaluations, a readout and a gate: the plan counts each of them."""
    sections: dict[str, Any] = {
        "holdout": {"selection": 0.2, "gate": 0.2},
        "rounds": {"rounds": 4, "select_by": "accuracy", "evaluate_every": 2},
        "readout": {},
    }
    plan = dp_sums(job_of(private_method(**sections), backbone)).plan
    times = {"gradient": 4, "evaluate": 1 + 2 + 1, "compare": 1, "noisy_statistics": 1}
    assert plan.by_kind.keys() == times.keys()
    for role in Role:
        kinds = [kind for kind, planned in plan.by_kind.items() if planned.role is role]
        spent = [replace(plan.by_kind[kind].release, times=times[kind]) for kind in kinds]
        assert epsilon(spent, 1e-5) == pytest.approx(2.0, rel=1e-3)


def test_statistics_without_noise_are_refused_in_a_private_job_and_noisy_ones_elsewhere(backbone: Backbone) -> None:
    client = private_client(backbone, tiny.examples(24))
    job, name = ready(client, backbone, one_shot())
    assert client.handle(StatisticsRequest(name, job.identity)) == Failure(FailureCode.BAD_REQUEST)
    readout = requests_of(job, name)[1]
    assert isinstance(readout, EvaluateRequest)
    more = replace(readout, readouts=readout.readouts * 2)
    assert client.handle(more) == Failure(FailureCode.BAD_REQUEST), "each readout more would need more noise"
    open_job, name = ready(client, backbone, load_preset("one-shot"))
    assert client.handle(NoisyStatisticsRequest(name, open_job.identity)) == Failure(FailureCode.BAD_REQUEST)


def test_without_noise_the_readout_is_a_linear_discriminant() -> None:
    draw, classes, size = np.random.default_rng(3), 3, 100
    centres = draw.normal(size=(classes, size))
    labels = np.arange(600) % classes
    features = 5 + (centres[labels] + draw.normal(size=(600, size)) * 1.5) * np.linspace(0.1, 10, size)
    frame = Frame.of(5 + draw.normal(size=(200, size)) * np.linspace(0.1, 10, size))
    sums = FramedSums.of(frame.rows(features), list(labels), classes, frame)
    readout = sums.solve(0.0, None)

    def right(weights: np.ndarray) -> float:
        return float(((features @ weights[:, :-1].T + weights[:, -1]).argmax(axis=1) == labels).mean())

    assert right(readout.weights) > 0.97
    noisy = sums.solve(3.0, None)
    assert np.linalg.norm(noisy.weights[:, :-1]) < np.linalg.norm(readout.weights[:, :-1])
    drowned = sums.solve(1e9, None)
    assert not drowned.weights[:, :-1].any(), "means that noise alone explains say nothing"


def test_sums_that_noise_made_impossible_still_give_a_readout() -> None:
    sums = solved(np.random.default_rng(4), 80)
    impossible = FramedSums(-sums.moment, -np.abs(sums.products), sums.frame)
    assert np.isfinite(impossible.solve(0.5, None).weights).all()


def test_counts_that_noise_made_impossible_become_possible() -> None:
    evaluate, compare = SUM_RULES[EvaluateReply], SUM_RULES[CompareReply]
    tallies = np.array([[-3.2, 5.0, 0.0], [0.0, -2.0, 0.0]])
    assert evaluate.of_total({"tallies": tallies}, is_noisy=True) == EvaluateReply((Tally(1, 1), Tally(1, 0)))
    total = {
        "tallies": np.array([[10.4, 12.0, 0.0], [0.0, 4.0, 0.0]]),
        "gains": np.array([0.0, -7.0]),
        "labels": np.zeros((2, 2)),
    }
    reply = compare.of_total(total, is_noisy=True)
    assert reply == CompareReply(CountedComparison(Tally(10, 10), Tally(10, 4), disagreements=6))
    assert reply.comparison.is_open
    assert not CountedComparison(Tally(10, 4), Tally(10, 4)).is_open


def test_a_private_run_without_rounds_makes_a_readout_and_asks_the_gate(backbone: Backbone, tmp_path: Path) -> None:
    federated = private_run(backbone, one_shot(), tmp_path, each=24)
    steps = [item.step for item in federated.outcome.state.traffic if item.client == "ward-0"]
    assert list(dict.fromkeys(steps)) == ["job", "noisy_statistics", "evaluate", "compare"]
    assert isinstance(federated.outcome.gate, CountedComparison)
    assert federated.adapter.provenance["privacy"]["epsilon"] == pytest.approx(8.0, rel=1e-3)
    entries, _ = read(tmp_path / "ledgers" / "ward-0.jsonl")
    assert [entry.facts["kind"] for entry in entries if entry.event == SUMMED] == [
        "noisy_statistics_reply",
        "evaluate_reply",
        "compare_reply",
    ]


def test_public_text_is_read_once_for_all_clients_of_a_process(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, of = list[int](), Frame.of

    def counted(features: Array64) -> Frame:
        made.append(len(features))
        return of(features)

    monkeypatch.setattr(Frame, "of", counted)
    private_run(backbone, one_shot(), tmp_path, each=24)
    assert made == [len(PUBLIC)]


def test_a_run_that_is_killed_and_resumed_spends_no_epsilon_twice(backbone: Backbone, tmp_path: Path) -> None:
    def at_the_gate(event: Event) -> bool:
        return getattr(event, "step", "") == "compare"

    method = one_shot()
    with pytest.raises(StopError):
        private_run(backbone, method, tmp_path, each=24, observer=stop_when(at_the_gate))
    resumed = private_run(backbone, method, tmp_path, each=24, resume=True)
    assert resumed.adapter.provenance["privacy"]["epsilon"] <= 8.0
    assert resumed.outcome.gate is not None
    steps = [item.step for item in resumed.outcome.state.traffic if item.client == "ward-0"]
    assert steps.count("noisy_statistics") == 1


def test_a_private_run_with_rounds_selects_by_noisy_counts(backbone: Backbone, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "holdout": {"selection": 0.2, "gate": 0.2},
        "rounds": {"rounds": 2, "select_by": "accuracy"},
        "readout": {},
    }
    outcome = private_run(backbone, private_method(**sections), tmp_path, each=24).outcome
    assert outcome.state.round == 2
    assert all(record.held_out is not None and record.held_out.loss_sum == 0 for record in outcome.state.history)
    assert outcome.gate is not None


def test_a_gate_alone_is_enough_for_a_private_readout_and_not_for_an_open_one() -> None:
    gate_alone: dict[str, Any] = {"holdout": {"selection": 0.0, "gate": 0.2}}
    one_shot(**gate_alone)
    with pytest.raises(ValueError, match=r"\[readout\] is chosen on held-out examples"):
        one_shot(**gate_alone, privacy=None)


def test_frames_of_many_clients_are_averaged(backbone: Backbone) -> None:
    sums = solved(np.random.default_rng(5), 70)
    rule = SUM_RULES[NoisyStatisticsReply]
    parts = rule.apart(NoisyStatisticsReply(sums))
    total = {name: 3 * np.asarray(part, dtype=np.float64) for name, part in parts.items()}
    together = rule.of_total(total, is_noisy=True)
    assert together is not None
    assert together.clients == 3
    np.testing.assert_allclose(together.sums.frame.offset, sums.frame.offset)
    np.testing.assert_allclose(together.sums.frame.scale, sums.frame.scale)
    np.testing.assert_allclose(together.sums.moment, 3 * sums.moment)
    assert math.isclose(float(np.linalg.norm(together.sums.frame.directions[0])), 1.0)


@pytest.mark.parametrize("kind", ["noisy_statistics", "compare"])
def test_the_best_attack_proves_less_than_the_promised_epsilon_and_more_if_noise_is_missing(
    backbone: Backbone, kind: str
) -> None:
    """An example that adds as much as it may, against all noise of the fewest survivors, and against a thirtieth of it."""
    release = dp_sums(job_of(one_shot(privacy=PRIVACY | {"noise": {"epsilon": 1.0}}), backbone)).plan.by_kind[kind].release
    draw = np.random.default_rng(1)
    assert game_of_releases([release], 1e-5, 1_500, draw).bound <= 1.0
    assert game_of_releases([release], 1e-5, 1_500, draw, variance=0.03).bound > 1.0


@pytest.mark.parametrize(("examples", "features", "classes"), [(434, 1153, 2), (220, 1155, 4), (61, 579, 3)])
def test_the_number_of_other_rows_changes_no_bit_of_a_rows_scores(examples: int, features: int, classes: int) -> None:
    """A coordinator that lies chose weights that differ by the last bit, so that rounding decides: one row more turned the
    answers of dozens of others. Sizes about that from which a matrix product is divided differently.
    """
    draw = np.random.default_rng(6)
    hidden = features - classes
    states, logs = draw.normal(size=(examples, hidden)) * 30, np.log(draw.dirichlet(np.ones(classes), size=examples))
    weights = np.repeat(draw.normal(size=(1, features + 1)) * 1e5, classes, axis=0).astype(np.float32)
    weights[:, -1] = np.nextafter(np.full(classes, 1e5, dtype=np.float32), np.float32(np.inf)) * np.arange(1, classes + 1)
    readout = Readout(weights)
    whole = readout.log_probabilities(states, logs, alone=True)
    for first, last in ((1, examples), (0, examples - 1), (7, examples // 2)):
        part = readout.log_probabilities(states[first:last], logs[first:last], alone=True)
        np.testing.assert_array_equal(part, whole[first:last])
    frame = Frame.of(draw.normal(size=(40, features)))
    rows = draw.normal(size=(examples, features)) * 2
    np.testing.assert_array_equal(frame.rows(rows)[1:], frame.rows(rows[1:]))


def test_an_example_that_the_task_cannot_use_is_left_out_and_no_code_tells_of_it(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    rows, method = tiny.examples(24), one_shot()
    replies = []
    for held in (rows, (*rows, Example("a row of its own", "no label of the task"), Example("", rows[0].label))):
        client = private_client(backbone, held)
        replies.append([client.handle(request) for request in requests_of(*ready(client, backbone, method))])
    for first, second in zip(*replies, strict=True):
        numbers = [flat(SUM_RULES[type(reply)].apart(reply)) for reply in (first, second)]
        np.testing.assert_array_equal(numbers[0], numbers[1])
    assert "2 examples are left out" in caplog.text


def test_a_client_with_few_or_no_examples_answers_as_any_other(backbone: Backbone, tmp_path: Path) -> None:
    """No code tells how many examples there are, or that some were added or removed since an earlier reply."""
    policy = open_policy()
    strict = policy.model_copy(update={"least": LeastSettings()})
    rows, method = tiny.examples(40), one_shot(privacy=PRIVACY | {"min_examples": 8})
    for number, held in enumerate((rows[:24], rows[:25], rows[:23], rows[:3], ())):
        ledger = CountedLedger(tmp_path / "ledger.jsonl", "ward")
        client = private_client(backbone, held)
        guard = Guard(client, strict, ledger.history, masked=True)
        job = job_of(method.model_copy(update={"seed": number}), backbone)
        assert guard.handle(JobRequest(job)).reply == JobReply()
        for request in requests_of(job, context_id(job.digest, job.no_context)):
            found = guard.handle(request)
            assert not isinstance(found.reply, Failure), (len(held), request.kind, found.reply)
            ledger.append(SUMMED, {"kind": found.reply.kind, "bytes": 0, "engine_bytes": 0} | found.facts.as_json)


def test_an_owners_limit_of_delta_holds(backbone: Backbone, tmp_path: Path) -> None:
    policy = open_policy()
    limited = policy.model_copy(update={"most": policy.most.model_copy(update={"epsilon": 20.0, "delta": 1e-5})})
    ward = private_client(backbone, tiny.examples(24))
    history = CountedLedger(tmp_path / "ledger.jsonl", "ward").history
    guard = Guard(ward, limited, history, masked=True)
    loose = one_shot(privacy=PRIVACY | {"noise": {"epsilon": 8.0, "delta": 1e-4}})
    assert guard.handle(JobRequest(job_of(loose, backbone))).reply == Failure(FailureCode.REFUSED)
    assert guard.handle(JobRequest(job_of(one_shot(), backbone))).reply == JobReply()
