"""The readout: closed form from sums, for any split over clients, and through a whole federation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.blend import SHARES, blended, mixes
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.penalties import PENALTIES, readout_count
from ifedicl.core.readout import TEMPERATURES, Readout, features, halves, of_halves
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.sketch import Directions
from ifedicl.core.subspace import Context
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64
from ifedicl.data import Role
from ifedicl.errors import AdapterError, ConfigError
from ifedicl.federation.client import Client
from ifedicl.federation.client_task import ClientTask
from ifedicl.federation.coordinator import Coordinator
from ifedicl.federation.messages import (
    ContextReply,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
)
from ifedicl.federation.reply_sums import Total
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.jobs import context_of, job_of
from tests.support.local_runs import assert_same_result, real, run_real, shape_of
from tests.support.readouts import directions_of, sums_of

STATES, LABELS = np.random.default_rng(1).normal(size=(60, 7)), np.random.default_rng(2).integers(0, 3, size=60)
LOGS = np.log(np.random.default_rng(3).dirichlet(np.ones(3), size=60))
WHOLE = directions_of(10, 3)


def _sums(rows: slice = slice(None)) -> ReadoutSums:
    return sums_of(features(STATES[rows], LOGS[rows]), LABELS[rows], 3)


def _of(reply: Reply) -> ReadoutSums:
    assert isinstance(reply, StatisticsReply)
    return reply.sums


def _added(*parts: ReadoutSums) -> ReadoutSums:
    total = Total(StatisticsReply)
    for part in parts:
        total.add(StatisticsReply(part))
    assert total.reply is not None
    return total.reply.sums


def _scores(readout: Readout) -> Array64:
    return np.append(features(STATES, LOGS), np.ones((60, 1)), axis=1) @ readout.weights.T.astype(np.float64)


def test_the_readout_is_ridge_regression_on_all_examples_together_as_if_standardised() -> None:
    penalty, raw = PENALTIES[2], features(STATES, LOGS)
    standard = np.append((raw - raw.mean(axis=0)) / raw.std(axis=0), np.ones((60, 1)), axis=1)
    rows = np.concatenate([standard, np.sqrt(penalty * 60) * np.eye(10, 11)])  # ridge as least squares with rows of its own
    expected = np.linalg.lstsq(rows, np.concatenate([np.eye(3)[LABELS], np.zeros((10, 3))]), rcond=None)[0]
    np.testing.assert_allclose(_scores(_sums().solve(WHOLE)[2]), standard @ expected, atol=2e-4)


def test_without_an_intercept_the_last_weight_is_0_and_the_others_solve_the_rest() -> None:
    """Ridge regression on features without the 1, penalised by their scatter as before."""
    penalty, raw = PENALTIES[0], features(STATES, LOGS)
    scatter = np.square(raw - raw.mean(axis=0)).sum(axis=0)
    rows = np.concatenate([raw, np.diag(np.sqrt(penalty * scatter))])
    expected = np.linalg.lstsq(rows, np.concatenate([np.eye(3)[LABELS], np.zeros((len(scatter), 3))]), rcond=None)[0]
    readout = _sums().solve(WHOLE, has_intercept=False)[0]
    assert not readout.weights[:, -1].any()
    np.testing.assert_allclose(raw @ readout.weights[:, :-1].T, raw @ expected, atol=2e-4)
    assert _sums().solve(WHOLE)[0].weights[:, -1].any()


def test_sums_of_parts_give_the_readout_of_the_whole() -> None:
    parts = _added(_sums(slice(0, 11)), _sums(slice(11, 60)))
    assert parts.examples == 60
    for ours, whole in zip(parts.solve(WHOLE), _sums().solve(WHOLE), strict=True):
        np.testing.assert_allclose(ours.weights, whole.weights, rtol=1e-4, atol=1e-6)


def test_half_of_the_readouts_leave_little_but_the_text_means_of_the_middle_depth() -> None:
    states = np.random.default_rng(4).normal(size=(60, 4 * 7))
    directions = Directions.of([7] * 4, 3, 100, 0)
    sums = ReadoutSums.of(features(states, LOGS), LABELS, 3, Units.none(31), directions)
    readouts = sums.solve(directions, (1, 2, 3))
    assert len(readouts) == readout_count(3) == 2 * readout_count(1)
    for whole, middle in zip(readouts[: len(PENALTIES)], readouts[len(PENALTIES) :], strict=True):
        of_whole, of_middle = (np.abs(each.weights[:, 7:28].reshape(3, 3, 7)).mean(axis=(0, 2)) for each in (whole, middle))
        assert (of_middle[[0, 2]] < 0.1 * of_middle[1]).all()
        assert of_whole.min() > 0.2 * of_whole.max()


def test_a_strong_penalty_leaves_how_often_each_label_is() -> None:
    sizes = [np.abs(readout.weights[:, :-1]).max() for readout in _sums().solve(WHOLE)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 5
    scores = _scores(_sums().solve(WHOLE)[-1])
    np.testing.assert_allclose(scores.mean(axis=0), np.bincount(LABELS) / 60, atol=1e-3)


def test_weights_travel_in_16_bits_and_are_the_same_again() -> None:
    weights = np.random.default_rng(3).normal(size=(40, 3, 50)).astype(np.float32) * np.geomspace(1e-9, 1e6, 50, dtype="f4")
    weights[:, :, 7] = 0.0
    rounded = of_halves(*halves(weights))
    np.testing.assert_allclose(rounded, weights, atol=0, rtol=2e-3)
    assert (np.abs(rounded - weights).max(axis=1) <= 2.0**-11 * np.abs(weights).max(axis=1)).all()
    np.testing.assert_array_equal(of_halves(*halves(rounded)), rounded)


def test_probabilities_sum_to_one_and_a_temperature_changes_no_label() -> None:
    readout = _sums().solve(WHOLE)[0]
    logs, sharper = readout.log_probabilities(STATES, LOGS), readout.mixed(8.0, 0.0).log_probabilities(STATES, LOGS)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0, rtol=1e-5)
    assert (logs.argmax(axis=1) == sharper.argmax(axis=1)).all()
    assert sharper.max() > logs.max()


@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_what_is_read_is_what_the_labels_are_scored_from(backbone: Backbone, task: Any) -> None:
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts([example.text for example in tiny.examples(9)])
    reading = scorer.read(prompts)
    np.testing.assert_array_equal(reading.logs, scorer.log_probabilities(prompts))
    np.testing.assert_allclose(reading.states, scorer.features(prompts), rtol=1e-4, atol=1e-5)
    both = scorer.read(prompts, (1,))
    np.testing.assert_allclose(both.states[:, : backbone.width], reading.states, rtol=1e-4, atol=1e-5)
    zeros = Readout(
        np.concatenate([np.zeros((len(task.labels), backbone.width)), np.eye(len(task.labels))], axis=1).astype("f4")
    )
    with_one = replace(zeros, weights=np.concatenate([zeros.weights, np.zeros((len(task.labels), 1), "f4")], axis=1))
    np.testing.assert_allclose(scorer.log_probabilities(prompts, readout=with_one), reading.logs, atol=1e-5)


METHOD = tiny.method(rounds={"rounds": 2}, readout={"refinements": 0})


def test_a_federation_ends_with_a_readout_that_all_examples_made(backbone: Backbone) -> None:
    outcome = run_real(backbone, METHOD)
    assert outcome.state.readout_round == outcome.chosen_round
    clients = real(backbone)
    coefficients, sums, tasks = outcome.state.best, list[ReadoutSums](), list[ClientTask]()
    for client in clients:
        client.prepare(job_of(METHOD, backbone))
        assert client._task is not None
        own = _of(client._task.statistics(outcome.context, coefficients))
        assert own.examples == len(client._task.roles[Role.TRAIN])
        sums.append(ReadoutSums.from_wire(own.on_wire))  # as they arrive
        tasks.append(client._task)
    job = job_of(METHOD, backbone)
    readouts = _added(*sums).solve(job.directions, job.method.pooled_layers(backbone.layers))
    tallies = [task.tallies(outcome.context, coefficients, [None, *mixes(readouts)]) for task in tasks]
    expected = blended(readouts, [sum(tally.loss_sum for tally in of_all) for of_all in zip(*tallies, strict=True)])
    assert expected is not None
    assert outcome.readout is not None
    np.testing.assert_allclose(outcome.readout.weights, expected.weights, atol=1e-4 * np.abs(expected.weights).max())
    assert_same_result(outcome, run_real(backbone, METHOD))


def test_the_readout_is_the_same_whoever_holds_the_examples(backbone: Backbone) -> None:
    """Where nothing is calibrated by the clients' own steps, only sums remain."""
    examples = tiny.examples(24)
    method = tiny.method(holdout={"selection": 0.0001}, rounds={"rounds": 1}, readout={})
    identity = Coefficients.identity(Form(backbone.layers))
    context = Context(np.zeros((backbone.layers, 2, backbone.width), "f4"))
    totals = []
    for cuts in ((0, 5, 24), (0, 17, 24)):
        sums = []
        for begin, end in pairwise(cuts):
            client = Client(f"c{begin}", examples[begin:end], backbone, secret=b"s")
            client.prepare(job_of(method, backbone))
            assert client._task is not None
            sums.append(_of(client._task.statistics(context, identity)))
        totals.append(_added(*sums))
    for name in ("counts", "moment", "diagonal", "sketch", "along"):
        np.testing.assert_allclose(getattr(totals[0], name), getattr(totals[1], name), rtol=1e-3, atol=1e-3, err_msg=name)


def test_where_no_owner_lets_its_sums_out_the_label_words_are_read(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str, request: Request, reply: Reply) -> Reply:
        return Failure(FailureCode.REFUSED) if isinstance(request, StatisticsRequest) else reply

    method = tiny.method(rounds={"rounds": 2}, readout={})
    outcome = run_real(backbone, method, engine=RecordingEngine(engine_of(real(backbone)), refuse))
    assert outcome.readout is None
    assert outcome.state.round == 2
    assert "(a: refused, b: refused, c: refused): the label words are used" in caplog.text
    plain = run_real(backbone, tiny.method(rounds={"rounds": 2}))
    np.testing.assert_array_equal(outcome.coefficients.scales, plain.coefficients.scales)


def test_a_finished_run_asks_for_no_second_readout(backbone: Backbone, tmp_path: Path) -> None:
    method, file = tiny.method(rounds={"rounds": 2}, readout={}), tmp_path / "state"
    clients = real(backbone)
    first = Coordinator(engine_of(clients), tiny.TASK, method, shape_of(backbone), checkpoint_file=file).run()
    asked = len(first.state.traffic)
    again = Coordinator(engine_of(clients), tiny.TASK, method, shape_of(backbone), checkpoint_file=file).run(resume=True)
    assert_same_result(first, again)
    assert (first.readout is None) == (again.readout is None)
    if first.readout is not None and again.readout is not None:
        np.testing.assert_array_equal(first.readout.weights, again.readout.weights)
    assert [item.step for item in again.state.traffic[asked:]] in ([], ["context"] * len(clients))


@pytest.mark.parametrize("layers", [(), (1,), (1, 2)])
def test_the_adapter_keeps_its_readout(backbone: Backbone, tmp_path: Path, layers: tuple[int, ...]) -> None:
    model = ModelSettings(source=backbone.source, device="cpu", dtype="float32")
    hidden = backbone.width * (1 + len(layers))
    weights = np.random.default_rng(3).normal(size=(2, hidden + 3)).astype("f4")
    adapter = replace(runs.zero_shot_adapter(backbone, model, tiny.TASK), readout=Readout(weights, layers))
    adapter.save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    assert loaded.readout is not None
    assert loaded.readout.pooled_layers == layers
    np.testing.assert_array_equal(loaded.readout.weights, weights)
    texts = [example.text for example in tiny.examples(4)]
    ours = loaded.classifier(backbone).log_probabilities(texts)
    raw = replace(loaded, readout=None).classifier(backbone).log_probabilities(texts)
    assert np.abs(ours - raw).max() > 0.1
    assert "readout" in loaded.describe()
    assert "readout" not in replace(loaded, readout=None).describe()


def test_a_readout_for_other_labels_is_a_torn_adapter(backbone: Backbone, tmp_path: Path) -> None:
    model = ModelSettings(source=backbone.source, device="cpu", dtype="float32")
    readout = Readout(np.zeros((3, backbone.width + 4), "f4"))
    replace(runs.zero_shot_adapter(backbone, model, tiny.TASK), readout=readout).save(tmp_path / "a")
    with pytest.raises(AdapterError, match="readout"):
        Adapter.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("sections", "more"),
    [({}, None), ({"readout": {"pooled_depths": []}}, 9), ({}, 3)],
    ids=["sums not asked for", "of another width", "a readout not asked for"],
)
def test_a_client_refuses_what_the_method_does_not_have(backbone: Backbone, sections: dict[str, Any], more: int | None) -> None:
    client, manifest = real(backbone)[0], job_of(tiny.method(**sections), backbone)
    assert client.handle(JobRequest(manifest)) == JobReply()
    install = context_of(manifest, Context(np.zeros((backbone.layers, 2, backbone.width), "f4")))
    assert client.handle(install) == ContextReply()
    identity = Coefficients.identity(Form(backbone.layers))
    if more is not None:
        wrong = Readout(np.zeros((2, backbone.width + more), "f4"))
        reply = client.handle(EvaluateRequest(install.context_id, identity, (wrong,), TEMPERATURES, SHARES))
    else:
        reply = client.handle(StatisticsRequest(install.context_id, identity))
    assert reply == Failure(FailureCode.BAD_REQUEST)


_LIES: dict[str, Callable[[ReadoutSums], ReadoutSums]] = {
    "squares that are no numbers": lambda sums: replace(sums, diagonal=sums.diagonal * np.nan),
    "squares beyond the largest": lambda sums: replace(sums, diagonal=sums.diagonal + 1e9),
    "means beyond the squares": lambda sums: replace(sums, moment=sums.moment + 50.0 * sums.examples),
    "an endless sketch": lambda sums: replace(sums, sketch=sums.sketch + 1e30),
    "the sketch of other features": lambda sums: replace(sums, sketch=sums.sketch[:, :-2], along=sums.along[:-2]),
    "no examples": lambda sums: replace(sums, counts=np.zeros_like(sums.counts)),
}


class _Liar(Client):
    """Sums that are not, or an answer too few."""

    lie = staticmethod(_LIES["squares that are no numbers"])

    def handle(self, request: Any) -> Any:
        reply = super().handle(request)
        if isinstance(reply, StatisticsReply):
            return StatisticsReply(self.lie(reply.sums))
        if isinstance(reply, EvaluateReply) and len(reply.tallies) > 1:
            return EvaluateReply(reply.tallies[:-1])
        return reply


@pytest.mark.parametrize("lie", _LIES)
def test_a_liar_changes_nothing(backbone: Backbone, lie: str) -> None:
    honest = real(backbone)
    liar = _Liar(honest[0].name, honest[0].examples, backbone, secret=b"x")
    liar.lie = _LIES[lie]
    method = tiny.method(rounds={"rounds": 1}, readout={})
    outcome = run_real(backbone, method, engine=engine_of([liar, *honest[1:]]))
    bad = [(item.client, item.step) for item in outcome.state.traffic if item.failure == "bad_reply"]
    assert bad == [(liar.name, "statistics"), (liar.name, "evaluate")]
    assert outcome.readout is None or np.isfinite(outcome.readout.weights).all()


def test_a_sketch_that_is_no_gram_matrix_leaves_numbers_that_can_be_used(backbone: Backbone) -> None:
    """Nobody can see that it is wrong. The diagonal bounds what it says, and held-out examples choose."""
    honest = real(backbone)
    liar = _Liar(honest[0].name, honest[0].examples, backbone, secret=b"x")
    liar.lie = lambda sums: replace(sums, sketch=-sums.sketch)
    outcome = run_real(backbone, tiny.method(rounds={"rounds": 1}, readout={}), engine=engine_of([liar, *honest[1:]]))
    assert [item.step for item in outcome.state.traffic if item.failure == "bad_reply"] == ["evaluate"]
    assert outcome.readout is None or np.isfinite(outcome.readout.weights).all()


def test_a_readout_without_held_out_examples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"holdout\.selection"):
        tiny.method(holdout={"selection": 0.0}, readout={})
