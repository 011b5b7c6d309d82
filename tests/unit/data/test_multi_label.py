"""Texts with several labels: what a file's rows become, and figures against scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from ifedicl.data import read_examples, read_labelled, read_questions
from ifedicl.errors import ConfigError, DataError, InputError
from ifedicl.kinds.label_sets import LabelSet, MultiLabelEvaluation, MultiLabelExample
from ifedicl.kinds.multi_label import MultiLabelTask
from ifedicl.settings import validated

TASK = MultiLabelTask(name="topics", labels=("home", "travel", "a;b"))
TRUTH = np.random.default_rng(3).random((200, 4)) < (0.5, 0.3, 0.05, 0.0)
ODDS = 3 * (TRUTH - 0.5) + 1.5 * np.random.default_rng(4).normal(size=TRUTH.shape) - (0, 0, 0, 9)
SCORES = np.concatenate([np.zeros((200, 1)), ODDS], axis=1)
RESULT = MultiLabelEvaluation.of("wxyz", SCORES, TRUTH)


def sets_of(truth: Any) -> list[LabelSet]:
    return [LabelSet(tuple(map(int, np.flatnonzero(row))), 0) for row in truth]


# Data


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (["home", "travel"], {"home", "travel"}),
        ([], set()),
        ("", set()),
        ('["travel", "a;b"]', {"travel", "a;b"}),
        ("home; travel", {"home", "travel"}),
        ("travel|home|", {"home", "travel"}),
        ("a;b", {"a;b"}),
        ("home", {"home"}),
    ],
)
def test_a_cell_is_a_list_or_names_with_separators(tmp_path: Path, cell: Any, labels: set[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a text", "labels": cell}) + "\n")
    assert read_examples(file, TASK, label="labels") == (MultiLabelExample("a text", frozenset(labels)),)


def test_a_table_of_an_owner_who_learns_the_task_later_gives_the_same_sets(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,label\none,home;travel\ntwo,""\nthree,elsewhere\n')
    one, two, three = read_labelled(file, kind=MultiLabelTask)
    assert TASK.set_of(one).places == (0, 1)
    assert TASK.set_of(two) == LabelSet((), 0)
    assert [TASK.takes(example) for example in (one, two, three)] == [True, True, False]
    assert one.key != MultiLabelExample("one", frozenset()).key
    assert TASK.summary_of((one, two)) == {"home": 1, "travel": 1, "(none)": 1}


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["home", "rome"], r"line 1: label 'rome' is not in the task.*did you mean 'home'"),
        ("[home]", "text that is no JSON list"),
        ([["home"]], "received a list; allowed: text"),
        (None, "column 'label' is empty"),
    ],
)
def test_a_faulty_cell_is_named_without_the_text(tmp_path: Path, cell: Any, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "secret", "label": cell}) + "\n")
    with pytest.raises(DataError, match=words) as caught:
        read_examples(file, TASK)
    assert "secret" not in str(caught.value)


def test_texts_without_labels_can_be_asked(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\ntwo\n")
    assert [example.text for example in read_questions(file, TASK)] == ["one", "two"]


def test_wrong_examples_are_refused() -> None:
    wrong: Any = ["home"]
    with pytest.raises(InputError, match="allowed: a frozenset"):
        MultiLabelExample("a text", wrong)
    with pytest.raises(DataError, match="all examples have the same labels"):
        TASK.check_all([MultiLabelExample("a", frozenset({"home"})), MultiLabelExample("b", frozenset({"home"}))])
    with pytest.raises(DataError, match="1 examples have labels that are not in the task"):
        TASK.check_all([MultiLabelExample("a", frozenset({"home"})), MultiLabelExample("b", frozenset({"Mars"}))])


def test_the_threshold_word_is_no_label_word() -> None:
    with pytest.raises(ConfigError, match="threshold_word: received 'home'"):
        validated(MultiLabelTask, {"name": "t", "labels": ["home", "out"], "threshold_word": "home"}, "a test")


# Figures


def test_figures_are_those_of_scikit_learn() -> None:
    predicted = SCORES[:, 1:] > 0
    assert RESULT.accuracy == pytest.approx(reference.accuracy_score(TRUTH, predicted))
    assert RESULT.micro_f1 == pytest.approx(reference.f1_score(TRUTH, predicted, average="micro"))
    assert RESULT.macro_f1 == pytest.approx(reference.f1_score(TRUTH[:, :3], predicted[:, :3], average="macro"))
    assert RESULT.hamming_loss == pytest.approx(reference.hamming_loss(TRUTH, predicted))
    assert 0.4 < RESULT.macro_f1 < RESULT.micro_f1 < 1  # of the last label, which occurs nowhere, there is no F1
    probabilities = np.clip(1 / (1 + np.exp(-SCORES[:, 1:])), 1e-12, 1 - 1e-12)
    by_label = [reference.log_loss(TRUTH[:, place], probabilities[:, place], labels=[0, 1]) for place in range(4)]
    assert RESULT.loss == pytest.approx(sum(by_label), rel=1e-5)


def test_the_interval_of_micro_f1_holds_it_and_is_the_same_again() -> None:
    low, high = RESULT.micro_f1_interval
    assert low < RESULT.micro_f1 < high < low + 0.15
    assert RESULT.micro_f1_interval == (low, high)


def test_confidence_is_the_probability_of_the_answered_set() -> None:
    odds = np.abs(SCORES[:, 1:])
    np.testing.assert_allclose(RESULT.confidence.values, (1 / (1 + np.exp(-odds))).prod(axis=1), rtol=1e-9)
    answer = TASK.answered(np.log([[0.2, 0.5, 0.1, 0.2]]), (), ())[0]
    assert (answer.value, answer.shown) == (["home"], "home")
    assert answer.facts["probabilities"]["home"] == pytest.approx(0.5 / 0.7)


def test_nothing_said_and_nothing_true_counts_as_no_figure() -> None:
    empty = MultiLabelEvaluation.of("ab", np.array([[1.0, 0.0, 0.0]]), np.zeros((1, 2), dtype=np.bool_))
    assert (empty.accuracy, empty.micro_f1, empty.macro_f1, empty.hamming_loss) == (1.0, 0.0, 0.0, 0.0)
    assert empty.summary()["labels"] == ("a", "b")


def test_a_tally_counts_whole_sets_and_those_of_parts_add_up() -> None:
    task = MultiLabelTask(name="t", labels=tuple("wxyz"))
    whole = task.tally(SCORES, sets_of(TRUTH))
    parts = task.tally(SCORES[:70], sets_of(TRUTH[:70])) + task.tally(SCORES[70:], sets_of(TRUTH[70:]))
    assert (whole.examples, whole.correct) == (200, int(RESULT.hits.sum())) == (parts.examples, parts.correct)
    assert whole.loss_sum == pytest.approx(parts.loss_sum)
    assert whole.loss == pytest.approx(RESULT.loss)


def test_the_gate_opens_for_sets_that_are_right_and_not_for_those_of_other_texts() -> None:
    task, raw = MultiLabelTask(name="t", labels=tuple("wxyz")), np.zeros_like(SCORES)
    assert task.comparison(SCORES, raw, sets_of(TRUTH)).is_open
    assert not task.comparison(SCORES, raw, sets_of(np.roll(TRUTH, 1, axis=0))).is_open
    assert not task.comparison(raw, raw, sets_of(TRUTH)).is_open
