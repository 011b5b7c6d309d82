"""The ``ifedicl`` command. Results go to standard output, progress and errors to standard error; errors have exit codes."""

from __future__ import annotations

import errno
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any

import typer

from ifedicl import __version__
from ifedicl.cli import audit, export, flare, forget, harness, inference, output, owner, project, push, run, serve, tasks
from ifedicl.errors import ConfigError, IfediclError, StorageError

# torch, transformers and matplotlib take seconds to import. Commands import what they need, so that --help is fast.

_UsageError = typer.BadParameter.__mro__[1]  # typer has its own copy of click, without a public name for it
_INTERRUPTED = 130  # typer's exit code for Ctrl-C

app = typer.Typer(
    name="ifedicl",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Calibrate one frozen language model together, without showing each other your text (IFed-ICL, arXiv 2511.06757).\n\n"
    "Start with `ifedicl demo`; for your own data, `ifedicl init`, then `ifedicl run config.toml`.",
    epilog="Exit codes: 0 done, 1 other, 2 settings or task, 3 data, 4 model, 5 adapter, 6 disk, 7 download, 8 federation, "
    "9 serving, 130 stopped by Ctrl-C (--resume continues a run), 141 the reader of the output has gone. With --json, errors "
    "(and wrong arguments) are also printed to standard output: "
    '{"error": {"code": EXIT CODE, "kind": ..., "message": ..., "faults": [...]}}.',
)

for command, summary in (
    (project.demo, "Four organisations, alone and together, in minutes."),
    (project.init, "Write a commented config for your own data."),
    (project.inspect, "Show what a file holds, or what a config would send."),
    (run.run, "Run a federation of all clients on this machine."),
    (forget.forget, "Remove clients or examples from a finished run."),
    (inference.classify, "Label texts with an adapter."),
    (inference.evaluate, "Measure an adapter on labelled text."),
    (inference.personalise, "Calibrate an adapter further on your own text."),
    (export.export, "Write a checkpoint, LoRA or classifier that others serve."),
    (harness.harness, "Write a task for lm-evaluation-harness."),
    (push.push, "Push an adapter to the hub, after showing what goes."),
    (serve.serve, "Serve adapters: REST, metrics and a page."),
    (serve.key, "Make an API key for `ifedicl serve`."),
    (audit.audit, "Attack what a client would send, before it is sent."),
    (project.bench, "Measure methods on data sets."),
):
    app.command(short_help=summary)(command)
for group, name, summary in (
    (tasks.app, "tasks", "The task cache: stored adapters."),
    (flare.app, "flare", "A federation of separate machines."),
    (owner.policy, "policy", "A data owner's rules, and approval of jobs."),
    (owner.ledger, "ledger", "A data owner's record of what was sent."),
):
    app.add_typer(group, name=name, short_help=summary)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    output.escape_what_has_no_encoding()
    try:
        code = _exit_code_of(words)
        output.flush()
    except BrokenPipeError:
        output.give_up()
        code = output.READER_GONE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # a file's own error names it
            raise
        output.give_up()
        with suppress(OSError):
            print(
                f"error: the output cannot be written: {error.strerror}. Write it somewhere else", file=sys.stderr, flush=True
            )
        code = StorageError.exit_code
    sys.exit(code)


def _exit_code_of(words: Sequence[str]) -> int:
    """Run a command.

    Raises:
        BrokenPipeError: the reader of the output has gone.
    """
    try:
        _command()(args=list(words), prog_name="ifedicl")
    except IfediclError as error:
        print(f"error: {error}", file=sys.stderr)
        if _wants_json(words):
            print(json.dumps({"error": _facts(error)}, ensure_ascii=False))
        return error.exit_code
    except SystemExit as stop:
        # Typer and rich exit while they handle the error that made them do so.
        reason = stop.__context__
        if isinstance(reason, BrokenPipeError):
            raise reason from None
        if isinstance(reason, _UsageError) and _wants_json(words):
            print(json.dumps({"error": _usage_facts(reason)}, ensure_ascii=False))
        if stop.code == _INTERRUPTED:
            print("stopped. --resume continues a run after its last round; other commands start again.", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


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


def _usage_facts(error: Any) -> dict[str, Any]:
    """A wrong command line for scripts."""
    command = "ifedicl" if error.ctx is None else error.ctx.command_path
    message = f"{error.format_message().rstrip('.?')}. See: {command} --help"
    return {"code": error.exit_code, "kind": "UsageError", "message": message, "faults": []}


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"ifedicl {__version__}")
        raise typer.Exit
