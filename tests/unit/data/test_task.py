"""Tasks: checked labels and templates, and a digest that never changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from ifedicl.errors import DataError
from ifedicl.kinds.classify import Task
from tests.support import tiny

TASK = tiny.TASK


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_words": ("good",)}, "2 labels but 1 label_words; give one word a label"),
        ({"labels": ("good", "bad", "good")}, "labels holds 'good' more than once; each must be its own"),
        ({"label_words": ("x", "x")}, "label_words holds 'x' more than once"),
        ({"labels": ("good", " ")}, "labels holds an empty name"),
        ({"label_words": ("good", "")}, "label_words holds an empty name"),
        ({"template": "no place"}, "template holds {text} 0 times; it must stand there once"),
        ({"template": "{text} {text}"}, "template holds {text} 2 times"),
        ({"labels": ("good",)}, "at least 2 items"),
        ({"name": ""}, "at least 1 character"),
        ({"turn": "shout"}, "'raw' or 'chat'"),
        ({"seperator": " "}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_task_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Task(**{"name": "mood", "labels": ("good", "bad"), **fields})
    assert message in str(caught.value)


def test_all_faults_of_a_task_are_reported_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Task(name="mood", labels=("a", "a"), label_words=("x",), template="-")
    assert all(part in str(caught.value) for part in ("1 label_words", "'a' more than once", "0 times"))


def test_label_words_default_to_the_labels_and_the_separator_to_the_turn() -> None:
    raw = Task(name="t", labels=("a", "b"))
    assert raw.label_words == ("a", "b")
    assert raw.separator == " "
    assert Task(name="t", labels=("a", "b"), turn="chat").separator == ""
    assert Task(name="t", labels=("a", "b"), turn="chat", separator="\n").separator == "\n"


def test_braces_within_a_text_mean_nothing() -> None:
    assert TASK.prompt("{text} {0} {mood} %s") == "Text: {text} {0} {mood} %s\nMood:"
    braces = Task(name="t", labels=("a", "b"), template='{"q": "{text}"}')
    assert braces.prompt("x") == '{"q": "x"}'


def test_a_label_is_found_by_name_and_an_unknown_one_is_not() -> None:
    assert (TASK.index("good"), TASK.index("bad")) == (0, 1)
    with pytest.raises(DataError, match="'ugly' is not in the task; allowed"):
        TASK.index("ugly")
    assert TASK.missing(["bad", "bad"]) == ("good",)
    assert TASK.missing(["bad", "good"]) == ()


def test_the_digest_is_the_same_on_every_machine_and_in_every_version() -> None:
    # A change here means that old adapters and running federations no longer match: raise the format version then.
    assert TASK.digest == Task(**json.loads(TASK.model_dump_json())).digest
    assert TASK.digest == "f50b24525aafab064e455fb44cf30883ffb4789a2d975f8dc057cc1a39504734"


def test_the_digest_knows_everything_that_shapes_the_question_but_not_the_name() -> None:
    changes: list[dict[str, Any]] = [
        {"labels": ("good", "worse")},
        {"labels": ("bad", "good")},
        {"label_words": ("good", "awful")},
        {"template": "Text: {text}\nMood?"},
        {"separator": ""},
        {"turn": "chat", "separator": " "},
        {"normalise_length": True},
    ]
    base: dict[str, Any] = {
        "name": "mood",
        "labels": ("good", "bad"),
        "label_words": ("good", "bad"),
        "template": TASK.template,
    }
    digests = {TASK.digest, *(Task(**{**base, **change}).digest for change in changes)}
    assert len(digests) == 1 + len(changes)
    assert Task(**{**base, "name": "other"}).digest == TASK.digest
