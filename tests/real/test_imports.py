"""What fresh processes import: without the extras, and no more than their work needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
