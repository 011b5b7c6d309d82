"""Every answer of the HTTP interface, and the command."""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ifedicl import cli
from ifedicl.backbone.load import Backbone
from ifedicl.errors import ServeError
from ifedicl.kinds import KINDS
from ifedicl.serve.answering import ServerState
from ifedicl.serve.api_keys import Keys, new_key
from ifedicl.serve.asked import asked_labels
from ifedicl.serve.worker import Worker
from tests.support import tiny
from tests.support.serve import LIMITS, TEXTS, PausedPasses, asking, catalog_of, fault, questions


def test_texts_are_labelled_as_the_adapter_labels_them(client: TestClient, backbone: Backbone) -> None:
    classifier = tiny.drawn_adapter(backbone, rank=4).classifier(backbone)
    answer = client.post("/v1/classify", json={"texts": TEXTS, "adapter": "mood", "zero_shot": True}).json()
    expected = classifier.classify(TEXTS)
    assert [item["label"] for item in answer["results"]] == [item.label for item in expected]
    for own, theirs in zip(answer["results"], expected, strict=True):
        assert own["probabilities"] == pytest.approx(dict(theirs.probabilities), abs=1e-5)
    assert len(answer["zero_shot"]) == len(TEXTS)
    assert answer["zero_shot"] != answer["results"]
    assert answer["adapter"]["name"] == "mood"
    assert answer["model"] == {"name": "tiny", "fingerprint": backbone.fingerprint, "dtype": "float32"}
    one = client.post("/v1/classify", json={"texts": TEXTS[0], "adapter": "mood"}).json()
    assert one["results"][0]["label"] == expected[0].label
    assert one["zero_shot"] is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "json", "Invalid JSON")),
        (b'{"texts": "\xff"}', (400, "json", "send JSON in UTF-8")),
        (b'{"texts": "\\ud800", "adapter": "mood"}', (400, "json", "hex escape")),
        (b"", (400, "json", "Invalid JSON")),
        (b"[]", (422, "field", "request: received an empty list; allowed: an object with texts")),
        (b'{"texts": []}', (422, "field", "texts: received an empty list; allowed: one text, or a list of them")),
        (b'{"texts": [3]}', (422, "field", "texts.0: received a number; allowed: one text")),
        (b'{"texts": "a", "adaptor": "mood"}', (422, "field", "adaptor: received a name that does not exist; allowed: texts")),
        (b'{"texts": "a"}', (404, "adapter", "name one of the served adapters: mood, place")),
        (b'{"texts": "a", "adapter": "modd"}', (404, "adapter", "received 'modd', which is not served; served: mood, place")),
        (b'{"texts": ["a", ""], "adapter": "mood"}', (422, "text", "text number 2 has no tokens")),
        (b'{"texts": "%s", "adapter": "mood"}' % (b"a" * 201), (422, "text", "201 characters; allowed: at most 200")),
        (b'{"texts": [%s], "adapter": "mood"}' % b",".join([b'"a"'] * 9), (422, "text", "received 9; allowed: at most 8")),
        (b'{"texts": "%s"}' % (b"a" * 5000), (413, "size", "larger than 4096 bytes")),
    ],
    ids=range(14),
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said(client: TestClient, body: bytes, expected: tuple[int, str, str]) -> None:
    status, code, message = fault(client.post("/v1/classify", content=body))
    assert (status, code) == expected[:2], message
    assert expected[2] in message


def test_no_answer_repeats_what_stood_in_a_wrong_field(client: TestClient) -> None:
    answer = client.post("/v1/classify", json={"texts": {"secret": "words"}, "adapter": ["private"]})
    assert "secret" not in answer.text
    assert "private" not in answer.text


def test_a_busy_server_says_when_to_come_back(
    client: TestClient, state: ServerState, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PausedPasses(monkeypatch)
    placed = state.catalog.get("mood").placed
    waiting = [state.worker.submit([placed], questions()) for _ in range(3)]
    answer = client.post("/v1/classify", json={"texts": "a", "adapter": "mood"})
    assert fault(answer)[:2] == (429, "busy")
    assert answer.headers["Retry-After"] == "1"
    model.resume()
    for future in waiting:
        future.result(10)
    assert client.post("/v1/classify", json={"texts": "a", "adapter": "mood"}).status_code == 200


def test_a_request_above_the_limit_gets_the_limit_and_no_hint_to_retry(state: ServerState) -> None:
    client = asking(replace(state, limits=replace(LIMITS, texts=24)))
    answer = client.post("/v1/classify", json={"texts": ["a"] * 13, "adapter": "mood", "zero_shot": True})
    assert fault(answer)[:2] == (422, "text")
    assert (
        "texts: received 13; allowed: at most 12 in one request with zero_shot, which counts each text twice"
        in fault(answer)[2]
    )
    for texts, zero_shot in ((12, True), (24, False)):
        asked = {"texts": ["a"] * texts, "adapter": "mood", "zero_shot": zero_shot}
        assert client.post("/v1/classify", json=asked).status_code == 200
    limits = client.get("/v1/adapters").json()["limits"]
    assert limits == {"texts": 24, "texts_with_zero_shot": 12, "characters": 200, "body_bytes": 4096}


def test_a_request_that_takes_too_long_is_given_up(state: ServerState, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PausedPasses(monkeypatch)
    short = asking(replace(state, limits=replace(LIMITS, seconds=0.1)))
    assert fault(short.post("/v1/classify", json={"texts": "a", "adapter": "mood"}))[:2] == (503, "slow")
    model.resume()
    state.worker.call(lambda: None).result(10)
    assert state.worker.waiting == 0


def test_health_follows_the_state_of_the_server(state: ServerState, worker: Worker) -> None:
    client = asking(state)
    assert (client.get("/healthz").status_code, client.get("/readyz").status_code) == (200, 200)
    empty = asking(replace(state, catalog=catalog_of(worker._backbone)))
    assert empty.get("/readyz").json() == {"status": "no adapter"}
    worker.stop()
    assert client.get("/healthz").status_code == 200
    assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"status": "stopping"})
    assert fault(client.post("/v1/classify", json={"texts": "a", "adapter": "mood"}))[:2] == (503, "stopping")


def test_keys_are_asked_for_where_texts_and_figures_are_and_not_for_health(state: ServerState, tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "reader")
    client = asking(state, Keys(tmp_path / "keys"))
    for path in ("/v1/adapters", "/v1/runs", "/metrics", "/v1/nothing"):
        answer = client.get(path)
        assert fault(answer)[:2] == (401, "key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    own = {"Authorization": f"Bearer {key}"}
    assert client.get("/v1/adapters", headers=own).status_code == 200
    assert client.get("/v1/adapters", headers={"Authorization": f"Bearer {key}x"}).status_code == 401
    assert client.post("/v1/classify", json={"texts": "a", "adapter": "mood"}, headers=own).status_code == 200


def test_while_the_key_file_is_broken_all_requests_are_refused_with_the_reason(state: ServerState, tmp_path: Path) -> None:
    own = {"Authorization": f"Bearer {new_key(tmp_path / 'keys', 'reader')}"}
    keys = Keys(tmp_path / "keys")
    client, good = asking(state, keys), (tmp_path / "keys").read_text()
    (tmp_path / "keys").write_text("a line of something else\n")
    with pytest.raises(ServeError):
        keys.refresh()
    assert fault(client.get("/v1/adapters", headers=own))[:2] == (503, "keys")
    assert client.get("/healthz").status_code == 200
    (tmp_path / "keys").write_text(good)
    keys.refresh()
    assert client.get("/v1/adapters", headers=own).status_code == 200


@pytest.mark.parametrize(
    ("host", "name", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "LocalHost:8000", 200),
        ("127.0.0.1", "[::1]:8000", 200),
        ("127.0.0.1", "site.example:8000", 400),
        ("127.0.0.1", "localhost.site.example", 400),
        ("127.0.0.1", "127.0.0.1.site.example", 400),
        ("127.0.0.1", "0.0.0.0:8000", 400),
        ("localhost", "localhost:8000", 200),
        ("::1", "[::1]:8000", 200),
        ("box.example", "box.example:8000", 200),
        ("box.example", "site.example:8000", 400),
        ("0.0.0.0", "192.0.2.1:8000", 200),  # noqa: S104
        ("0.0.0.0", "site.example", 400),  # noqa: S104
    ],
)
def test_without_keys_only_names_of_this_server_are_answered(state: ServerState, host: str, name: str, status: int) -> None:
    client = asking(state, host=host)
    for path in ("/", "/v1/adapters", "/metrics"):
        answer = client.get(path, headers={"Host": name})
        assert answer.status_code == status
        if status == 400:
            assert fault(answer)[1] == "host"
            assert "start the server with --allowed-host NAME" in fault(answer)[2]


@pytest.mark.parametrize("name", ["", "[::1", "[", "127.0.0.1:port@site.example"])
def test_a_host_header_that_is_none_is_refused(state: ServerState, name: str) -> None:
    assert fault(asking(state).get("/", headers={"Host": name}))[:2] == (400, "host")


def test_with_keys_any_name_is_answered_as_behind_a_proxy(state: ServerState, tmp_path: Path) -> None:
    own = {"Authorization": f"Bearer {new_key(tmp_path / 'keys', 'reader')}"}
    client = asking(state, Keys(tmp_path / "keys"), name="labels.example")
    assert client.get("/v1/adapters", headers=own).status_code == 200


def test_figures_for_prometheus_count_answers_and_texts(client: TestClient) -> None:
    client.post("/v1/classify", json={"texts": TEXTS, "adapter": "mood"})
    client.post("/v1/classify", json={"texts": TEXTS, "adapter": "none"})
    client.get("/a/made-up/path")
    text = client.get("/metrics").text
    assert 'ifedicl_requests_total{route="/v1/classify",status="200"} 1.0' in text
    assert 'ifedicl_requests_total{route="/v1/classify",status="404"} 1.0' in text
    assert 'ifedicl_texts_total{adapter="mood"} 8.0' in text
    assert "ifedicl_waiting_texts 0.0" in text
    assert "made-up" not in text


def test_every_answer_forbids_other_hosts_and_nothing_served_names_one(client: TestClient) -> None:
    parts = ["", *re.findall(r'(?:href|src)="([\w.]+)"', client.get("/").text), "draw.js", "table.js", "api.js"]
    for path in [f"/{part}" for part in parts] + ["/v1/adapters", "/nothing", "/openapi.json"]:
        answer = client.get(path)
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        own = answer.text.replace("http://www.w3.org/2000/svg", "").replace(str(client.base_url), "")  # the command's address
        foreign = re.findall(r"https?://[\w.]+", own)
        assert foreign == [], path


def test_the_description_lists_every_path_and_what_it_takes(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    asked = {f"/v1/{kind}" for kind in KINDS}
    assert set(schema["paths"]) == asked | {"/v1/adapters", "/v1/adapters/{name}", "/v1/runs", "/v1/runs/{name}",
                                            "/healthz", "/readyz", "/metrics"}  # fmt: skip
    page = client.get("/docs").text
    for words in ("POST /v1/classify", "also ask the raw model, for comparison", "429: the queue is full"):
        assert words in page


def test_the_description_shows_a_whole_answer_and_a_command_for_this_address(state: ServerState, tmp_path: Path) -> None:
    asked_labels.ClassifyAnswer.model_validate(asked_labels.ANSWER_EXAMPLE, strict=True)
    assert set(asked_labels.ANSWER_EXAMPLE) == set(asked_labels.ClassifyAnswer.model_fields)
    for side in ("results", "zero_shot"):
        for item in asked_labels.ANSWER_EXAMPLE[side]:
            assert sum(item["probabilities"].values()) == pytest.approx(1, abs=1e-4)
            assert item["label"] == max(item["probabilities"], key=item["probabilities"].get)
    open_client = asking(state)
    page = html.unescape(open_client.get("/docs").text)
    words = shlex.split(page.partition('id="curl">')[2].partition("</pre>")[0])
    assert words[2] == f"{open_client.base_url}/v1/classify"
    answer = open_client.post("/v1/classify", json=json.loads(words[words.index("-d") + 1]))  # names one of several adapters
    assert set(answer.json()) == set(asked_labels.ANSWER_EXAMPLE)
    asked = asking(state, Keys(tmp_path / "keys") if new_key(tmp_path / "keys", "reader") else None).get("/docs").text
    assert "Bearer $KEY" in asked
    assert "mood" not in asked  # names are for those who have a key


def test_an_address_cannot_write_into_the_command(state: ServerState, tmp_path: Path) -> None:
    new_key(tmp_path / "keys", "reader")
    client = asking(state, Keys(tmp_path / "keys"))  # with keys any Host is answered
    page = client.get("/docs", headers={"Host": "labels.example;rm$(x)'<b>"}).text
    assert "<b>" not in page
    words = shlex.split(html.unescape(page.partition('id="curl">')[2].partition("</pre>")[0]))
    assert (words[0], words[1], words[3]) == ("curl", "-s", "-H")


def test_an_adapter_tells_its_coefficients_by_layer(client: TestClient, backbone: Backbone) -> None:
    adapter = tiny.drawn_adapter(backbone, rank=4)
    detail = client.get("/v1/adapters/mood").json()
    np.testing.assert_allclose(detail["context_scale"], adapter.coefficients.scales[..., 0])
    assert detail["first_layer"] == 0
    np.testing.assert_allclose(detail["activation_scale"], adapter.coefficients.scales[..., 1])
    assert np.shape(detail["subspace_core"]) == (3, 2)
    assert detail["per_class"] == detail["clients"] == []
    assert client.get("/v1/adapters/place").json()["subspace_core"] is None
    assert fault(client.get("/v1/adapters/nothing"))[:2] == (404, "adapter")


def test_a_run_is_read_line_by_line_and_no_other_file_can_be_named(client: TestClient, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"event": "run", "task": "mood"}) + "\n" + '{"event": "ro')
    (tmp_path / "metrics.jsonl").write_text('{"secret": 1}\n')
    assert [(item["name"], item["task"]) for item in client.get("/v1/runs").json()["runs"]] == [("one", "mood")]
    first = client.get("/v1/runs/one").json()
    assert first["lines"] == [{"event": "run", "task": "mood"}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('und"}\n')
    place = {"since": first["next"], "generation": first["generation"]}
    second = client.get("/v1/runs/one", params=place).json()
    assert second["lines"] == [{"event": "round"}]
    assert second["generation"] == first["generation"]
    # The file is replaced, as at the end of a run, so the old position is void.
    (run / "new").write_text(
        json.dumps({"event": "run", "task": "another mood"}) + "\n" + json.dumps({"event": "finished"}) + "\n"
    )
    (run / "new").rename(run / "metrics.jsonl")
    third = client.get("/v1/runs/one", params=place).json()
    assert [line["event"] for line in third["lines"]] == ["run", "finished"]
    assert third["generation"] != first["generation"]
    for name in ("..", "%2e%2e", "%2e%2e%2fone", "two"):
        assert client.get(f"/v1/runs/{name}").status_code == 404
    assert fault(client.get("/v1/runs/two")) == (404, "run", "run: received 'two'; known: one")
    assert fault(client.get("/v1/runs/one", params={"since": -1}))[:2] == (422, "field")


def test_a_place_within_a_line_of_a_run_is_refused(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    file = tmp_path / "runs" / "one" / "metrics.jsonl"
    file.write_text('{"event": "run"}\n{"event": "round"}\n')
    for since in (1, 5, 16):
        status, code, message = fault(client.get("/v1/runs/one", params={"since": since}))
        assert (status, code) == (422, "field")
        assert message == f"since: no line begins at byte {since}; give 0, or `next` of the previous answer"
    for since, events in ((0, ["run", "round"]), (17, ["round"]), (36, [])):
        lines = client.get("/v1/runs/one", params={"since": since}).json()["lines"]
        assert [line["event"] for line in lines] == events
    file.write_text("not JSON\n")
    assert "is not JSON" in fault(client.get("/v1/runs/one"))[2]


# The command


def test_a_port_that_others_reach_needs_keys_or_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", str(tmp_path), "--host", "0.0.0.0"])  # noqa: S104
    assert stop.value.code == 2
    assert "--without-keys" in capsys.readouterr().err


def test_fewer_texts_that_may_wait_than_one_request_may_hold_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", "x", "--most-texts", "1000"])
    assert stop.value.code == 2
    said = "most-waiting: received 512; allowed: at least --most-texts, 1000. Give --most-waiting 1000 or more"
    assert said in capsys.readouterr().err


def test_a_server_of_nothing_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve"])
    assert stop.value.code == 2
    assert "Give a folder that `ifedicl run`" in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    for name in list(sys.modules):
        if name.startswith("ifedicl.serve"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", "x"])
    assert stop.value.code == 9
    assert "pip install 'ifedicl[serve]'" in capsys.readouterr().err


def test_the_key_command_prints_the_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["key", str(tmp_path / "keys"), "reader"])
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert Keys(tmp_path / "keys").holder(printed.out.strip()) == "reader"
    assert printed.out.strip() not in printed.err
