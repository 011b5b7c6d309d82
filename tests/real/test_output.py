"""The command line's output where it is not a terminal in UTF-8. Each command runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ifedicl.cli import output
from tests.support.command_line import run

TEXT = "Größe 😀 \udcff"
COMMANDS = f"""
    import sys
    from ifedicl import cli
    from ifedicl.cli.options import Json

    @cli.app.command()
    def shout(kind: str, as_json: Json = False) -> None:
        from rich.console import Console
        from rich.table import Table
        import json
        text = {TEXT!a}
        if kind == "table":
            table = Table("what")
            for _ in range(3):
                table.add_row(text)
            Console(markup=False).print(table)
        if kind == "lines":
            for _ in range(100_000):
                print(json.dumps({{"text": text}}, ensure_ascii=False))
        if kind == "console":
            for _ in range(20_000):
                Console(markup=False).print(text)
        if kind == "one":
            print(json.dumps({{"text": text}}, ensure_ascii=False))
            print(text, file=sys.stderr)

    cli.main()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(textwrap.dedent(COMMANDS))
    return [sys.executable, str(path)]


def done(program: list[str], *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*program, *arguments], capture_output=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
    ids=["ascii", "latin-1", "C", "utf-8"],
)
def test_what_an_encoding_does_not_have_is_escaped_and_json_stays_json(program: list[str], environment: dict[str, str]) -> None:
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    ended = done(program, "shout", "one", **environment)
    assert ended.returncode == 0
    assert json.loads(ended.stdout.decode(encoding))["text"] == TEXT
    emoji = "😀" if encoding == "utf-8" else r"\ud83d\ude00"
    assert f"e {emoji} \\udcff" in ended.stderr.decode(encoding)
    assert b"Traceback" not in ended.stderr
    table = done(program, "shout", "table", **environment)
    assert table.returncode == 0, table.stderr
    assert table.stdout.decode(encoding).count(r"\udcff") == 3


def test_an_error_with_a_name_that_is_not_of_the_encoding_is_an_error(program: list[str], tmp_path: Path) -> None:
    ended = done(program, "inspect", str(tmp_path / "Ärger"), "--json", PYTHONIOENCODING="ascii")
    assert ended.returncode > 0
    assert b"Traceback" not in ended.stderr
    assert "Ärger" in json.loads(ended.stdout)["error"]["message"]


@pytest.mark.parametrize("kind", ["lines", "console"])
def test_a_reader_that_goes_ends_the_command_without_a_word(program: list[str], kind: str) -> None:
    with subprocess.Popen([*program, "shout", kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == output.READER_GONE


@pytest.mark.parametrize("arguments", [["shout", "one"], ["--version"], ["classify", "no-adapter", "a", "--json"]])
def test_a_reader_that_never_was_is_no_traceback_either(program: list[str], arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*program, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert ended.returncode == output.READER_GONE
    assert b"Traceback" not in ended.stderr
    assert b"BrokenPipe" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("kind", ["one", "lines"])
def test_a_full_disk_is_an_error_with_its_reason(program: list[str], kind: str) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([*program, "shout", kind], stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 6
    assert b"error: the output cannot be written: No space left on device" in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said", "command"),
    [
        (["evaluate", "--json"], "Missing argument", "ifedicl evaluate"),
        (["evaluate", "a", "b", "--jsn", "--json"], "--jsn", "ifedicl evaluate"),
        (["evaluat", "--json"], "evaluate", "ifedicl"),
        (["tasks", "show", "three", "--json"], "'ID'", "ifedicl tasks show"),
        (["tasks", "shov", "--json"], "show", "ifedicl tasks"),
        (["personalise", "a", "b", "--out", "c", "--seed", "-3", "--json"], "--seed", "ifedicl personalise"),
    ],
)
def test_wrong_arguments_are_json_where_json_is_asked_for(
    arguments: list[str], said: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert (error["code"], error["kind"], error["faults"]) == (2, "UsageError", [])
    assert said in error["message"]
    assert error["message"].endswith(f". See: {command} --help")
    assert said in printed.err
    assert run(*(word for word in arguments if word != "--json")) == 2
    assert capsys.readouterr().out == ""


def test_closed_standard_input_is_no_text(program: list[str], tiny_adapters: Path) -> None:
    words = [*program, "classify", str(tiny_adapters / "mood")]
    ended = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *words], capture_output=True, check=False)  # noqa: S607
    assert ended.returncode == 3
    assert b"standard input is closed" in ended.stderr
