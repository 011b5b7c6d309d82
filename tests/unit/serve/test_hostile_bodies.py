"""Requests that are small to send and would be long to refuse, and names that are made to be quoted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ifedicl.backbone.load import Backbone
from ifedicl.kinds.choices import Choice
from ifedicl.kinds.choose import ChooseTask
from ifedicl.serve.answering import ServerState
from ifedicl.serve.worker import Worker
from tests.support import choices, tiny
from tests.support.serve import LIMITS, asking, fault, state_of

LETTERS = choices.TASK.model_copy(update={"answer_by": "letter"})
WHOLE = {"text": "a", "options": ["b", "c"]}


@pytest.fixture
def state(worker: Worker, backbone: Backbone, tmp_path: Path) -> ServerState:
    return state_of(worker, backbone, tmp_path, replace(tiny.drawn_adapter(backbone), task=choices.TASK))


@pytest.mark.parametrize(
    ("path", "body", "faults"),
    [
        ("/v1/classify", {"texts": [1] * 500}, 1),
        ("/v1/choose", {"questions": [1] * 500}, 1),
        ("/v1/choose", {"questions": [{}] * 500}, 2),  # text and options of the first
        ("/v1/choose", {"questions": {"text": "a", "options": [1] * 20}}, 1),
    ],
)
def test_a_list_of_wrong_items_is_read_to_the_first(client: TestClient, path: str, body: Any, faults: int) -> None:
    status, code, message = fault(client.post(path, json=body))
    assert (status, code, message.count(": received ")) == (422, "field", faults)


def test_names_in_an_object_that_another_one_replaces_are_not_quoted(client: TestClient) -> None:
    hidden = b'{"questions": {"secret": 1, "secret": 2}, "questions": {"text": "a", "options": ["b", "c"]}}'
    assert fault(client.post("/v1/choose", content=hidden)) == (
        422,
        "field",
        "a name that does not exist, questions: received more than once; allowed: once. Remove one",
    )


def test_no_example_is_made_of_too_many_questions(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made, question_of = list[object](), ChooseTask.question_of

    def counted(self: ChooseTask, row: Mapping[str, Any], text: str) -> Choice:
        made.append(row)
        return question_of(self, row, text)

    monkeypatch.setattr(ChooseTask, "question_of", counted)
    most = LIMITS.texts
    said = fault(client.post("/v1/choose", json={"questions": [WHOLE] * (most + 1)}))[2]
    assert said.startswith(f"questions: received {most + 1}; allowed: at most {most} in one request. Send them in parts")
    assert made == []
    assert client.post("/v1/choose", json={"questions": [WHOLE] * (most // 2)}).status_code == 200
    assert len(made) == most // 2


def test_one_question_that_is_too_much_is_not_to_be_sent_in_parts(client: TestClient) -> None:
    said = fault(client.post("/v1/choose", json={"questions": {"text": "a", "options": ["b"] * (LIMITS.texts + 1)}}))[2]
    assert said.startswith(f"questions: received 1, which count as {LIMITS.texts + 1} (each option counts as one)")
    assert said.endswith("This server takes no such request; it would with a higher --most-texts")


@pytest.mark.parametrize(
    "options",
    [
        ["\x00", "a\x00b"],
        ["\u2028x", "\u200b"],
        ["<pad>", "good<pad>"],
        ["same", "same"],
        ["\U0001f600", "\ufdd0\ufdd1"],
        ["5", "-1"],
    ],
)
@pytest.mark.parametrize("task", [choices.TASK, LETTERS], ids=["option", "letter"])
def test_strange_options_are_answered_or_refused_and_stop_nobody(
    worker: Worker, backbone: Backbone, tmp_path: Path, task: ChooseTask, options: list[str]
) -> None:
    state = state_of(worker, backbone, tmp_path, replace(tiny.drawn_adapter(backbone), task=task))
    answer = asking(state).post("/v1/choose", json={"questions": {"text": "secret", "options": options}})
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 200:
        assert sum(answer.json()["results"][0]["probabilities"]) == pytest.approx(1)
    else:
        assert not any(option in fault(answer)[2] for option in options)
    assert asking(state).post("/v1/choose", json={"questions": WHOLE}).status_code == 200
    assert worker.waiting == 0
