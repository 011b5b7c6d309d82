"""The developer's walk: docs/python.md from six sentences to an adapter and scikit-learn; then a server and its page."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.pages import blocks_of, console_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> tuple[Path, str]:
    """Where the Python blocks of the page have run, in order, as one program; and what it printed."""
    place = tmp_path_factory.mktemp("developer")
    program = "\n".join(block.text for block in blocks_of("docs/python.md") if block.kind == "python")
    assert program.count("demo_model()") == 1
    program = program.replace("demo_model()", repr(str(llama_folder)))
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place, done.stdout


def test_the_programs_of_the_page_run_in_order(folder: tuple[Path, str]) -> None:
    place, printed = folder
    label, scores = printed.splitlines()
    assert label in ("good", "bad")
    assert len(scores.strip("[]").split()) == 3  # of scikit-learn's cross-validation
    assert (place / "runs" / "mood" / "adapter.json").is_file()


@contextmanager
def served(command: list[str], place: Path) -> Iterator[str]:
    """A server of the page's command at a free port, until the block ends; its address."""
    words = [sys.executable, "-m", "ifedicl.cli", *command[1:], "--port", "0"]
    with subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield next(line for line in process.stderr if line.startswith("serving ")).split()[-1].rstrip("/")
        finally:
            process.terminate()


def test_the_servers_page_answers_what_the_documents_send(folder: tuple[Path, str]) -> None:
    place, _ = folder
    serve, curl = console_lines("docs/serving.md", "## A server")
    assert serve.startswith("ifedicl serve ")
    with served(["ifedicl", "serve", "runs/mood"], place) as url:
        words = shlex.split(curl)
        assert words[:3] == ["curl", "-s", "localhost:8000/v1/classify"]
        # As curl sends it: a body without a type of its own.
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        request = urllib.request.Request(f"{url}/v1/classify", words[4].encode(), kind)  # noqa: S310  # our own server
        with urllib.request.urlopen(request) as reply:  # noqa: S310
            answer = json.load(reply)
        result = answer["results"][0]
        assert result["label"] in ("good", "bad")
        with urllib.request.urlopen(url + "/") as page:  # noqa: S310
            assert b"<html" in page.read()
