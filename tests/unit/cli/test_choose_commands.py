"""The command line with a task of choices: a config, a run, figures and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.option_scoring import OptionScorer
from ifedicl.kinds.choices import Choice
from ifedicl.kinds.choose import ChooseTask
from ifedicl.settings import ModelSettings, load_settings
from tests.support.choices import choices
from tests.support.command_line import run

pytestmark = pytest.mark.usefixtures("no_pictures")


def row_of(choice: Choice) -> dict[str, object]:
    return {"text": choice.text, "options": list(choice.options), "label": choice.which}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """Two clients' files (a list, and columns), a test file, and the config of a short run, which has run."""
    folder = tmp_path_factory.mktemp("choices")
    for seed, name in enumerate(("north", "test")):
        lines = (json.dumps(row_of(choice)) + "\n" for choice in choices(18, seed=seed))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    table = ["text,option_a,option_b,option_c,option_d,label"]
    for choice in choices(18, seed=5):
        padded = (*choice.options, *[""] * (4 - len(choice.options)))
        table.append(",".join((f'"{choice.text}"', *padded, "ABCD"[choice.which])))
    (folder / "south.csv").write_text("\n".join(table) + "\n")
    path = folder / "config.toml"
    path.write_text(
        'preset = "subspace"\n[task]\nkind = "choose"\nname = "places"\ntemplate = "Text: {text}\\nPlace:"\n'
        f'[model]\nsource = {json.dumps(str(llama_folder))}\ndevice = "cpu"\ndtype = "float32"\n'
        '[data]\nclients = { north = "north.jsonl", south = "south.csv" }\ntest = "test.jsonl"\n'
        "[holdout]\nselection = 0.3\ngate = 0.2\n[rounds]\nrounds = 1\n[calibration]\nbatch_size = 2\nlocal_steps = 1\n"
    )
    assert run("run", path, "--out", folder / "run") == 0
    return path


def test_a_run_of_choices_ends_with_figures_and_a_card(config: Path) -> None:
    lines = [json.loads(line) for line in (config.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "choose"
    tests = {line["name"]: line for line in lines if line["event"] == "test"}
    assert set(tests) == {"zero-shot", "adapter"}
    assert tests["adapter"]["examples"] == 18
    card = (config.parent / "run" / "adapter" / "README.md").read_text()
    assert "Chooses among the options of each text" in card
    assert "2 options" in (config.parent / "run" / "report.html").read_text()


def test_evaluate_and_classify_answer_with_the_rows_own_options(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, rows = str(config.parent / "run"), str(config.parent / "test.jsonl")
    assert run("evaluate", adapter, rows, "--json") == 0
    figures = json.loads(capsys.readouterr().out)["adapter"]
    assert figures["examples"] == 18
    assert run("evaluate", adapter, rows) == 0
    assert "by chance" in capsys.readouterr().out
    assert run("classify", adapter, "--file", rows, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = choices(18, seed=1)
    assert [tuple(answer["options"]) for answer in answers] == [choice.options for choice in asked]
    right = sum(answer["label"] == choice.which for answer, choice in zip(answers, asked, strict=True))
    assert right / 18 == pytest.approx(figures["accuracy"])
    assert all(sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5) for answer in answers)


def test_a_text_without_options_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", str(config.parent / "run"), "a text") == 3
    assert "no column 'options' with a list" in capsys.readouterr().err


def test_inspect_says_what_is_sent_and_what_is_asked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", config, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["labels"]["north"] == {"2 options": 6, "3 options": 6, "4 options": 6}
    assert any("of right and of wrong options" in sentence for sentence in facts["leaves_a_client"])
    assert run("inspect", config.parent / "run") == 0
    assert "Chooses among the options of each text" in " ".join(capsys.readouterr().out.split())
    assert run("inspect", config) == 0
    assert "one of the example's own options" in capsys.readouterr().out


def test_personalise_takes_choices(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, out = config.parent / "run", config.parent / "own"
    assert run("personalise", adapter, config.parent / "north.jsonl", "--out", out, "--steps", "4", "--json") == 0
    assert "used" in json.loads(capsys.readouterr().out)


def test_init_writes_a_config_for_choices(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert run("init", path, "--kind", "choose") == 0
    task = load_settings(path).task
    assert isinstance(task, ChooseTask)
    assert '"options": ["It was stuck"' in path.read_text()


def test_an_exported_checkpoint_scores_options_as_the_adapter_without_its_readout_does(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", config.parent / "run", tmp_path / "plain") == 0
    adapter = replace(Adapter.load(config.parent / "run"), readout=None)
    plain = load_backbone(ModelSettings(source=str(tmp_path / "plain"), dtype="float32", device="cpu"))
    scorer = OptionScorer(plain, as_choices(adapter))
    rows = choices(6)
    np.testing.assert_allclose(scorer.scores(scorer.encoded(rows)), adapter.on_model().scores(rows), atol=1e-3)
    assert "'one option': ' one option'" in (tmp_path / "plain" / "README.md").read_text()
    for form in ("sequence-classification", "lora-sequence-classification"):
        assert run("export", config.parent / "run", tmp_path / form, "--as", form) != 0
        assert "allowed for a classification head: 'classify'" in capsys.readouterr().err


def as_choices(adapter: Adapter) -> ChooseTask:
    assert isinstance(adapter.task, ChooseTask)
    return adapter.task


def test_the_task_cache_has_the_adapter_of_the_same_choices_at_once(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, expected in enumerate(("miss", "exact")):
        stored = ("--store", tmp_path / "tasks.sqlite", "--federation", "clinics", "--json")
        assert run("run", config, "--out", tmp_path / f"run{number}", *stored) == 0
        assert json.loads(capsys.readouterr().out)["cache"]["kind"] == expected
