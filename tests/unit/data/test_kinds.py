"""The kinds of task are told apart in one place, and a classification's files are those of before there were kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scorers import scorer_of
from ifedicl.errors import ConfigError, InputError, TaskError
from ifedicl.kinds import KINDS, TaskField, kind_of_task
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.choose import ChooseTask
from ifedicl.kinds.classify import Example, Task, as_classification
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.multi_label import MultiLabelTask
from ifedicl.settings import validated
from tests.support import tiny

MOOD = {"name": "mood", "labels": ["good", "bad"]}


class File(BaseModel):
    """A file with a task."""

    task: TaskField


def test_a_task_without_a_kind_is_a_classification_and_its_file_names_none() -> None:
    plain, named = (validated(File, {"task": task}, "a file").task for task in (MOOD, {"kind": "classify", **MOOD}))
    assert plain == named == Task(name="mood", labels=("good", "bad"))
    assert "kind" not in File(task=plain).model_dump()["task"]


def test_the_digest_of_a_classification_is_that_of_before_there_were_kinds() -> None:
    assert (
        Task(name="mood", labels=("good", "bad")).digest == "33fe8acbef0866c234db73a43d0edd051dc656822fa0a1456d338ce0ed9c23dc"
    )


@pytest.mark.parametrize("kind", ["chose", 3, None, ["classify"]])
def test_an_unknown_kind_is_named_with_those_that_exist(kind: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(File, {"task": {"kind": kind, **MOOD}}, "a file")
    assert f"allowed: {', '.join(KINDS)}" in str(caught.value)
    with pytest.raises(ValueError, match="allowed: classify, choose, extract, multi-label"):
        kind_of_task({"kind": kind})


def test_a_fault_in_a_task_names_the_field_of_its_kind() -> None:
    with pytest.raises(ConfigError) as caught:
        validated(File, {"task": {"name": "mood", "lables": ["a", "b"]}}, "a file")
    assert {fault.field for fault in caught.value.faults} == {"task.labels", "task.lables"}
    assert "Did you mean 'labels'?" in str(caught.value)


def test_every_kind_has_a_scorer(backbone: Backbone) -> None:
    several = MultiLabelTask(name="places", labels=("home", "out"))
    tasks: list[AnyTask] = [tiny.TASK, several, ChooseTask(name="choices"), ExtractTask(name="fields")]
    assert {type(task) for task in tasks} == set(KINDS.values()), "a new kind: add a task of it"
    assert all(isinstance(scorer_of(backbone, task), BaseScorer) for task in tasks)


def test_what_needs_labels_refuses_other_kinds_and_other_examples() -> None:
    other: Any = SimpleNamespace(kind="other")
    assert as_classification(tiny.TASK, "a test") is tiny.TASK
    with pytest.raises(TaskError, match="received 'other'; allowed for a test: 'classify'"):
        as_classification(other, "a test")
    wrong: Any = "b"
    with pytest.raises(InputError, match="received str as number 2; allowed: Example"):
        tiny.TASK.check_classes([Example("a", "good"), wrong])
