"""Several labels: what the model is asked, the loss, the sums of a readout, and whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import LABELS
from ifedicl.backbone.scoring import Scorer
from ifedicl.backbone.set_scoring import SetScorer
from ifedicl.core.readout_sums import ReadoutSums
from ifedicl.core.sketch import OWN
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64
from ifedicl.errors import ConfigError, TaskError
from ifedicl.federation.driver import RunOptions
from ifedicl.federation.events import Event
from ifedicl.federation.messages import StatisticsReply, decode_reply, encode
from ifedicl.federation.reply_sums import Total
from ifedicl.kinds.classify import Example, Task
from ifedicl.kinds.label_sets import MultiLabelExample, has_label
from ifedicl.kinds.multi_label import MultiLabelTask
from ifedicl.settings import Method, ModelSettings, load_preset, validated
from ifedicl.settings.config import check_task
from ifedicl.settings.presets import changed
from tests.support import private
from tests.support.label_sets import TASK, examples
from tests.support.readouts import directions_of
from tests.support.stopping import StopError, stop_behind

HANDS = {name: examples(count, seed=seed) for seed, (name, count) in enumerate({"a": 12, "b": 8, "c": 14}.items())}
MODEL = ModelSettings(source="tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scorer(backbone: Backbone) -> SetScorer:
    return SetScorer(backbone, TASK)


# What the model is asked


def test_scores_are_those_of_a_classification_with_the_threshold_word_first(backbone: Backbone, scorer: SetScorer) -> None:
    plain = Task(name="p", labels=TASK.words, template=TASK.template, normalise_length=True)
    asked = examples(9)
    expected = Scorer(backbone, plain).scores(Scorer(backbone, plain).encoded([Example(each.text, "bad") for each in asked]))
    np.testing.assert_array_equal(scorer.scores(scorer.encoded(asked)), expected)


def test_the_loss_is_the_binary_cross_entropy_of_each_label_and_is_that_of_the_figures(scorer: SetScorer) -> None:
    encoded = scorer.encoded(examples(6))
    scores = scorer.label_scores(encoded.prompts.tokens).double()
    truth = torch.tensor(has_label(encoded.labels, 3), dtype=torch.float64)
    odds = scores[:, 1:] - scores[:, :1]
    expected = -(truth * odds.sigmoid().log() + (1 - truth) * (1 - odds.sigmoid()).log()).sum(dim=1)
    losses = scorer.losses(LABELS, encoded.prompts.tokens, encoded.labels)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-5)
    tally = TASK.tally(scores.numpy(), encoded.labels)
    assert tally.loss_sum == pytest.approx(float(losses.sum()), rel=1e-4)


def test_a_demonstration_shows_all_labels_and_the_threshold_word_where_there_are_none(scorer: SetScorer) -> None:
    asked = [MultiLabelExample("x", frozenset({"at home", "warm"})), MultiLabelExample("x", frozenset())]
    encoded = scorer.encoded(asked)
    first, second = scorer.demonstrations(encoded.prompts.tokens, encoded.labels, "label")
    decode = scorer.backbone.tokenizer.decode
    assert decode(list(first)).endswith("Place: warm at home")
    assert decode(list(second)).endswith("Place: bad")
    assert scorer.demonstrations(encoded.prompts.tokens, encoded.labels, "prompt") == list(encoded.prompts.tokens)


def test_in_stage_1_an_example_counts_for_one_of_its_labels(scorer: SetScorer) -> None:
    asked = examples(60)
    groups = scorer.classes_of(scorer.encoded(asked).labels)
    assert set(groups) == {0, 1, 2, 3}
    for example, group in zip(asked, groups, strict=True):
        assert (TASK.labels[group - 1] in example.labels) if group else not example.labels


# Sums


ROWS = np.random.default_rng(8).normal(size=(90, 9))
NOISE = 0.7 * np.random.default_rng(9).normal(size=(90, 3))
MARKS = np.concatenate([np.ones((90, 1)), ROWS[:, :3] + NOISE > 0.5], axis=1).astype(np.int64)
WHOLE = directions_of(9, 4)


def sums_of(rows: slice) -> ReadoutSums:
    return ReadoutSums.of(ROWS[rows], MARKS[rows], 4, Units.none(9), WHOLE)


def test_sums_of_clients_are_those_of_all_examples_and_count_them_once() -> None:
    total = Total[StatisticsReply](StatisticsReply)
    for part in (slice(0, 25), slice(25, 90)):
        total.add(StatisticsReply(sums_of(part)))
    assert total.reply is not None
    ours, whole = total.reply.sums, sums_of(slice(None))
    assert ours.examples == whole.examples == 90 < MARKS.sum()
    np.testing.assert_array_equal(ours.counts, np.stack([MARKS.sum(axis=0), 90 - MARKS.sum(axis=0)]))
    np.testing.assert_allclose(ours.total, ROWS.sum(axis=0))
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(ours.arrays[name], array, rtol=1e-9, atol=1e-9)


def test_the_readout_is_ridge_regression_of_each_label_stretched_from_no_to_yes() -> None:
    readout = sums_of(slice(None)).solve(WHOLE)[0]
    standard = np.append((ROWS - ROWS.mean(axis=0)) / ROWS.std(axis=0), np.ones((90, 1)), axis=1)
    penalty = np.concatenate([standard, np.sqrt(0.5 * 90) * np.eye(9, 10)])
    expected = standard @ np.linalg.lstsq(penalty, np.concatenate([MARKS, np.zeros((9, 4))]), rcond=None)[0]
    scores = np.append(ROWS, np.ones((90, 1)), axis=1) @ readout.weights.T.astype(np.float64)
    for place in (1, 2, 3):
        has = MARKS[:, place] == 1
        assert np.corrcoef(scores[:, place], expected[:, place])[0, 1] > 0.9999
        assert expected[has, place].mean() - expected[~has, place].mean() < 0.8
        np.testing.assert_allclose([scores[~has, place].mean(), scores[has, place].mean()], [0, 1], atol=0.01)
    np.testing.assert_allclose(scores[:, 0], 0.5, atol=1e-3)
    assert ((scores[:, 1:] > 0.5) == MARKS[:, 1:]).mean() > 0.8


def test_what_travels_comes_back_and_gives_about_the_same_readout() -> None:
    sums = sums_of(slice(None))
    reply = decode_reply(encode(StatisticsReply(sums)))
    assert isinstance(reply, StatisticsReply)
    back = reply.sums
    assert back.overlaps
    assert back.is_possible
    np.testing.assert_array_equal(back.counts, sums.counts)
    np.testing.assert_allclose(back.mean, sums.mean, atol=0.02)
    ours, exact = (np.append(ROWS, np.ones((90, 1)), axis=1) @ each.solve(WHOLE)[1].weights.T for each in (back, sums))
    agree = (ours[:, 1:] > ours[:, :1]) == (exact[:, 1:] > exact[:, :1])
    assert agree.mean() > 0.95


def test_one_message_of_many_overlapping_labels_has_directions_for_each_of_them() -> None:
    apart, together = (OWN.counts(2335, 31, 3, is_one_shot=True, overlaps=overlaps) for overlaps in (False, True))
    assert (apart, together) == ((13, 1), (12, 11))


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 0), (1, 3)])
def test_counts_that_no_examples_have_are_impossible(place: tuple[int, int]) -> None:
    sums = sums_of(slice(None))
    counts: Array64 = sums.counts.copy()
    counts[place] += 5
    assert sums.is_possible
    assert not replace(sums, counts=counts).is_possible


# Whole runs


def method(preset: str = "subspace", **sections: Any) -> Method:
    short: dict[str, Any] = {"rounds": {"rounds": 3, "evaluate_every": 1}} if preset != "one-shot" else {}
    return changed(load_preset(preset), {**short, **sections}, "test")


def federated(backbone: Backbone, chosen: Method, **options: Any) -> runs.Federated:
    clients = runs.simulate(backbone, TASK, HANDS, seed=0)
    return runs.federate(clients, MODEL, TASK, chosen, options=RunOptions(**options))


@pytest.mark.parametrize(
    ("preset", "privacy"),
    [("subspace", None), ("one-shot", None), ("subspace", {"mode": "secure", "min_examples": 2})],
    ids=["rounds", "one message", "secure"],
)
def test_a_federation_gives_an_adapter_that_answers_sets(
    backbone: Backbone, tmp_path: Path, preset: str, privacy: dict[str, Any] | None
) -> None:
    result = federated(backbone, method(preset, **({} if privacy is None else {"privacy": privacy})))
    assert not [item for item in result.outcome.state.traffic if item.failure]
    result.adapter.save(tmp_path / "adapter")
    loaded = Adapter.load(tmp_path / "adapter")
    assert loaded.task == TASK
    ready, asked = loaded.on_model(backbone), examples(7, seed=9)
    answers = ready.answers(asked)
    assert all(set(answer.value) <= set(TASK.labels) and 0 < answer.confidence <= 1 for answer in answers)
    evaluation = ready.evaluate(asked)
    assert evaluation.hits.tolist() == [float(set(a.value) == e.labels) for a, e in zip(answers, asked, strict=True)]
    assert tuple(evaluation.figures) == ("micro-F1", "macro-F1", "Hamming loss")


def test_a_run_that_is_stopped_and_resumed_ends_bit_for_bit_the_same(backbone: Backbone, tmp_path: Path) -> None:
    events: list[Event] = []
    whole = federated(backbone, method(), observer=events.append)
    for moment in np.linspace(1, len(events) - 1, 5, dtype=int):
        file = tmp_path / f"stopped-{moment}"
        with pytest.raises(StopError):
            federated(backbone, method(), checkpoint=file, observer=stop_behind(int(moment)))
        resumed = federated(backbone, method(), checkpoint=file, resume=file.exists())
        assert resumed.adapter.header_and_tensors() == whole.adapter.header_and_tensors()


def test_what_is_not_defined_for_several_labels_is_refused() -> None:
    vocabulary = method(calibration={"loss": "vocabulary"})
    with pytest.raises(ValueError, match=r'calibration.loss "vocabulary" is not defined for task.kind "multi-label"'):
        check_task(vocabulary, TASK)
    noise = private.private_method()
    with pytest.raises(ValueError, match=r'task.kind "multi-label" has no sums with noise'):
        check_task(noise, TASK)


def test_uses_that_need_one_label_are_refused_by_name(backbone: Backbone) -> None:
    raw = runs.zero_shot_adapter(backbone, MODEL, TASK)
    with pytest.raises(TaskError, match=r"received 'multi-label'; allowed for Adapter.classifier: 'classify'"):
        raw.classifier(backbone)
    with pytest.raises(ConfigError, match="threshold"):
        validated(MultiLabelTask, {"name": "x", "labels": ["none", "b"]}, "test")
