"""What scikit-learn's tools, data frames and wrong arguments meet in an adapter that is a classifier."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import check_array, estimator_checks
from sklearn.utils.validation import check_is_fitted

from ifedicl import AdapterClassifier, personalise, pipeline, simulate
from ifedicl.backbone.load import Backbone
from ifedicl.errors import DataError, IfediclError, InputError
from ifedicl.kinds.classify import Example, Task
from tests.support import tiny

TEXTS = [f"{sentence} {turn}" for turn in ("today", "at night") for sentence in tiny.SENTENCES[:6]]
N = len(TEXTS)
GRADES = Task(name="grade", labels=("3", "-1", "7"), template="Text: {text}\nGrade:")
ANSWERS = Task(name="answer", labels=("True", "False"), template="Text: {text}\nTrue:")
PLACES = Task(name="place", labels=("sea", "field", "wood"), template="Text: {text}\nPlace:")


def _estimator(backbone: Backbone, task: Task, **settings: Any) -> AdapterClassifier:
    return AdapterClassifier(tiny.drawn_adapter(backbone, task, rank=4), backbone=backbone, **settings)


def _turns(task: Task) -> list[str]:
    """Labels that follow each other, twelve of them."""
    return [task.labels[number % len(task.labels)] for number in range(N)]


# Labels of the caller's own kind


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, np.float64])
def test_numbers_stay_numbers_of_their_dtype(backbone: Backbone, dtype: type[np.generic]) -> None:
    task = Task(name="grade", labels=("7", "0", "12"), template="Text: {text}\nGrade:")
    by_name = _estimator(backbone, task).fit(TEXTS, _turns(task))
    numbers = np.array([int(name) for name in _turns(task)]).astype(dtype)
    fitted = _estimator(backbone, task).fit(TEXTS, numbers)
    assert fitted.classes_.dtype == dtype
    assert fitted.classes_.tolist() == [0, 7, 12]
    assert fitted.predict(TEXTS).dtype == dtype
    assert fitted.predict(TEXTS).tolist() == [int(name) for name in by_name.predict(TEXTS)]
    columns = [by_name.classes_.tolist().index(name) for name in ("0", "7", "12")]
    np.testing.assert_array_equal(fitted.predict_proba(TEXTS), by_name.predict_proba(TEXTS)[:, columns])
    assert fitted.score(TEXTS, numbers) == by_name.score(TEXTS, _turns(task))


def test_a_number_that_its_dtype_cannot_hold_widens_it(backbone: Backbone) -> None:
    fitted = _estimator(backbone, GRADES).fit(TEXTS[:2], np.array([3, 7], dtype=np.uint8))
    assert fitted.classes_.tolist() == [-1, 3, 7]


def test_booleans_stay_booleans(backbone: Backbone) -> None:
    answers = [number % 2 == 0 for number in range(N)]
    fitted = _estimator(backbone, ANSWERS).fit(TEXTS, answers)
    by_name = _estimator(backbone, ANSWERS).fit(TEXTS, list(map(str, answers)))
    assert fitted.classes_.tolist() == [False, True]
    assert fitted.classes_.dtype == bool
    assert fitted.predict(TEXTS).tolist() == [name == "True" for name in by_name.predict(TEXTS)]
    assert fitted.score(TEXTS, answers) == by_name.score(TEXTS, list(map(str, answers)))


def test_an_array_of_objects_stays_one(backbone: Backbone) -> None:
    fitted = _estimator(backbone, PLACES).fit(TEXTS, np.array(_turns(PLACES), dtype=object))
    assert fitted.classes_.dtype == object
    assert list(fitted.classes_) == ["field", "sea", "wood"]


@pytest.mark.parametrize(
    ("task", "convert"),
    [(PLACES, str), (GRADES, int), (ANSWERS, lambda name: name == "True")],
    ids=["names", "numbers", "bools"],
)
def test_cross_validation_voting_and_stacking_give_the_adapters_own_answers(
    backbone: Backbone, task: Task, convert: Any
) -> None:
    estimator = _estimator(backbone, task)
    y = np.array([convert(name) for name in _turns(task)])
    alone = estimator.fit(TEXTS, y).predict(TEXTS)
    scores = cross_val_score(estimator, TEXTS, y, cv=2, error_score="raise")
    assert scores.mean() == pytest.approx((alone == y).mean())
    np.testing.assert_array_equal(cross_val_predict(estimator, TEXTS, y, cv=2), alone)
    for voting in ("hard", "soft"):
        voted = VotingClassifier([("one", estimator), ("two", estimator)], voting=voting).fit(TEXTS, y)
        np.testing.assert_array_equal(voted.predict(TEXTS), alone)
        assert voted.score(TEXTS, y) == (alone == y).mean()
    stacked = StackingClassifier([("one", estimator)], LogisticRegression(), cv=2).fit(TEXTS, y)
    probabilities = estimator.predict_proba(TEXTS)[:, len(task.labels) == 2 :]
    expected = LogisticRegression().fit(probabilities, y).predict(probabilities)
    np.testing.assert_array_equal(stacked.predict(TEXTS), expected)


def test_an_encoders_integers_are_positions_in_the_sorted_names_and_that_is_said(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    names = _turns(PLACES)
    codes = [sorted(PLACES.labels).index(name) for name in names]
    fitted = _estimator(backbone, PLACES).fit(TEXTS, codes)
    by_name = _estimator(backbone, PLACES).fit(TEXTS, names)
    assert [sorted(PLACES.labels)[code] for code in fitted.predict(TEXTS)] == by_name.predict(TEXTS).tolist()
    assert "{0: 'field', 1: 'sea', 2: 'wood'}" in caplog.text
    with pytest.raises(DataError, match=r"'1' is not in the task; .* every position from 0 to 2"):
        _estimator(backbone, PLACES).fit(TEXTS[:2], [1, 2])  # an encoder may have counted two labels only


def test_positions_of_numbers_whose_order_is_not_known_are_refused(backbone: Backbone) -> None:
    task = Task(name="grade", labels=("2", "10", "30"), template="Text: {text}\nGrade:")
    with pytest.raises(DataError, match="sorted as numbers and as text they have different orders"):
        _estimator(backbone, task).fit(TEXTS[:3], [0, 1, 2])


# Scikit-learn's own checks


class OnNumbers(AdapterClassifier):
    """Writes each row of numbers as a text, since the checks make numbers. Arguments are as scikit-learn wants them."""

    def fit(self, X: Any, y: Any) -> OnNumbers:  # noqa: N803
        super().fit(_written(X), y)
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        return super().predict_proba(_written(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.input_tags.one_d_array = False, True, False
        return tags


def _written(rows: Any) -> list[str]:
    return [" ".join(f"{number:.2f}" for number in row) for row in check_array(rows)]


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_fit_score_takes_y",
        "check_estimators_overwrite_params",
        "check_dont_overwrite_parameters",
        "check_estimators_fit_returns_self",
        "check_readonly_memmap_input",
        "check_estimators_unfitted",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_n_features_in_after_fitting",
        "check_positive_only_tag_during_fit",
        "check_estimators_dtypes",
        "check_estimators_empty_data_messages",
        "check_estimators_nan_inf",
        "check_estimators_pickle",
        "check_complex_data",
        "check_dtype_object",
        "check_pipeline_consistency",
        "check_estimator_sparse_tag",
        "check_estimator_sparse_array",
        "check_estimator_sparse_matrix",
        "check_f_contiguous_array_estimator",
        "check_classifiers_regression_target",
        "check_supervised_y_no_nan",
        "check_supervised_y_2d",
        "check_requires_y_none",
        "check_decision_proba_consistency",
        "check_methods_sample_order_invariance",
        "check_fit1d",
        "check_fit2d_1sample",
        "check_fit2d_1feature",
        "check_fit2d_predict1d",
        "check_dict_unchanged",
        "check_fit_idempotent",
        "check_fit_check_is_fitted",
    ],
)
@pytest.mark.filterwarnings("default")
def test_scikit_learns_own_checks_pass_where_rows_are_written_as_text(check: str, backbone: Backbone) -> None:
    """Not applicable: checks of accuracy on made-up numbers, of other labels than the task's, of one class only."""
    task = Task(name="number", labels=tuple("01234"), template="Text: {text}\nNumber:")
    adapter = tiny.drawn_adapter(backbone, task, rank=4)
    getattr(estimator_checks, check)("OnNumbers", OnNumbers(adapter, backbone=backbone))


def test_a_fitted_one_survives_a_pickle(backbone: Backbone) -> None:
    fitted = _estimator(backbone, PLACES).fit(TEXTS, _turns(PLACES))
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    np.testing.assert_allclose(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS), atol=1e-6)


# Tables and other containers


class Frame:
    """A data frame as pandas, polars and datasets all have it: iteration gives the names of its columns."""

    def __init__(self, **columns: list[str]) -> None:
        self._columns = columns
        self.columns = list(columns)
        self.shape = (N, len(columns))

    def __iter__(self) -> Any:
        return iter(self.columns)

    def __getitem__(self, name: str) -> list[str]:
        return self._columns[name]


def _frames() -> dict[str, Any]:
    arrow = partial(pytest.importorskip, reason="for its tables")
    return {
        "stand-in": Frame,
        "pyarrow": lambda **columns: arrow("pyarrow").table(columns),
        "pandas": lambda **columns: arrow("pandas").DataFrame(columns),
        "polars": lambda **columns: arrow("polars").DataFrame(columns),
    }


@pytest.mark.parametrize("kind", _frames())
def test_one_column_of_a_table_is_texts_and_several_are_refused(kind: str, backbone: Backbone) -> None:
    make, task = _frames()[kind], PLACES
    fitted = _estimator(backbone, task).fit(TEXTS, _turns(task))
    expected = fitted.predict(TEXTS).tolist()
    table, whole = make(remark=TEXTS), make(remark=TEXTS, place=_turns(task))
    assert fitted.predict(table).tolist() == expected
    assert fitted.fit(whole["remark"], whole["place"]).predict(whole["remark"]).tolist() == expected
    assert [found["label"] for found in pipeline(fitted.adapter_, backbone=backbone)(whole["remark"])] == expected
    for wrong in (fitted.predict, lambda table: fitted.fit(table, _turns(task)), fitted.adapter_.classifier(backbone).classify):
        with pytest.raises(DataError, match=r"columns 'remark', 'place'; allowed: one column"):
            wrong(whole)


def test_what_other_tools_pass_is_read(backbone: Backbone) -> None:
    fitted = _estimator(backbone, PLACES).fit(tuple(TEXTS), tuple(_turns(PLACES)))
    expected = fitted.predict(TEXTS).tolist()
    as_column = np.array(TEXTS, dtype=object)[:, None]
    assert fitted.predict(as_column).tolist() == expected
    assert make_pipeline(FunctionTransformer(), fitted).predict(TEXTS).tolist() == expected
    assert fitted.predict(text for text in TEXTS).tolist() == expected


# Wrong arguments

WRONG_TEXTS: dict[str, tuple[Any, str]] = {
    "one string": ("cold soup", "received a single string"),
    "bytes": (b"cold soup", "received a single string"),
    "mapping": ({"text": TEXTS}, "received a dict"),
    "set": (set(TEXTS), "received a set"),
    "number": (3, "received an int"),
    "none": (None, r"received nothing \(None\)"),
    "numbers": ([1.5] * N, "received a float as number 1"),
    "hole": ([*TEXTS[:-1], None], f"received nothing \\(None\\) as number {N}"),
    "two columns": (np.array([TEXTS, TEXTS]).T, "an array of shape"),
    "array of one": (np.array("cold soup"), r"an array of shape \(\)"),
}


@pytest.mark.parametrize("kind", WRONG_TEXTS)
def test_texts_of_another_kind_are_refused_wherever_texts_go_in(kind: str, backbone: Backbone) -> None:
    given, message = WRONG_TEXTS[kind]
    fitted = _estimator(backbone, PLACES).fit(TEXTS, _turns(PLACES))
    calls = [fitted.predict, fitted.predict_proba, lambda texts: fitted.fit(texts, _turns(PLACES))]
    calls += [fitted.adapter_.classifier(backbone).classify]
    calls += [pipeline(fitted.adapter_, backbone=backbone)] if kind != "one string" else []
    for call in calls:
        with pytest.raises(IfediclError, match=message) as caught:
            call(given)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (_turns(PLACES)[:-1], f"{N} texts and {N - 1} labels"),
        ([*_turns(PLACES), "sea"], f"{N} texts and {N + 1} labels"),
        ("sea", "y: received a single string"),
        (None, "y: received None"),
        ([*_turns(PLACES)[:-1], None], f"NaN or None as number {N}"),
        (pd.Series([*_turns(PLACES)[:-1], pd.NA], dtype="string"), f"NaN or None as number {N}"),
        (pd.Series([*[0, 1] * (N // 2 - 1), 0, None], dtype="Int64"), f"NaN or None as number {N}"),
        ([*_turns(PLACES)[:-1], pd.NaT], f"NaN or None as number {N}"),
        ([np.array(["sea", "town"])] * N, "received ndarray; allowed: text, integers or booleans, of one type"),
        ([*_turns(PLACES)[:-1], 1], "received int, str; allowed: text, integers or booleans, of one type"),
        ([0.5] * N, "Unknown label type"),
        (["see"] * N, "did you mean 'sea'"),
        (np.zeros((N, 2)), "an array of shape"),
        ([True, False] * (N // 2), "label 'True' is not in the task"),
    ],
)
def test_labels_of_another_kind_or_number_are_refused(y: Any, message: str, backbone: Backbone) -> None:
    with pytest.raises(IfediclError, match=message):
        _estimator(backbone, PLACES).fit(TEXTS, y)


@pytest.mark.parametrize(
    "settings",
    [{"steps": -4}, {"steps": 2.0}, {"steps": True}, {"held_out": 0}, {"held_out": 1.2}, {"held_out": "a"}, {"seed": -1}],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], backbone: Backbone) -> None:
    (name,) = settings
    with pytest.raises(IfediclError, match=f"{name}: received .*; allowed: "):
        _estimator(backbone, PLACES, **settings).fit(TEXTS, _turns(PLACES))
    adapter = tiny.drawn_adapter(backbone, tiny.TASK)
    with pytest.raises(IfediclError, match=f"{name}: received .*; allowed: "):
        personalise(adapter, tiny.examples(20), backbone, **settings)


def test_other_settings_of_a_wrong_kind_are_refused(backbone: Backbone) -> None:
    for name, given in (
        ("adapter", None),
        ("adapter", 3),
        ("adapter", ["runs/mood"]),
        ("model", 3),
        ("backbone", "some/model"),
    ):
        with pytest.raises(IfediclError, match=f"{name}: received "):
            _estimator(backbone, PLACES).set_params(**{name: given}).fit(TEXTS, _turns(PLACES))
    adapter = tiny.drawn_adapter(backbone, PLACES)
    wrong: tuple[Any, ...] = (0, -3, 1.5, True, "2")
    for top_k in wrong:
        with pytest.raises(IfediclError, match="top_k: received "):
            pipeline(adapter, backbone=backbone)(TEXTS, top_k=top_k)


def test_with_steps_numbers_calibrate_as_names_do(backbone: Backbone) -> None:
    provenance = {"method": tiny.method().model_dump(mode="json")}
    adapter = replace(tiny.drawn_adapter(backbone, GRADES, rank=4), provenance=provenance)
    texts, names = TEXTS * 3, _turns(GRADES) * 3
    by_name, by_number = (
        AdapterClassifier(adapter, backbone=backbone, steps=4).fit(texts, y) for y in (names, list(map(int, names)))
    )
    order = np.argsort(by_name.classes_.astype(int))
    np.testing.assert_array_equal(by_number.predict_proba(TEXTS), by_name.predict_proba(TEXTS)[:, order])


def test_examples_of_another_kind_are_refused(backbone: Backbone) -> None:
    classifier = tiny.drawn_adapter(backbone, PLACES).classifier(backbone)
    for wrong in ([("cold soup", "sea")], [{"text": "cold soup", "label": "sea"}]):
        with pytest.raises(IfediclError, match=r"examples: received (tuple|dict) as number 1; allowed: Example"):
            classifier.evaluate(wrong)  # type: ignore[arg-type]


HALF = "caf\ud83d"


@pytest.mark.parametrize("texts", [[HALF, *TEXTS[1:]], [*TEXTS[:-1], "\udcff raw bytes"]], ids=["first", "last"])
def test_half_a_character_is_an_error_that_names_its_text_wherever_texts_go_in(texts: list[str], backbone: Backbone) -> None:
    fitted = _estimator(backbone, PLACES).fit(TEXTS, _turns(PLACES))
    number = 1 + next(place for place, text in enumerate(texts) if text not in TEXTS)
    ask = pipeline(fitted.adapter_, backbone=backbone)
    for call in (fitted.predict, fitted.predict_proba, fitted.adapter_.classifier(backbone).classify, ask):
        with pytest.raises(InputError, match=f"text number {number}: received an unpaired surrogate .* allowed: valid Unicode"):
            call(texts)


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (HALF, "sea", "text of an example: received an unpaired surrogate"),
        ("cold soup", HALF, "label of an example: received an unpaired surrogate"),
        (None, "sea", r"text of an example: received nothing \(None\); allowed: a string"),
        ("cold soup", 3.0, "label of an example: received a float; allowed: a string"),
    ],
)
def test_an_example_holds_valid_text_only(text: Any, label: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Example(text, label)
    assert "cold soup" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "a\tb", 3, "n" * 300, "ü" * 40])
def test_a_simulated_client_has_a_name_that_can_be_seen(name: Any, backbone: Backbone) -> None:
    with pytest.raises(IfediclError, match="clients: received the name "):
        simulate(backbone, tiny.TASK, {name: tiny.examples(4), "other": tiny.examples(4, seed=1)})
