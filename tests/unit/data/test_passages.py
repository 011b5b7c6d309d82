"""Answers of text: rows of files, and figures of what is written against the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl.data import read_examples, read_questions
from ifedicl.errors import ConfigError, DataError, InputError
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.passages import Passage, TextEvaluation, is_match, normalised, slot_f1, slots_of, token_f1
from ifedicl.settings import validated
from tests.support import tiny
from tests.support.passages import TASK, passages


def scores(*rows: tuple[float, float, float, str]) -> Any:
    """As a scorer gives them."""
    array = np.empty((len(rows), 4), dtype=np.object_)
    for place, row in enumerate(rows):
        array[place] = row
    return array


def test_answers_are_compared_without_case_punctuation_and_articles() -> None:
    assert normalised("The  Flow, Español!") == "flow español"
    assert is_match("An album: 'Théo'", "album théo.")
    assert not is_match("theory", "ory"), "articles are whole words"


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [("a red house", "the house", 2 / 3), ("x y", "z", 0.0), ("", "a", 1.0), ("", "x", 0.0), ("x x y", "x y y", 2 / 3)],
)
def test_token_f1_counts_the_words_that_both_have(answer: str, truth: str, expected: float) -> None:
    assert token_f1(answer, truth) == pytest.approx(expected)


def test_a_slot_is_right_if_its_name_and_its_value_are() -> None:
    assert slots_of("Object name: Join: The Dots; year: 1999;") == {("object name", "join dots"): 1, ("year", "1999"): 1}
    truths = ["artist: A-ha; year: 1985", "city: Oslo"]
    assert slot_f1(truths, truths) == 1.0
    assert slot_f1(["year: 1985; artist: aha", "Oslo"], truths) == pytest.approx(2 * 2 / (3 + 3)), "any order"
    assert slot_f1(["city: 1985", "town: Oslo; and more"], truths) == 0.0
    assert slot_f1(["year: 1985; year: 1985", ""], truths) == pytest.approx(2 / (2 + 3)), "each slot counts once"
    assert slot_f1([""], [""]) == 0.0


def test_the_figures_of_a_set_are_those_of_its_answers() -> None:
    given = scores((-1.0, 1.0, np.log(0.9), "city: Oslo"), (-3.0, 0.0, np.log(0.5), "Oslo"))
    found = TextEvaluation.of(given, ["city: oslo", "city: Bergen"])
    assert (found.examples, found.accuracy, found.loss) == (2, 0.5, 2.0)
    assert found.figures == {"slot F1": pytest.approx(0.5), "token F1": pytest.approx(0.5)}
    np.testing.assert_allclose(found.confidence.values, [0.9, 0.5])
    assert found.confidence.brier == pytest.approx(0.01 + 0.25)
    assert json.loads(json.dumps(found.summary()))["slot_f1"] == 0.5
    assert set(TextEvaluation.of(given, ["Oslo", "Oslo"]).figures) == {"token F1"}, "without slots in the truth"


def test_tally_and_comparison_count_exact_tokens() -> None:
    ours, raw = np.array([[-1.0, 1.0], [-2.0, 0.0], [-1.5, 1.0]]), np.array([[-2.0, 0.0], [-2.0, 0.0], [-2.0, 1.0]])
    tally = TASK.tally(ours, [])
    assert (tally.examples, tally.correct, tally.loss) == (3, 2, 1.5)
    compared = TASK.comparison(ours, raw, [])
    assert (compared.disagreements, compared.squared_gains) == (1, 1.25)
    assert (compared.truth, compared.answers) == ((3,), (3,))


@pytest.mark.parametrize(("right", "is_open"), [(0.0, False), (1.0, True)])
def test_the_gate_opens_for_a_lower_loss_if_an_answer_is_exactly_right(right: float, is_open: bool) -> None:
    raw = np.array([[-2.0, 0.0]] * 9)
    ours = np.array([[-1.0, 0.0]] * 8 + [[-1.0, right]])
    assert TASK.comparison(ours, raw, []).is_open is is_open
    assert not TASK.comparison(raw, ours, []).is_open


def test_rows_are_read_with_text_and_answer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "play jazz", "answer": " genre: jazz "}\n{"text": "nine", "answer": 9}\n')
    read = read_examples(file, TASK, label="answer")
    assert read == (Passage("play jazz", "genre: jazz"), Passage("nine", "9"))
    assert read_questions(file, TASK) == (Passage("play jazz"), Passage("nine"))
    assert len({own.key for own in (*read, *read_questions(file, TASK))}) == 4


@pytest.mark.parametrize(("answer", "said"), [("  ", "the answer is empty"), ("one\ntwo", "the answer has several lines")])
def test_an_answer_is_one_line(tmp_path: Path, answer: str, said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "play jazz", "answer": answer}))
    with pytest.raises(DataError, match=f"line 1: {said}"):
        read_examples(file, TASK, label="answer")
    assert not TASK.takes(Passage("play jazz", answer))


def test_text_that_is_none_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(InputError, match="answer of a passage: received"):
        Passage("a", wrong)
    with pytest.raises(InputError, match="text of a passage: "):
        Passage("\ud800")
    with pytest.raises(InputError, match="allowed: Passage"):
        TASK.check_classes(tiny.examples(1))


@pytest.mark.parametrize("most", [0, 2049, "12"])
def test_the_room_of_an_answer_has_bounds(most: Any) -> None:
    with pytest.raises(ConfigError, match="most_answer_tokens"):
        validated(ExtractTask, {"name": "x", "most_answer_tokens": most}, "a file")


def test_examples_are_needed_and_a_publics_texts_get_answers() -> None:
    with pytest.raises(DataError, match="no client has an example"):
        TASK.check_all([])
    TASK.check_all(passages(2))
    made = [TASK.example_for("warm soup", number) for number in range(3)]
    assert [own.answer for own in made] == ["warm", "soup", "warm"]
