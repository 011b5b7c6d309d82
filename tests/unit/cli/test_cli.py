"""The command line: what a person and a script meet. Runs the real commands on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ifedicl import cli
from ifedicl.bench.plan_file import shipped
from ifedicl.errors import DataError
from ifedicl.kinds.any_task import SHOWN_TEXT
from tests.support import tiny
from tests.support.command_line import run

pytestmark = pytest.mark.usefixtures("no_pictures")  # but the run that is copied has them


def test_run_writes_adapter_metrics_config_and_a_report_that_needs_no_network(finished: Path, config: Path) -> None:
    assert (finished / "config.toml").read_text() == config.read_text()
    kinds = [json.loads(line)["event"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("round") == 2
    assert "exchange" in kinds
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 7
    assert "<script" not in page
    assert "<link" not in page
    assert "north" in page
    assert {file.name for file in (finished / "adapter").iterdir()} == {"adapter.json", "adapter.safetensors", "README.md"}


def test_the_report_shows_no_row_of_the_data(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert not [row.text for seed in range(3) for row in tiny.examples(12, seed=seed) if row.text in page]


def test_run_as_json_prints_one_object_and_nothing_else(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", str(config), "--out", str(config.parent / "r"), "--json") == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert facts["rounds"] == 2
    assert set(facts["test"]) == {"zero-shot", "the federation"}
    assert "round 2 of 2" in shown.err  # progress, for whoever watches a log


def test_a_second_run_in_the_same_folder_is_refused_and_says_how_to_go_on(
    finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", str(config), "--out", str(finished)) == 2
    assert "--resume" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(finished: Path, config: Path) -> None:
    before = (finished / "adapter" / "adapter.safetensors").read_bytes()
    assert run("run", str(config), "--out", str(finished), "--resume") == 0
    assert (finished / "adapter" / "adapter.safetensors").read_bytes() == before


def test_more_rounds_take_in_examples_that_were_added(finished: Path, config: Path) -> None:
    added = [{"text": f"{row.text} later", "label": row.label} for row in tiny.examples(6, seed=9)]
    with (config.parent / "north.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in added)
    before = json.loads((finished / "adapter" / "adapter.json").read_text())["provenance"]
    assert run("run", str(config), "--out", str(finished), "--more-rounds", "1") == 0
    after = json.loads((finished / "adapter" / "adapter.json").read_text())["provenance"]
    assert after["rounds"] == before["rounds"] + 1
    assert after["examples_vectorised"] > before["examples_vectorised"]


def test_classify_labels_arguments_files_and_standard_input_alike(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = str(finished / "adapter")
    assert run("classify", adapter, "fresh bread") == 0
    from_argument = capsys.readouterr().out
    label, probability, text = from_argument.rstrip("\n").split("\t")
    assert label in tiny.TASK.labels
    assert 0 <= float(probability) <= 1
    assert text == "fresh bread"
    (tmp_path / "texts.txt").write_text("fresh bread\n")
    assert run("classify", adapter, "--file", str(tmp_path / "texts.txt")) == 0
    assert capsys.readouterr().out == from_argument
    with (tmp_path / "texts.txt").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert run("classify", adapter) == 0
    assert capsys.readouterr().out == from_argument


def test_classify_as_json_gives_all_probabilities(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", str(finished / "adapter"), "a", "b", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["a", "b"]
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_evaluate_prints_figures_beside_zero_shot(finished: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", str(finished / "adapter"), str(config.parent / "test.jsonl")) == 0
    out = capsys.readouterr().out
    assert "zero-shot" in out
    assert "macro-F1" in out
    assert run("evaluate", str(finished / "adapter"), str(config.parent / "test.jsonl"), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert sum(map(sum, facts["adapter"]["confusion"])) == 12
    low, high = facts["adapter"]["interval"]
    assert low <= facts["adapter"]["accuracy"] <= high


def test_inspecting_a_config_gives_the_bytes_that_a_run_then_sends(
    finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", str(config), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    expected, memory = facts["bytes_per_client"], facts["memory"]
    assert memory["peak"] == memory["weights"] + memory["tokens_in_a_pass"] * memory["token_of_a_step"] > memory["weights"]
    assert memory["kept_states"] == 0, "all layers are injected, so no states are kept"
    exchanges = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for step, name in (("vectors", "vectors_reply_up"), ("update", "update_reply_up"), ("evaluate", "evaluate_reply_up")):
        sent = [item["bytes_up"] for item in exchanges if item.get("step") == step]
        assert max(abs(size - expected[name]) for size in sent) <= 24, step  # digits of counts and losses vary
    down = [item["bytes_down"] for item in exchanges if item.get("step") == "context"]
    assert down == [expected["context_request_down"]] * 2


def test_the_steps_that_a_config_announces_are_those_of_the_run_and_their_bytes_add_up(
    finished: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", str(config), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    sent = Counter(line["step"] for line in lines if line["event"] == "exchange" and line["client"] == "north")
    assert {step["step"]: step["times"] for step in facts["steps"]} == sent
    up = sum(line["bytes_up"] for line in lines if line["event"] == "exchange" and line["client"] == "north")
    assert abs(facts["bytes_in_all"]["up"] - up) <= 24 * sum(sent.values())
    assert facts["labels"]["north"] == {"good": 6, "bad": 6}
    assert facts["prompt"] == tiny.TASK.prompt(SHOWN_TEXT)
    assert run("inspect", str(config)) == 0
    table = capsys.readouterr().out
    for words in ("north", "good 6, bad 6", "means of what the model's", "each round", f"{facts['bytes_in_all']['up']:,}"):
        assert words in table
    assert "{" not in table


def test_inspecting_an_adapter_and_a_data_file(finished: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(finished / "adapter"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3
    assert run("inspect", str(config.parent / "north.jsonl"), "--json") == 0
    out = capsys.readouterr().out
    facts = json.loads(out)
    assert facts["rows"] == 12
    assert facts["labels"] == {"good": 6, "bad": 6}
    assert tiny.examples(12)[0].text not in out
    assert run("inspect", str(finished / "adapter")) == 0
    assert run("inspect", str(config.parent / "north.jsonl")) == 0
    tables = capsys.readouterr().out
    assert "mood: Labels text as good, bad" in tables
    assert "good 6, bad 6" in tables


def test_init_writes_a_config_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    assert run("init", str(path)) == 0
    assert "ifedicl run" in capsys.readouterr().out
    path.write_text("mine")
    assert run("init", str(path)) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert run("init", str(path), "--force") == 0
    assert "[task]" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["classify", "nowhere", "x"], 5, "is not an adapter: adapter.json is missing"),
        (["inspect", "nowhere"], 3, "no such file or folder"),
        (["run", "nowhere.toml"], 2, "Write one with: ifedicl init"),
    ],
)
def test_errors_go_to_standard_error_with_a_code_and_no_traceback(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_one_class_only_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("north", "south"):
        (config.parent / f"{name}.jsonl").write_text('{"text": "soup", "label": "good"}\n{"text": "bread", "label": "good"}\n')
    assert run("run", str(config), "--out", str(config.parent / "r")) == 3
    assert "all examples have the label 'good'; at least two of good, bad are needed" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_says_that_nothing_is_lost(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ifedicl.runs.run", interrupted)
    assert run("run", str(config), "--out", str(config.parent / "r")) == 130
    assert "--resume" in capsys.readouterr().err


def test_every_command_has_a_help_that_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__
        assert run(name, "--help") == 0
        assert len(capsys.readouterr().out) > 200, name


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("ifedicl 0.")


def test_a_task_that_the_model_cannot_score_is_refused_in_words_and_nothing_is_started(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace('name = "mood"', 'name = "mood"\nturn = "chat"'))
    assert run("run", str(config), "--out", str(config.parent / "r")) == 2
    assert "has no chat template; use turn = 'raw'" in capsys.readouterr().err
    assert not (config.parent / "r" / "checkpoint").exists()


def test_more_rounds_without_a_run_are_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", str(config), "--out", str(config.parent / "r"), "--more-rounds", "2") == 2
    assert "Run it first" in capsys.readouterr().err


def test_resuming_where_no_run_has_begun_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", str(config), "--out", str(config.parent / "r"), "--resume") == 2
    assert "allowed: the folder of a run that has begun" in capsys.readouterr().err
    assert not (config.parent / "r").exists()


def test_the_config_that_is_kept_is_that_of_the_run_and_not_of_a_try_that_failed(config: Path, finished: Path) -> None:
    whole, out = config.read_text(), config.parent / "r"
    config.write_text(whole.replace("north.jsonl", "nowhere.jsonl"))
    assert run("run", str(config), "--out", str(out)) == 3
    assert not (out / "config.toml").exists()
    config.write_text(whole)
    assert run("run", str(config), "--out", str(out)) == 0
    assert (out / "config.toml").read_text() == whole
    # One that began, and died before its first checkpoint.
    shutil.rmtree(out / "checkpoint")
    config.write_text(f"{whole}\n# changed\n")
    assert run("run", str(config), "--out", str(out), "--resume") == 0
    assert (out / "config.toml").read_text() == f"{whole}\n# changed\n"


def test_a_config_that_lies_in_the_folder_of_a_run_to_be_is_not_replaced(config: Path) -> None:
    before = config.read_text()
    other = config.parent / "other.toml"
    other.write_text(f"{before}\n# another\n")
    assert run("run", str(other), "--out", str(config.parent)) == 0
    assert config.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["classify", "nowhere", "x", "--json"], 5, "AdapterError"),
        (["inspect", "nowhere", "--json"], 3, "DataError"),
        (["run", "nowhere.toml", "--json"], 2, "ConfigError"),
        (["ledger", "verify", "nowhere", "--json"], 6, "StorageError"),
    ],
)
def test_with_json_an_error_is_one_object_on_standard_output(
    arguments: list[str], code: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert (error["code"], error["kind"]) == (code, kind)
    assert shown.err == f"error: {error['message']}\n"
    if kind == "ConfigError":
        assert set(error["faults"][0]) == {"field", "received", "allowed", "remedy"}


def test_json_behind_two_dashes_is_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("classify", "nowhere", "--", "--json") == 5
    assert capsys.readouterr().out == ""


def test_the_help_of_bench_names_every_plan_that_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--help") == 0
    out = "".join(capsys.readouterr().out.split())  # lines are broken at hyphens, too
    assert [name for name in shipped() if name not in out] == []


@pytest.mark.parametrize("command", [["list"], ["show", "1"], ["search", "1"], ["export", "1", "x"], ["rm", "1"], ["gc"]])
def test_looking_into_a_task_cache_that_is_not_there_makes_none(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tasks", *command, "--store", str(tmp_path / "absent" / "tasks.db")) == 6
    assert "tasks.db: there is no such task cache" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_the_folder_as_it_was(finished: Path, config: Path) -> None:
    before = (finished / "config.toml").read_text()
    config.write_text(f"{before}\n# changed\n")
    assert run("run", str(config), "--out", str(finished)) == 2
    assert (finished / "config.toml").read_text() == before


def test_an_adapter_takes_the_place_of_its_model_on_this_machine(
    finished: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = finished / "adapter" / "adapter.json"
    header.write_text(header.read_text().replace(str(llama_folder), str(tmp_path / "moved")))
    assert run("classify", str(finished / "adapter"), "soup") == 4
    capsys.readouterr()
    assert run("classify", str(finished / "adapter"), "soup", "--model", str(llama_folder)) == 0
    assert capsys.readouterr().out.split("\t")[0] in tiny.TASK.labels


def test_the_model_card_names_no_folder_of_its_maker(finished: Path, llama_folder: Path) -> None:
    card = (finished / "adapter" / "README.md").read_text()
    assert str(llama_folder) not in card
    assert llama_folder.name in card


def test_a_csv_without_a_header_shows_little_of_its_first_row(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the patient said that she had been waiting since Monday"
    (config.parent / "north.csv").write_text(f"{text},good\nsoup,bad\n")
    config.write_text(config.read_text().replace("north.jsonl", "north.csv"))
    assert run("run", str(config), "--out", str(config.parent / "r")) == 3
    assert text[:30] not in capsys.readouterr().err
    assert run("inspect", str(config.parent / "north.csv")) == 0
    assert text[:30] not in capsys.readouterr().out


def test_bench_runs_a_plan_of_ones_own_and_says_what_is_left(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ifedicl.bench.html_page._pictures", lambda plan, records: [])  # test_runner.py looks at them
    for name, seed in (("train", 0), ("test", 5)):
        (tmp_path / "moods").mkdir(exist_ok=True)
        tiny.write_rows(tmp_path / "moods" / f"{name}.jsonl", tiny.rows(24, seed=seed))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
        name = "own"
        clients = 2
        pool = 16
        test_rows = 6
        [models]
        tiny = {{ source = "{llama_folder}", dtype = "float32", device = "cpu" }}
        [sets]
        moods = "moods"
        [training]
        rounds = 1
        [[grids]]
        methods = ["zero-shot", "ifed-icl"]
        seeds = [0]
        """
    )
    out = ["--out", str(tmp_path / "out")]
    assert run("bench", str(plan), "--dry-run", *out) == 0
    assert "2 cells are left" in capsys.readouterr().out
    assert run("bench", str(plan), *out) == 0
    assert "| ifed-icl |" in capsys.readouterr().out
    assert run("bench", str(plan), "--dry-run", "--json", *out) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.jsonl", "results.md", "results.html"}
    (tmp_path / "out" / "results.jsonl").unlink()
    assert run("bench", str(plan), "--json", *out) == 0
    assert [json.loads(line)["cell"]["method"] for line in capsys.readouterr().out.splitlines()] == ["zero-shot", "ifed-icl"]


def test_bench_refuses_a_plan_with_an_unknown_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'name = "p"\n[models]\nm = {source = "demo"}\n[sets]\ns = "demo"\n[[grids]]\nmethods = ["magic"]\n', encoding="utf-8"
    )
    assert run("bench", str(plan)) == 2
    assert "ridge-probe" in capsys.readouterr().err


def test_text_that_is_not_utf8_is_an_error_and_no_traceback(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.txt").write_bytes("für immer\n".encode("latin-1"))
    with (tmp_path / "latin.txt").open(encoding="utf-8", errors="surrogateescape") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert run("classify", str(finished / "adapter")) == DataError.exit_code
    assert "not UTF-8 text (byte 1)" in capsys.readouterr().err
    assert run("classify", str(finished / "adapter"), "caf\udce9 bleeding") == DataError.exit_code
    assert "--file" in capsys.readouterr().err
