"""Adapters of every kind on one server: each route answers as the adapter does, and says what it does not take."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ifedicl.adapter import Adapter
from ifedicl.backbone import multi_adapter
from ifedicl.backbone.load import Backbone
from ifedicl.core.readout import Readout, feature_count
from ifedicl.kinds import KINDS
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.examples import Answer, AnyExample
from ifedicl.runs import zero_shot_adapter
from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys, new_key
from ifedicl.serve.asked import ROUTES
from ifedicl.serve.asked.any_route import KindRoute
from ifedicl.serve.worker import Worker
from ifedicl.settings import ModelSettings
from tests.support import choices, label_sets, passages, tiny
from tests.support.serve import LIMITS, TEXTS, asking, fault, state_of

CHOICES, SETS, PASSAGES = choices.choices(3), label_sets.examples(3), passages.passages(3)
PLACES = [{"text": own.text, "options": list(own.options)} for own in CHOICES]
TASKS = [tiny.TASK, choices.TASK, label_sets.TASK.model_copy(update={"name": "sets"}), passages.TASK]
ASKED: Mapping[str, tuple[str, Any, Sequence[AnyExample]]] = {
    "choose": ("places", {"questions": PLACES}, CHOICES),
    "multi-label": ("sets", {"texts": [own.text for own in SETS]}, SETS),
    "extract": ("second-word", {"texts": [own.text for own in PASSAGES]}, PASSAGES),
}


def drawn(backbone: Backbone, task: AnyTask) -> Adapter:
    """An adapter of random numbers; that of choices has a readout, which also reads mean states."""
    weights = np.random.default_rng(7).normal(size=(2, feature_count(2 * backbone.width, 2) + 1)).astype(np.float32)
    readout = Readout(weights, (backbone.layers - 1,)) if task is choices.TASK else None
    return replace(tiny.drawn_adapter(backbone, rank=4), task=task, readout=readout)


@pytest.fixture
def state(worker: Worker, backbone: Backbone, tmp_path: Path) -> ServerState:
    made = state_of(worker, backbone, tmp_path, *(drawn(backbone, task) for task in TASKS))
    return replace(made, limits=replace(LIMITS, texts=24))


def shown(answer: Answer, result: Mapping[str, Any]) -> None:
    """Check a result against the adapter's own answer."""
    names = {"position": answer.value, "option": answer.shown, "labels": answer.value, "answer": answer.value}
    for name, value in result.items():
        if name in names:
            assert value == names[name]
        else:
            assert value == pytest.approx(answer.facts[name], abs=1e-4)


def test_every_kind_has_a_route() -> None:
    assert set(ROUTES) == set(KINDS.values())
    assert {route.path for route in ROUTES.values()} == {f"/v1/{name}" for name in KINDS}


@pytest.mark.parametrize("route", ROUTES.values(), ids=lambda route: route.path)
def test_the_description_of_each_kind_shows_a_request_and_a_whole_answer(client: TestClient, route: KindRoute) -> None:
    asked = route.request.model_validate({**route.example, "zero_shot": True}, strict=True)
    answer = route.answers.model_validate(route.answer_example, strict=True)
    assert len(asked.rows) == len(answer.results) == len(answer.zero_shot or ())
    assert answer.model_dump(mode="json") == route.answer_example
    assert json.dumps(route.answer_example, indent=2) in html.unescape(client.get("/docs").text)


@pytest.mark.parametrize("kind", ASKED)
def test_each_kind_is_answered_as_the_adapter_answers_and_the_raw_model_beside_it(
    client: TestClient, backbone: Backbone, kind: str
) -> None:
    name, body, examples = ASKED[kind]
    answer = client.post(f"/v1/{kind}", json={**body, "adapter": name, "zero_shot": True}).json()
    task = next(task for task in TASKS if task.kind == kind)
    raw = zero_shot_adapter(backbone, ModelSettings(source="tiny", dtype="float32"), task)
    for part, adapter in (("results", drawn(backbone, task)), ("zero_shot", raw)):
        own = adapter.on_model(backbone).answers(examples)
        assert len(answer[part]) == len(own) == 3
        for given, expected in zip(answer[part], own, strict=True):
            shown(expected, given)
    assert (answer["adapter"]["name"], answer["truncated"]) == (name, 0)
    assert answer["results"] != answer["zero_shot"]
    (field,) = body
    one = client.post(f"/v1/{kind}", json={field: body[field][0], "adapter": name}).json()
    assert (len(one["results"]), one["zero_shot"]) == (1, None)


def test_all_kinds_are_answered_at_once(state: ServerState) -> None:
    asked = {kind: {**body, "adapter": name} for kind, (name, body, _) in ASKED.items()}
    asked["classify"] = {"texts": TEXTS[:4], "adapter": "mood"}
    alone = {kind: asking(state).post(f"/v1/{kind}", json=body).json()["results"] for kind, body in asked.items()}

    def several(number: int) -> None:
        client = asking(state)
        for turn in range(4):
            kind = list(asked)[(number + turn) % 4]
            answer = client.post(f"/v1/{kind}", json=asked[kind])
            while answer.status_code == 429:
                answer = client.post(f"/v1/{kind}", json=asked[kind])
            for given, expected in zip(answer.json()["results"], alone[kind], strict=True):
                assert {name: value if isinstance(value, str | int) else pytest.approx(value, abs=1e-4) for name, value in
                        given.items() if name not in ("probabilities", "labels")} == {
                    name: value for name, value in expected.items() if name not in ("probabilities", "labels")}  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(several, range(4)))
    assert state.worker.waiting == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_is_asked_at_another_route_names_its_own(client: TestClient, kind: str) -> None:
    names = {"classify": "mood", **{other: name for other, (name, _, _) in ASKED.items()}}
    body = ASKED["choose"][1] if kind == "choose" else {"texts": "a"}
    for other in KINDS.keys() - {kind}:
        status, code, message = fault(client.post(f"/v1/{kind}", json={**body, "adapter": names[other]}))
        assert (status, code) == (422, "kind")
        field = "questions" if other == "choose" else "texts"
        assert message == (
            f"adapter: {names[other]!r} is of the kind {other!r}; allowed at /v1/{kind}: {kind!r}. "
            f"Send {field} to /v1/{other}, or name another adapter"
        )


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        (None, (422, "field", "questions: received null; allowed: one question, or a list of them")),
        (3, (422, "field", "questions: received a number; allowed: one question, or a list of them")),
        ([], (422, "field", "questions: received an empty list")),
        (["secret"], (422, "field", "questions.0: received text; allowed: one question")),
        ({"text": "secret"}, (422, "field", "questions.0.options: received nothing; allowed: 2 to 26 options")),
        ([PLACES[0], {"options": ["secret", "b"]}], (422, "field", "questions.1.text: received nothing; allowed")),
        ({"text": "a", "options": ["secret"]}, (422, "field", "questions.0.options: received a list of 1; allowed: 2 to 26")),
        ({"text": "a", "options": ["secret"] * 27}, (422, "field", "questions.0.options: received a list of 27; allowed")),
        ({"text": "a", "options": "secret"}, (422, "field", "questions.0.options: received text; allowed: 2 to 26")),
        ({"text": "a", "options": ["a", {"secret": 1}]}, (422, "field", "questions.0.options.1: received an object; allowed")),
        (
            {"text": "a", "options": ["a", "b"], "secret": 1},
            (422, "field", "questions.0: received a name that does not exist; allowed: text, options. Leave it out"),
        ),
        ({"text": " ", "options": ["secret", "b"]}, (422, "text", "text number 1: the text is empty")),
        ([PLACES[0], {"text": "secret", "options": ["b", " "]}], (422, "text", "text number 2: options: received an empty")),
        ({"text": "secret" * 40, "options": ["a", "b"]}, (422, "text", "text number 1 has 240 characters; allowed: at most")),
        ([PLACES[0], {"text": "a", "options": ["b", "c" * 240]}], (422, "text", "option number 2 of text number 2 has 240")),
        (
            {"text": "secret", "options": ["word " * 39, "b"]},
            (422, "text", "text number 1: what it brings along leaves no room for it in a window of 128 tokens"),
        ),
        (PLACES * 3, (422, "text", "questions: received 9, which count as 27 (each option counts as one); allowed")),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_wrong_with_a_question_is_said_and_not_quoted(client: TestClient, questions: Any, said: Any) -> None:
    answer = client.post("/v1/choose", json={"questions": questions, "adapter": "places"})
    status, code, message = fault(answer)
    assert (status, code) == said[:2], message
    assert said[2] in message
    assert "secret" not in message


def test_a_surrogate_in_an_option_and_a_name_that_stands_twice_are_refused(client: TestClient) -> None:
    lone = b'{"questions": {"text": "a", "options": ["b", "\\ud800"]}, "adapter": "places"}'
    assert fault(client.post("/v1/choose", content=lone))[:2] == (400, "json")
    twice = b'{"questions": [{"text": "a", "text": "b", "options": ["c", "d"]}], "adapter": "places"}'
    assert fault(client.post("/v1/choose", content=twice)) == (
        422,
        "field",
        "text: received more than once; allowed: once. Remove one",
    )


@pytest.mark.parametrize("kind", ASKED)
def test_an_answer_below_the_least_confidence_is_null(client: TestClient, kind: str) -> None:
    name, body, _ = ASKED[kind]
    usual = client.post(f"/v1/{kind}", json={**body, "adapter": name}).json()["results"]
    withheld = client.post(f"/v1/{kind}", json={**body, "adapter": name, "min_confidence": 1}).json()["results"]
    for given, without in zip(usual, withheld, strict=True):
        said = given.keys() - {"probabilities", "confidence"}
        assert [without[field] for field in said] == [None] * len(said)
        assert all(without[field] == pytest.approx(given[field]) for field in given.keys() - said)


def test_limits_count_options_and_written_tokens(client: TestClient, state: ServerState) -> None:
    body = {"questions": PLACES * 2, "adapter": "places"}  # 18 options
    assert client.post("/v1/choose", json=body).status_code == 200
    assert (
        "which count as 18 (each option counts as one); allowed: at most 12 in one request with zero_shot"
        in (fault(client.post("/v1/choose", json={**body, "zero_shot": True}))[2])
    )
    few = asking(replace(state, limits=LIMITS))
    assert few.post("/v1/extract", json={"texts": ["one"] * 4, "adapter": "second-word"}).status_code == 200
    said = fault(few.post("/v1/extract", json={"texts": ["one"] * 5, "adapter": "second-word"}))[2]
    assert "texts: received 5, which count as 10 (each 8 tokens that an answer may have count as one)" in said


def test_an_error_of_the_model_quotes_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*given: object) -> Any:
        raise KeyError("secret option")

    monkeypatch.setattr(multi_adapter.Apart, "scores", failing)
    status, code, message = fault(client.post("/v1/choose", json={"questions": PLACES, "adapter": "places"}))
    assert (status, code) == (500, "server")
    assert "secret" not in message + caplog.text
    assert "KeyError" in caplog.text


def test_a_server_keeps_no_option(client: TestClient, state: ServerState) -> None:
    asked = {"text": "a", "options": ["the parcel", "we laughed"]}
    assert client.post("/v1/choose", json={"questions": asked, "adapter": "places"}).status_code == 200
    scorer = state.catalog.get("places").placed.scorer
    assert not any("the parcel" in value for value in vars(scorer).values() if isinstance(value, dict | list | set))


def test_an_adapter_tells_its_kind_and_where_it_is_asked(client: TestClient) -> None:
    facts = {own["name"]: own for own in client.get("/v1/adapters").json()["adapters"]}
    told = {name: (own["kind"], own["asked_at"], own["takes"], own["labels"]) for name, own in facts.items()}
    assert told == {
        "mood": ("classify", "/v1/classify", "texts", ["good", "bad"]),
        "places": ("choose", "/v1/choose", "questions", []),
        "sets": ("multi-label", "/v1/multi-label", "texts", list(label_sets.LABELS)),
        "second-word": ("extract", "/v1/extract", "texts", []),
    }
    detail = client.get("/v1/adapters/places").json()
    assert (detail["label_words"], detail["answers"]) == ([], {"kind": "choose", "answer_by": "option"})
    assert client.get("/v1/adapters/sets").json()["label_words"] == list(label_sets.LABELS)


def test_figures_count_questions(client: TestClient) -> None:
    client.post("/v1/choose", json={"questions": PLACES, "adapter": "places"})
    text = client.get("/metrics").text
    assert 'ifedicl_requests_total{route="/v1/choose",status="200"} 1.0' in text
    assert 'ifedicl_texts_total{adapter="places"} 3.0' in text


@pytest.mark.parametrize("route", ROUTES.values(), ids=lambda route: route.task.kind)
def test_the_description_shows_each_route_with_an_example(client: TestClient, route: Any) -> None:
    page = html.unescape(client.get("/docs").text)
    command = next(part for part in page.split("<pre") if f"{route.path} -H" in part).partition(">")[2].partition("</pre>")[0]
    words = shlex.split(command)
    answer = client.post(words[2].removeprefix(str(client.base_url)), json=json.loads(words[words.index("-d") + 1]))
    assert set(answer.json()) == set(route.answers.model_fields), answer.text
    if route.answer_example is not None:
        route.answers.model_validate(route.answer_example, strict=True)
        assert json.dumps(route.answer_example, indent=2) in page
        assert set(answer.json()["results"][0]) == set(route.answer_example["results"][0])


def test_whatever_the_description_refers_to_is_there(client: TestClient) -> None:
    text = client.get("/openapi.json").text
    schema = json.loads(text)
    for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schema["components"]["schemas"]
    assert schema == client.get("/openapi.json").json()


def test_a_page_of_a_server_with_keys_names_no_adapter(state: ServerState, tmp_path: Path) -> None:
    new_key(tmp_path / "keys", "reader")
    page = asking(state, Keys(tmp_path / "keys")).get("/docs").text
    assert not any(name in page for name in ("places", "second-word", "mood"))
