"""The command line with a task of several labels: a config, a run, figures and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ifedicl import Adapter, pipeline
from ifedicl.backbone.load import Backbone
from ifedicl.data import read_examples
from ifedicl.kinds.label_sets import MultiLabelExample
from ifedicl.kinds.multi_label import MultiLabelTask
from ifedicl.settings import load_settings
from tests.support.command_line import run
from tests.support.label_sets import LABELS, examples

pytestmark = pytest.mark.usefixtures("no_pictures")


def rows(chosen: tuple[MultiLabelExample, ...]) -> str:
    return "".join(json.dumps({"text": each.text, "labels": sorted(each.labels)}) + "\n" for each in chosen)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """Two clients' files (lists, and names with separators), a test file, and the config of a short run, which has run."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "north.jsonl").write_text(rows(examples(18, seed=1)))
    (folder / "test.jsonl").write_text(rows(examples(15, seed=2)))
    table = "".join(f'{each.text},"{"|".join(sorted(each.labels))}"\n' for each in examples(16, seed=3) if "," not in each.text)
    (folder / "south.csv").write_text("text,labels\n" + table)
    path = folder / "config.toml"
    path.write_text(
        'preset = "subspace"\n[task]\nkind = "multi-label"\nname = "places"\ntemplate = "Text: {text}\\nPlace:"\n'
        f'labels = {json.dumps(LABELS)}\nthreshold_word = "bad"\n'
        f'[model]\nsource = {json.dumps(str(llama_folder))}\ndevice = "cpu"\ndtype = "float32"\n'
        '[data]\nclients = { north = "north.jsonl", south = "south.csv" }\ntest = "test.jsonl"\nlabel_column = "labels"\n'
        "[holdout]\nselection = 0.3\ngate = 0.2\n[rounds]\nrounds = 1\n[calibration]\nbatch_size = 2\nlocal_steps = 1\n"
    )
    assert run("run", path, "--out", folder / "run") == 0
    return path


def test_a_run_ends_with_figures_a_report_and_a_card(config: Path) -> None:
    lines = [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    tests = {line["name"]: line for line in lines if line["event"] == "test"}
    assert {"micro_f1", "micro_f1_interval", "macro_f1", "hamming_loss", "accuracy"} <= set(tests["adapter"])
    card = (config.parent / "run" / "adapter" / "README.md").read_text()
    assert "Says which of these labels a text has, any number of them: warm, alone, at home" in card
    page = (config.parent / "run" / "report.html").read_text()
    assert "micro-F1" in page
    assert "Hamming loss" in page


def test_evaluate_and_classify_agree_about_whole_sets(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, file = str(config.parent / "run"), config.parent / "test.jsonl"
    assert run("evaluate", adapter, file, "--label-column", "labels", "--json") == 0
    figures = json.loads(capsys.readouterr().out)["adapter"]
    assert run("classify", adapter, "--file", file, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = read_examples(file, load_settings(config).task, label="labels")
    truth = [each.labels for each in asked if isinstance(each, MultiLabelExample)]
    right = sum(set(answer["label"]) == labels for answer, labels in zip(answers, truth, strict=True))
    assert right / 15 == pytest.approx(figures["accuracy"])
    for answer in answers:
        assert set(answer["label"]) == {label for label, share in answer["probabilities"].items() if share > 0.5}
    assert run("classify", adapter, "a text") == 0
    assert capsys.readouterr().out.endswith("\ta text\n")


def test_a_pipeline_ranks_labels_by_probabilities_of_their_own(config: Path, backbone: Backbone) -> None:
    adapter = Adapter.load(config.parent / "run")
    ranked = pipeline(adapter, backbone=backbone)(["a text"], top_k=None)[0]
    (answer,) = adapter.on_model(backbone).answers([MultiLabelExample("a text", frozenset())])
    assert {one["label"]: one["score"] for one in ranked} == answer.facts["probabilities"]
    assert [one["score"] for one in ranked] == sorted((one["score"] for one in ranked), reverse=True)


def test_inspect_counts_labels_and_says_what_is_sent(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", config, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    labels = [label for each in examples(18, seed=1) for label in each.labels]
    assert {label: facts["labels"]["north"][label] for label in LABELS} == {label: labels.count(label) for label in LABELS}
    assert any("true and how many answered sets of labels" in sentence for sentence in facts["leaves_a_client"])
    assert run("inspect", config.parent / "north.jsonl", "--label-column", "labels", "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"]["warm"] == labels.count("warm")
    assert run("inspect", config.parent / "run", "--json") == 0


@pytest.mark.parametrize("form", ["checkpoint", "lora", "sequence-classification", "lora-sequence-classification"])
def test_an_export_is_refused_by_name(config: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert run("export", config.parent / "run", config.parent / "out", "--as", form) > 0
    assert "task.kind: received 'multi-label'" in capsys.readouterr().err
    assert not (config.parent / "out").exists()


def test_init_writes_a_config_for_several_labels(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert run("init", path, "--kind", "multi-label") == 0
    task = load_settings(path).task
    assert isinstance(task, MultiLabelTask)
    assert task.threshold_word == "none"
    assert '"label": ["lift", "heating"]' in path.read_text()
