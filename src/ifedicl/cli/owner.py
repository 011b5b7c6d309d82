"""``ifedicl policy`` and ``ifedicl ledger``: what an owner lets out, and what left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.cli.options import Json
from ifedicl.errors import ConfigError, Fault

if TYPE_CHECKING:
    from ifedicl.ledger.entries import Entry

Config = Annotated[Path | None, typer.Option(help="The coordinator's config: task, settings and model.")]
LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="A client's ledger.jsonl.")]

policy = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A data owner's own rules: what may be asked of its text, and what may leave.\n\n"
    "They stand in a file client.toml on the owner's machine, and no coordinator can change them.",
)
ledger = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A data owner's record of what left: one line a reply, each chained to the one before.\n\n"
    "docs/privacy.md says what it proves and what it does not.",
)


@policy.command("init")
def init_policy(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("client.toml"),
    config: Config = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented client.toml.

    Without --config it allows no task and no model; with it, those of the config. Read its template first.
    """
    from ifedicl import files

    if path.exists() and not force:
        fault = Fault("path", str(path), "a name that is free", "Choose another name, or replace it with --force.")
        raise ConfigError("policy init", [fault])
    text = (resources.files("ifedicl") / "templates" / "client.toml").read_text(encoding="utf-8")
    task, model = ("", "") if config is None else _digests(config)
    files.write_text(path, text.replace("@tasks@", task).replace("@models@", model))
    print(f"wrote {path}. Name your file in it, then see what it lets out: ifedicl policy check {path}")


@policy.command("check")
def check_policy(
    path: Annotated[Path, typer.Argument(metavar="CLIENT", help="A client.toml.")] = Path("client.toml"),
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what a client.toml lets out, and with --config what that run would get and what not, and why.

    Nothing is sent and no model is loaded; what has left already is read from the ledger.
    """
    from ifedicl.owner.policy import load_client_settings
    from ifedicl.owner.preview import preview
    from ifedicl.settings import load_settings

    facts = preview(load_client_settings(path), None if config is None else load_settings(config))
    print(json.dumps(facts, indent=None if as_json else 2, ensure_ascii=False))


@policy.command("identity")
def show_identity(
    path: Annotated[Path, typer.Argument(metavar="CLIENT", help="A client.toml.")] = Path("client.toml"),
) -> None:
    """Print who this client is to the others in secure sums: 64 digits for their [sums.peers].

    It lasts as long as ledger.secret. Exchange it over a channel that is not the coordinator.
    """
    from ifedicl.owner.site import identity

    print(identity(path))


@ledger.command("show")
def show_ledger(path: LedgerFile, as_json: Json = False) -> None:
    """Print every line: when, what, for which job, how many bytes (and how many the engine added), and its digest."""
    from ifedicl.ledger.ledger import read

    for entry in read(path)[0]:
        if as_json:
            print(entry.line.decode())
        else:
            print(_line(entry))


@ledger.command("verify")
def verify_ledger(
    path: LedgerFile,
    heads: Annotated[
        Path | None, typer.Option(help="The coordinator's heads.jsonl, beside its checkpoint: finds what was cut off, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that no line was changed, moved, added or taken out; with --heads, also against what the coordinator had.

    Exits with 6 where something is wrong, and says which line.
    """
    from ifedicl.ledger.ledger import read
    from ifedicl.ledger.receipts import check_heads, read_heads

    entries, torn = read(path)
    facts: dict[str, Any] = {
        "owner": entries[0].facts["owner"],
        "entries": len(entries),
        "head": entries[-1].digest,
        "torn_bytes": len(torn),
    }
    if heads is not None:
        checked, unseen = check_heads(entries, read_heads(heads))
        facts |= {"heads_checked": checked, "entries_the_coordinator_never_had": unseen}
    print(json.dumps(facts) if as_json else "\n".join(_verdict(entries, facts)))


def _verdict(entries: Sequence[Entry], facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['owner']}: {len(entries)} lines, whole; the last is {facts['head']}"]
    if facts["torn_bytes"]:
        lines.append(
            f"behind it {facts['torn_bytes']} bytes of a line that a crash tore off: what it told of never left. "
            "The client quotes it in a line of its own at its next start"
        )
    if "heads_checked" in facts:
        lines.append(
            f"{facts['heads_checked']} heads of the coordinator fit; of the last {facts['entries_the_coordinator_never_had']} "
            "lines it had none"
        )
    else:
        lines.append("lines cut off at its end would not show here; give the coordinator's file with --heads")
    return lines


def _digests(config: Path) -> tuple[str, str]:
    """Task and model of a config, as strings of TOML."""
    from ifedicl.backbone.load import fingerprint
    from ifedicl.settings import load_settings

    settings = load_settings(config)
    return f'"{settings.task.digest}"', f'"{fingerprint(settings.model)}"'


def _line(entry: Entry) -> str:
    facts = entry.facts
    columns = [str(entry.number), entry.time, facts.get("kind", entry.event)]
    if "run" in facts:
        shapes = " ".join(f"{name}{shape}" for name, shape in facts["shapes"].items())
        columns += [
            f"job {facts['run'][:8]}",
            f"{facts['bytes']} + {facts['engine_bytes']} bytes",
            shapes or facts.get("code", ""),
        ]
        columns += [] if facts["epsilon"] is None else [f"ε {facts['epsilon']:g}"]
    return "\t".join([*columns, entry.digest[:12]])
