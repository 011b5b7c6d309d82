"""One-shot mode: no rounds and no injection. One message of each client gives a readout of the raw model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ConfigError
from ifedicl.federation.client import Client
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import (
    ContextRequest,
    Failure,
    FailureCode,
    JobReply,
    JobRequest,
    StatisticsReply,
    StatisticsRequest,
    UpdateRequest,
    VectorsRequest,
)
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.settings import Method, ModelSettings
from ifedicl.settings.presets import load_preset
from tests.support import tiny
from tests.support.jobs import job_of

ONE_SHOT = load_preset("one-shot")


def one_shot(**settings: Any) -> Method:
    return Method.model_validate(ONE_SHOT.model_dump() | settings)


def clients_of(backbone: Backbone) -> tuple[Client, ...]:
    rows = tiny.examples(48)
    return runs.simulate(backbone, tiny.TASK, {f"ward-{n}": rows[12 * n : 12 * n + 12] for n in range(4)})


def run(backbone: Backbone, method: Method, **options: Any) -> runs.Federated:
    clients = clients_of(backbone)
    return runs.federate(clients, ModelSettings(source="tiny"), tiny.TASK, method, options=runs.RunOptions(**options))


def test_a_run_without_rounds_is_one_sum_and_one_choice(backbone: Backbone) -> None:
    outcome = run(backbone, one_shot()).outcome
    assert [item.step for item in outcome.state.traffic if item.client == "ward-0"] == [
        "job",
        "statistics",
        "products",
        "products",
        "products",
        "evaluate",
    ]
    assert outcome.chosen_round == 0
    assert outcome.coefficients.count == 0
    assert outcome.context.layers == range(0)
    assert outcome.state.zero_shot is not None


def test_secure_sums_give_the_same_readout(backbone: Backbone) -> None:
    secure = one_shot(privacy={"mode": "secure", "min_examples": 1})
    figures = [run(backbone, method).outcome.state for method in (one_shot(), secure)]
    plain, summed = (figure.zero_shot for figure in figures)
    assert plain is not None
    assert summed is not None
    assert (plain.examples, plain.correct) == (summed.examples, summed.correct)
    assert plain.loss_sum == pytest.approx(summed.loss_sum, abs=1e-4)
    readouts = [state.readout for state in figures]
    assert all(readout is None for readout in readouts) or all(readout is not None for readout in readouts)


def test_its_adapter_can_be_stored_and_used(backbone: Backbone, tmp_path: Path) -> None:
    adapter = run(backbone, one_shot()).adapter
    adapter.save(tmp_path / "adapter")
    texts = [example.text for example in tiny.examples(6)]
    stored = Adapter.load(tmp_path / "adapter").classifier(backbone)
    expected = adapter.classifier(backbone)
    np.testing.assert_array_equal(
        [answer.probabilities for answer in stored.classify(texts)],
        [answer.probabilities for answer in expected.classify(texts)],
    )


def test_a_resumed_run_asks_for_nothing_again(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    first = run(backbone, one_shot(), checkpoint=file)
    again = run(backbone, one_shot(), checkpoint=file, resume=True)
    assert len(again.outcome.state.traffic) == len(first.outcome.state.traffic)


def test_more_rounds_of_a_run_without_rounds_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    run(backbone, one_shot(), checkpoint=file)
    with pytest.raises(ConfigError, match=r"--more-rounds.*rounds\.rounds is 0"):
        run(backbone, one_shot(), checkpoint=file, more_rounds=3)


@pytest.mark.parametrize("section", ["subspace", "server"])
def test_settings_of_an_injection_are_refused(section: str) -> None:
    with pytest.raises(ValueError, match=rf"\[{section}\] must be left out"):
        one_shot(**{section: {}})


def test_a_run_that_learns_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[readout\] must be there"):
        one_shot(readout=None)


def test_a_job_without_rounds_gives_no_vectors_no_update_and_takes_no_global_vectors(backbone: Backbone) -> None:
    method = one_shot()
    job, others = job_of(method, backbone), job_of(Method(), backbone)
    (client, *_) = clients_of(backbone)
    assert client.handle(JobRequest(job)) == JobReply()
    name = context_id(job.digest, job.no_context)
    assert isinstance(client.handle(StatisticsRequest(name, job.identity)), StatisticsReply)
    for request in (
        VectorsRequest(job.digest, ""),
        ContextRequest(job.digest, job.no_context, "float32"),
        UpdateRequest(name, 0, 0, 1, job.identity),
        StatisticsRequest(name, others.identity),
    ):
        assert client.handle(request) == Failure(FailureCode.BAD_REQUEST)


def test_the_sample_has_the_steps_of_a_run(backbone: Backbone) -> None:
    manifest = Manifest.of(tiny.TASK, one_shot(), backbone.shape)
    steps = sample_exchange(manifest, SampleCounts(np.array([10]), 4, 4))
    assert list(steps) == ["job", "statistics", "products", "readouts"]
