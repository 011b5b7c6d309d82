"""Adapters called as transformers' pipelines and scikit-learn's estimators are."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from ifedicl import Adapter, AdapterClassifier, pipeline
from ifedicl.backbone.load import Backbone
from ifedicl.errors import DataError, InputError
from ifedicl.kinds.classify import Task
from tests.support import tiny

TEXTS = list(tiny.SENTENCES)
LABELS = [tiny.TASK.labels[number % 2] for number in range(len(TEXTS))]


@pytest.fixture
def adapter(backbone: Backbone) -> Adapter:
    provenance = {"method": tiny.method().model_dump(mode="json")}
    return replace(tiny.drawn_adapter(backbone, rank=4), provenance=provenance)


# As a pipeline


def test_it_is_called_as_a_text_classification_pipeline_is(adapter: Adapter, backbone: Backbone, tmp_path: Path) -> None:
    adapter.save(tmp_path / "adapter")
    labelled = adapter.classifier(backbone).classify(TEXTS)
    called = pipeline(tmp_path / "adapter", backbone=backbone)
    best = [{"label": item.label, "score": pytest.approx(item.probabilities[item.label], abs=1e-6)} for item in labelled]
    assert called(TEXTS) == best
    assert called(TEXTS[0]) == best[:1]
    ranked = called(TEXTS, top_k=None)
    assert [own[0]["label"] for own in ranked] == [item.label for item in labelled]
    assert all(sum(item["score"] for item in own) == pytest.approx(1) for own in ranked)
    assert [len(own) for own in called(TEXTS, top_k=1)] == [1] * len(TEXTS)
    assert called(TEXTS[0], top_k=2) == ranked[0]


def test_it_gives_what_transformers_own_pipeline_gives(tmp_path: Path) -> None:
    """Form by form, of any text-classification model."""
    from transformers import AutoModelForSequenceClassification
    from transformers import pipeline as theirs

    model = AutoModelForSequenceClassification.from_config(tiny.config("llama", num_labels=2))
    called = theirs("text-classification", model=model, tokenizer=tiny.tokenizer(), device="cpu")
    folder = tiny.save_model(tmp_path / "model")
    ours = pipeline(tiny.drawn_adapter(tiny.load(folder), source=str(folder)))

    def form(value: object) -> object:
        if isinstance(value, list):
            return [form(item) for item in value]
        return {key: type(item) for key, item in value.items()} if isinstance(value, dict) else type(value)

    for arguments in ((TEXTS,), (TEXTS[0],)):
        assert form(ours(*arguments)) == form(called(*arguments))
        for top_k in (1, 2, None):
            assert form(ours(*arguments, top_k=top_k)) == form(called(*arguments, top_k=top_k)), (arguments, top_k)


def test_answers_that_are_too_unsure_are_withheld_as_by_the_command(adapter: Adapter, backbone: Backbone) -> None:
    labelled = adapter.classifier(backbone).classify(TEXTS)
    least = float(np.median([item.confidence for item in labelled]))
    expected = [item.answer(least) for item in labelled]
    assert 0 < expected.count(None) < len(TEXTS)

    called = pipeline(adapter, backbone=backbone)
    found = called(TEXTS, min_confidence=least)
    assert [item["label"] for item in found] == expected
    assert [item["score"] for item in found] == [item["score"] for item in called(TEXTS)]
    with pytest.raises(InputError, match=r"received 0\.5 with top_k"):
        called(TEXTS, top_k=2, min_confidence=0.5)  # type: ignore[call-overload]

    fitted = AdapterClassifier(adapter, backbone=backbone).fit(TEXTS, LABELS)
    sure = float(np.median(fitted.predict_proba(TEXTS).max(axis=1)))
    answers = fitted.answers(TEXTS, sure)
    is_given = fitted.predict_proba(TEXTS).max(axis=1) >= sure
    assert 0 < is_given.sum() < len(TEXTS)
    assert answers.tolist() == [label if given else None for label, given in zip(fitted.predict(TEXTS), is_given, strict=True)]
    assert fitted.answers(TEXTS, 0).tolist() == fitted.predict(TEXTS).tolist()
    assert fitted.answers([], 0.5).shape == (0,)


@pytest.mark.parametrize("wrong", [1.5, -0.1, True, "0.5", None, float("nan")])
def test_a_least_confidence_that_is_no_probability_is_refused(wrong: Any, adapter: Adapter, backbone: Backbone) -> None:
    fitted = AdapterClassifier(adapter, backbone=backbone).fit(TEXTS, LABELS)
    for ask in (
        lambda: pipeline(adapter, backbone=backbone)(TEXTS, min_confidence=wrong),
        lambda: fitted.answers(TEXTS, wrong),
    ):
        with pytest.raises(InputError, match=r"min_confidence: received .*; allowed: a number from 0 to 1"):
            ask()


# As an estimator


def test_it_predicts_what_the_adapter_says_with_classes_in_order(backbone: Backbone) -> None:
    task = Task(name="mood", labels=("good", "bad"), template="Text: {text}\nMood:")
    adapter = tiny.drawn_adapter(backbone, task, rank=4)
    fitted = AdapterClassifier(adapter, backbone=backbone).fit(TEXTS, LABELS)
    assert list(fitted.classes_) == ["bad", "good"]
    expected = adapter.classifier(backbone).classify(TEXTS)
    assert list(fitted.predict(TEXTS)) == [item.label for item in expected]
    np.testing.assert_allclose(fitted.predict_proba(TEXTS)[:, 1], [item.probabilities["good"] for item in expected], atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(TEXTS).sum(axis=1), 1, atol=1e-12)
    assert fitted.score(TEXTS, fitted.predict(TEXTS)) == 1
    assert fitted.predict([]).shape == (0,)
    array: Any = np.array(TEXTS)  # which scikit-learn makes of lists here and there
    np.testing.assert_array_equal(fitted.predict(array), fitted.predict(TEXTS))


def test_it_works_in_pipelines_cross_validation_and_searches_over_one_shared_model(
    adapter: Adapter, backbone: Backbone
) -> None:
    model = make_pipeline(
        FunctionTransformer(lambda texts: [text.lower() for text in texts]), AdapterClassifier(adapter, backbone=backbone)
    )
    assert clone(model)[-1].backbone is backbone
    texts, labels = TEXTS * 4, LABELS * 4
    scores = cross_val_score(model, texts, labels, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    searched = GridSearchCV(AdapterClassifier(adapter, backbone=backbone), {"steps": [0, 4]}, cv=2).fit(texts, labels)
    assert searched.best_params_["steps"] in (0, 4)
    assert set(searched.predict(TEXTS)) <= {"good", "bad"}


def test_with_steps_fit_takes_the_adapter_further_where_that_is_better(adapter: Adapter, backbone: Backbone) -> None:
    examples = tiny.examples(40)
    texts, labels = [row.text for row in examples], [row.label for row in examples]
    fitted = AdapterClassifier(adapter, backbone=backbone, steps=8).fit(texts, labels)
    again = clone(fitted).fit(texts, labels)
    np.testing.assert_array_equal(fitted.adapter_.coefficients.scales, again.adapter_.coefficients.scales)
    untouched = AdapterClassifier(adapter, backbone=backbone).fit(texts, labels)
    assert untouched.adapter_ is adapter


def test_what_it_cannot_use_is_named(adapter: Adapter, backbone: Backbone) -> None:
    estimator = AdapterClassifier(adapter, backbone=backbone)
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)
    with pytest.raises(DataError, match="'great' is not in the task"):
        estimator.fit(TEXTS, ["great"] * len(TEXTS))
    with pytest.raises(DataError, match=r"X: received an array of shape \(3, 2\)"):
        estimator.fit(np.zeros((3, 2)), LABELS[:3])


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_get_params_invariance",
        "check_set_params",
        "check_valid_tag_types",
        "check_estimator_tags_renamed",
        "check_mixin_order",
    ],
)
def test_scikit_learns_own_checks_that_give_no_numbers_pass(check: str) -> None:
    """The others fit numbers, and this estimator takes texts."""
    getattr(estimator_checks, check)("AdapterClassifier", AdapterClassifier())


def test_it_survives_a_pickle_before_it_is_fitted(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(AdapterClassifier(tmp_path, steps=4))).get_params()["steps"] == 4  # noqa: S301
