"""The command line with a task whose answers are text: a config, a run, figures and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ifedicl.adapter import Adapter
from ifedicl.errors import TaskError
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.passages import Passage
from ifedicl.pipelines import pipeline
from ifedicl.settings import load_settings
from tests.support.command_line import printed, run
from tests.support.passages import passages, write_files

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """Two clients' files, a test file, and the config of a short run, which has run."""
    folder = tmp_path_factory.mktemp("passages")
    write_files(folder, {"north": 14, "south": 14, "test": 10})
    path = folder / "config.toml"
    path.write_text(
        'preset = "subspace"\nreadout = false\n'
        '[task]\nkind = "extract"\nname = "second word"\ntemplate = "Text: {text}\\nWord:"\nmost_answer_tokens = 16\n'
        f'[model]\nsource = {json.dumps(str(llama_folder))}\ndevice = "cpu"\ndtype = "float32"\n'
        '[data]\nclients = { north = "north.jsonl", south = "south.jsonl" }\ntest = "test.jsonl"\nlabel_column = "answer"\n'
        '[holdout]\nselection = 0.3\ngate = 0.2\n[rounds]\nrounds = 1\nselect_by = "last"\n'
        "[calibration]\nbatch_size = 2\nlocal_steps = 1\n"
    )
    assert run("run", path, "--out", folder / "run") == 0
    return path


@pytest.fixture
def ran(config: Path) -> Path:
    """The run's folder."""
    return config.parent / "run"


def test_a_run_ends_with_figures_and_a_card(ran: Path) -> None:
    lines = [json.loads(line) for line in (ran / "metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["most_answer_tokens"]) == ("extract", 16)
    tests = {line["name"]: line for line in lines if line["event"] == "test"}
    assert set(tests) == {"zero-shot", "adapter"}
    assert tests["adapter"]["examples"] == 10
    assert "slot_f1" in tests["adapter"]
    assert "token F1" in (ran / "report.html").read_text()
    card = (ran / "adapter" / "README.md").read_text()
    assert "Writes one line of text about each text" in card
    assert "experimental" in card


def test_no_word_of_an_answer_is_in_what_a_run_leaves(config: Path, ran: Path) -> None:
    del config
    secret = {own.answer for own in (*passages(14), *passages(14, first=100))}
    for file in ("metrics.jsonl", "report.html", "adapter/README.md", "adapter/adapter.json"):
        text = (ran / file).read_text()
        assert not [answer for answer in secret if answer in text]


def test_evaluate_and_classify_write_the_answers(config: Path, ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = config.parent / "test.jsonl"
    figures = printed(capsys, "evaluate", ran, rows, "--label-column", "answer", "--json")["adapter"]
    assert {"accuracy", "token_f1", "slot_f1", "loss", "calibration_error"} <= set(figures)
    assert run("evaluate", ran, rows, "--label-column", "answer") == 0
    assert "slot F1" in capsys.readouterr().out
    assert run("classify", ran, "--file", rows, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = passages(10, first=200)
    expected = Adapter.load(ran).on_model().answers([Passage(own.text) for own in asked])
    assert [(answer["text"], answer["label"]) for answer in answers] == [
        (own.text, answer.value) for own, answer in zip(asked, expected, strict=True)
    ]
    assert all(0 < answer["confidence"] < 1 for answer in answers)
    assert run("classify", ran, asked[0].text, "--min-confidence", "0.999", "--json") == 0
    assert json.loads(capsys.readouterr().out)["label"] is None


def test_a_pipeline_gives_what_is_written(ran: Path) -> None:
    loaded = Adapter.load(ran)
    (found,) = pipeline(loaded)("the soup was warm")
    (expected,) = loaded.on_model().answers([Passage("the soup was warm")])
    assert found == {"label": expected.value, "score": expected.confidence}


def test_inspect_says_what_is_sent_and_what_is_asked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = printed(capsys, "inspect", config, "--json")
    assert facts["labels"]["north"] == {"with an answer": 14}
    assert not any("label" in sentence for sentence in facts["leaves_a_client"])
    assert run("inspect", config) == 0
    assert "an answer of at most 16 tokens" in capsys.readouterr().out
    assert run("inspect", config.parent / "run") == 0
    assert "second word" in capsys.readouterr().out


def test_personalise_takes_passages(config: Path, ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (config.parent / "north.jsonl", "--out", config.parent / "own", "--steps", "4", "--label-column", "answer")
    assert "used" in printed(capsys, "personalise", ran, *given, "--json")


def test_what_needs_labels_says_so(config: Path, ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TaskError, match=r"received 'extract'; allowed for Adapter.classifier: 'classify'"):
        Adapter.load(ran).classifier()
    assert run("audit", config) == 2
    assert "task.kind: received 'extract'; allowed for audit: 'classify'" in capsys.readouterr().err


def test_init_writes_a_config_that_has_no_readout(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert run("init", path, "--kind", "extract") == 0
    settings = load_settings(path)
    assert isinstance(settings.task, ExtractTask)
    assert settings.readout is None
    assert "genre: jazz" in path.read_text()


def test_the_task_cache_has_the_adapter_of_the_same_task_at_once(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, expected in enumerate(("miss", "exact")):
        stored = ("--store", tmp_path / "tasks.sqlite", "--federation", "clinics", "--json")
        assert printed(capsys, "run", config, "--out", tmp_path / f"run{number}", *stored)["cache"]["kind"] == expected
