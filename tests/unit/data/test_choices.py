"""Rows of choices: how files have options and answers, and what is said of wrong ones, without their text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ifedicl.backbone.control_tokens import ControlTokens
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.option_scoring import OptionScorer
from ifedicl.data import read_examples, read_questions
from ifedicl.errors import DataError, InputError
from ifedicl.kinds.choices import Choice
from ifedicl.kinds.choose import ChooseTask
from tests.support.choices import TASK

ROW = {"text": "where is it", "options": ["here", "there", "nowhere"], "label": 2}
SECRET = "Ilsebill Quandt"


def read(folder: Path, *rows: dict[str, Any]) -> tuple[Choice, ...]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tuple(row for row in read_examples(path, TASK) if isinstance(row, Choice))


@pytest.mark.parametrize("label", [2, "2", "C", "c", "nowhere", 2.0])
@pytest.mark.parametrize("options", [ROW["options"], json.dumps(ROW["options"])])
def test_an_answer_is_a_position_a_letter_or_the_option_itself(tmp_path: Path, label: Any, options: Any) -> None:
    assert read(tmp_path, ROW | {"label": label, "options": options}) == (
        Choice("where is it", ("here", "there", "nowhere"), 2),
    )


def test_options_may_stand_in_columns_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,option_a,option_b,option_c,label\nwhere,here,there,,b\nwhen,now,then,later,0\n")
    assert read_examples(tmp_path / "rows.csv", TASK) == (
        Choice("where", ("here", "there"), 1),
        Choice("when", ("now", "then", "later"), 0),
    )


def test_a_number_among_options_that_are_numbers_is_the_option(tmp_path: Path) -> None:
    assert read(tmp_path, ROW | {"options": ["2", "1", "0"], "label": "2"})[0].which == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": [SECRET]}, "options: received 1; allowed: 2 to 26"),
        ({"options": [SECRET, " "]}, "options: received an empty one"),
        ({"options": [SECRET, None]}, "column 'options': received a NoneType"),
        ({"options": SECRET}, "column 'options': received text that is no JSON list"),
        ({"options": {"a": SECRET}}, "column 'options': received an object; allowed: a list of texts"),
        ({"options": None}, "no column 'options' with a list, and none from 'option_a' on"),
        ({"label": 3}, "column 'label': received '3'; allowed: a number from 0 to 2, a letter from A to C"),
        ({"label": None}, "column 'label' is empty"),
        ({"label": [1]}, "column 'label': received a list"),
        ({"text": " "}, "the text is empty"),
    ],
)
def test_a_wrong_row_is_named_by_its_line_and_not_shown(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, ROW, ROW | change)
    assert f"line 2: {said}" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_questions_need_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "where", "options": ["here", "there"]}) + "\n")
    assert read_questions(path, TASK) == (Choice("where", ("here", "there")),)
    path.write_text(json.dumps({"text": "where"}) + "\n")
    with pytest.raises(DataError, match=r"line 1: no column 'options'"):
        read_questions(path, TASK)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"options": ("one",)}, "options of a choice: received 1"),
        ({"which": 2}, "which: received .* with 2 options"),
        ({"which": True}, "which: received"),
        ({"options": ("one", 2)}, "an option of a choice: received"),
        ({"text": "cut \ud83d"}, "text of a choice: received an unpaired surrogate"),
    ],
)
def test_a_wrong_choice_cannot_be_made(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Choice(**({"text": "where", "options": ("one", "two")} | fields))


def test_keys_tell_choices_apart_and_a_group_belongs_to_one(tmp_path: Path) -> None:
    rows = [Choice("a", ("b", "c")), Choice("a", ("b", "c"), 1), Choice("a", ("c", "b")), Choice("b", ("b", "c"))]
    assert len({row.key for row in rows}) == len(rows)
    assert all(0 <= TASK.class_of(row) < TASK.classes for row in rows)
    assert {TASK.class_of(TASK.example_for(f"text {number}", number)) for number in range(200)} == set(range(TASK.classes))


def test_an_option_that_cannot_be_read_is_refused_without_showing_it(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = OptionScorer(backbone, ChooseTask(name="x", template="{text} ", separator=""))
    with pytest.raises(DataError, match="an option of text number 1 has no tokens of its own") as caught:
        scorer.encoded([Choice("where", ("the room", "the table"))])
    assert "the room" not in str(caught.value)
    monkeypatch.setattr(ControlTokens, "_copy", None)
    with pytest.raises(DataError, match="holds the characters of a control token") as told:
        OptionScorer(backbone, TASK).encoded([Choice("where", (f"<pad> {SECRET}", "out"))])
    assert SECRET not in str(told.value)
