"""What fresh processes import: without the extras, and no more than their work needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

OLD = Path(__file__).parents[1] / "fixtures" / "old"


def test_the_core_labels_text_and_has_its_reports_and_commands_without_any_of_them(llama_folder: Path, tmp_path: Path) -> None:
    """One process for all of it: its imports take seconds."""
    code = """
import sys
sys.modules.update(dict.fromkeys(("accelerate", "gguf", "matplotlib", "nvflare")))  # as Python marks what is not there
import ifedicl.report, ifedicl.runs, ifedicl.cli
from ifedicl import ModelSettings, load_backbone
print("layers", load_backbone(ModelSettings(source=sys.argv[1], device="cpu", dtype="float32")).layers)
for command in sys.argv[2:]:
    try:
        ifedicl.cli.main(command.split())
    except SystemExit as stop:
        print("exit status", stop.code or 0, file=sys.stderr)
"""
    refused = ["flare submit job --console kit", "flare start kit", "flare provision project.toml", "flare job c.toml"]
    command = [sys.executable, "-c", code, str(llama_folder), *refused, "init c.toml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "layers 3" in done.stdout.splitlines(), done.stderr
    statuses = [line.split()[-1] for line in done.stderr.splitlines() if line.startswith("exit status")]
    assert statuses == ["2", "2", "2", "2", "0"], done.stderr
    assert done.stderr.count("pip install 'ifedicl[nvflare]'") == len(refused)


def test_importing_it_imports_neither_torch_nor_transformers_and_warns_of_nothing() -> None:
    code = "import sys, ifedicl; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_job_of_a_flare_server_imports_neither_torch_nor_scipy() -> None:
    """It loads no model, and starts for every run."""
    code = "import sys, ifedicl.flare.controller, ifedicl.adapter; "
    code += "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_HEAVY = (
    "torch",
    "transformers",
    "scipy",
    "sqlalchemy",
    "fastapi",
    "matplotlib",
    "peft",
    "nvflare",
    "mlflow",
    "opentelemetry.sdk",
)
_FORKS = """
import json, os, sys
import ifedicl.cli, ifedicl.adapter, ifedicl.flare.jobs, ifedicl.inspection, ifedicl.owner.preview, ifedicl.runs.client_data
heavy, commands = json.loads(sys.argv[1])
for words in commands:
    sys.stdout.flush()
    if os.fork() == 0:
        sys.stderr = sys.stdout = open(os.devnull, "w")
        try:
            ifedicl.cli.main(words)
        except SystemExit as stop:
            found = [name for name in heavy if name in sys.modules]
            os.write(1, (json.dumps([words, stop.code, found]) + "\\n").encode())
        os._exit(0)
    os.wait()
"""


def test_every_wrong_path_file_and_column_is_found_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """Each command runs in a process of its own, forked from one that has imported nothing heavy."""
    (tmp_path / "bad.toml").write_text("not = = toml")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "clinic-a.jsonl").write_text('{"text": "The lift is stuck", "label": "urgent"}\n')
    (tmp_path / "clinic-b.csv").write_text("text,label\nA lamp is broken,normal\n")
    subprocess.run([sys.executable, "-m", "ifedicl.cli", "init", "files.toml"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "ifedicl.cli", "policy", "init", "client.toml"], cwd=tmp_path, check=True)
    text = (tmp_path / "files.toml").read_text()
    (tmp_path / "no-file.toml").write_text(text.replace("clinic-a.jsonl", "nowhere.jsonl"))
    (tmp_path / "no-column.toml").write_text(text.replace("clinic-a.jsonl", "rows.csv"))
    (tmp_path / "no-test.toml").write_text(text.replace('# test = "test.jsonl"', 'test = "nowhere.jsonl"'))
    (tmp_path / "no-model.toml").write_text(text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "./nowhere"))
    (tmp_path / "no-gguf.toml").write_text(text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "nowhere.gguf"))
    (tmp_path / "no-set.toml").write_text(
        'name = "x"\n[models]\nm = { source = "demo" }\n[sets]\ns = "nowhere"\n[[grids]]\nmethods = ["zero-shot"]\n'
    )
    adapter = str(OLD / "format-2")
    model = ["--model", str(OLD / "model")]
    configs = ["nowhere.toml", "bad.toml", "no-file.toml", "no-column.toml", "no-test.toml", "no-model.toml", "no-gguf.toml"]
    commands = [[command, config] for command in ("run", "inspect") for config in configs]
    commands += [["audit", config] for config in ("nowhere", *configs[:4])]
    commands += [["flare", "job", config] for config in ("nowhere.toml", "bad.toml", "no-model.toml", "no-gguf.toml")]
    commands += [["policy", "init", "other.toml", "--config", config] for config in ("nowhere.toml", "no-model.toml")]
    commands += [
        ["inspect", "nowhere"],
        ["inspect", "rows.csv/x"],
        ["classify", "nowhere", "text"],
        ["classify", ".", "text"],
        ["classify", adapter, "text", "--model", "./nowhere"],
        ["classify", adapter, "--file", "nowhere.csv", *model],
        ["classify", adapter, "--file", "rows.csv", *model],
        ["evaluate", "nowhere", "rows.csv"],
        ["evaluate", adapter, "nowhere.csv", *model],
        ["evaluate", adapter, "rows.csv", *model],
        ["personalise", "nowhere", "rows.csv", "--out", "out"],
        ["personalise", adapter, "rows.csv", "--out", "out", *model],
        ["serve", "nowhere"],
        ["serve", adapter, "--model", "./nowhere"],
        ["serve", adapter, "--host", "0.0.0.0"],  # noqa: S104  # it is refused
        ["export", "nowhere", "out"],
        ["export", adapter, "out", "--model", "./nowhere"],
        ["push", "nowhere", "us/mood"],
        ["push", adapter, "mood"],
        ["classify", "hub:mood", "text"],
        ["serve", "hub:mood"],
        ["serve", adapter, "--allowed-host", "*"],
        ["bench", "nowhere.toml"],
        ["bench", "bad.toml"],
        ["bench", "no-set.toml"],
        ["policy", "check", "nowhere.toml"],
        ["policy", "check", "client.toml", "--config", "nowhere.toml"],
        ["policy", "check", "client.toml"],
        ["policy", "approve", "nowhere.json", "client.toml"],
        ["flare", "start", "nowhere"],
        ["flare", "submit", "nowhere", "--console", "nowhere"],
        ["flare", "status", "--console", "nowhere"],
        ["tasks", "list", "--store", "nowhere.sqlite"],
        ["tasks", "import", "nowhere", "--store", "cache.sqlite"],
        ["ledger", "show", "nowhere"],
    ]
    arguments = [sys.executable, "-c", _FORKS, json.dumps([_HEAVY, commands])]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, _, _ in results] == commands, done.stderr
    assert [(words, code) for words, code, _ in results if not 2 <= code <= 9] == []
    assert [(words, found) for words, _, found in results if found] == []
