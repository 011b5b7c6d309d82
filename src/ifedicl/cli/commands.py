"""The ``ifedicl`` command. Results go to standard output, progress and errors to standard error; errors have exit codes."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any

import typer

from ifedicl import __version__
from ifedicl.cli import audit, export, flare, inference, owner, project, run, serve, tasks
from ifedicl.errors import ConfigError, IfediclError

# torch, transformers and matplotlib take seconds to import. Commands import what they need, so that --help is fast.

_INTERRUPTED = 130  # typer's exit code for Ctrl-C

app = typer.Typer(
    name="ifedicl",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Calibrate one frozen language model together, without showing each other your text (IFed-ICL, arXiv 2511.06757).\n\n"
    "Start with `ifedicl demo`; for your own data, `ifedicl init`, then `ifedicl run config.toml`.",
    epilog="Exit codes: 0 done, 1 other, 2 settings or task, 3 data, 4 model, 5 adapter, 6 disk, 7 download, 8 federation, "
    "9 serving, 130 stopped by Ctrl-C (--resume continues a run). With --json, errors are also printed to standard output: "
    '{"error": {"code": EXIT CODE, "kind": ..., "message": ..., "faults": [...]}}.',
)

for group, name in ((tasks.app, "tasks"), (flare.app, "flare"), (owner.policy, "policy"), (owner.ledger, "ledger")):
    app.add_typer(group, name=name)
for command in (
    project.demo,
    project.init,
    project.inspect,
    run.run,
    inference.classify,
    inference.evaluate,
    inference.personalise,
    export.export,
    serve.serve,
    serve.key,
    audit.audit,
    project.bench,
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        _command()(args=None if arguments is None else list(arguments), prog_name="ifedicl")
    except IfediclError as error:
        print(f"error: {error}", file=sys.stderr)
        if _wants_json(sys.argv[1:] if arguments is None else arguments):
            print(json.dumps({"error": _facts(error)}, ensure_ascii=False))
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            print("stopped. --resume continues a run after its last round; other commands start again.", file=sys.stderr)
        raise


@cache
def _command() -> Callable[..., Any]:
    """All commands. Typer reads the signature of each of them, so a program that calls :func:`main` often has it done once."""
    return typer.main.get_command(app)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among the options; arguments after ``--`` are texts."""
    return "--json" in itertools.takewhile(lambda argument: argument != "--", arguments)


def _facts(error: IfediclError) -> dict[str, Any]:
    """An error for scripts. The message has the remedy; faults of settings are also listed one by one."""
    faults = [asdict(fault) for fault in error.faults] if isinstance(error, ConfigError) else []
    return {"code": error.exit_code, "kind": type(error).__name__, "message": str(error), "faults": faults}


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"ifedicl {__version__}")
        raise typer.Exit
