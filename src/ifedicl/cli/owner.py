"""``ifedicl policy`` and ``ifedicl ledger``: what an owner allows, and what was sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.cli.extras import write_template
from ifedicl.cli.options import Force, Json

if TYPE_CHECKING:
    from ifedicl.ledger.entries import Entry

Config = Annotated[Path | None, typer.Option(help="The coordinator's config: task, settings and model.")]
ClientFile = Annotated[Path, typer.Argument(metavar="CLIENT", help="A client.toml.")]
LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="A client's ledger.jsonl.")]

policy = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A data owner's rules: which requests are answered, and what may be sent.\n\n"
    "They are in the file client.toml on the owner's machine, and no coordinator can change them.",
)
ledger = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A data owner's record of sent replies: one line a reply, each chained to the line before.\n\n"
    "docs/privacy.md says what it proves and what it does not prove.",
)


@policy.command("init")
def init_policy(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("client.toml"),
    config: Config = None,
    force: Force = False,
) -> None:
    """Write a commented client.toml.

    Without --config it allows no task and no model; with --config, those of the config. Read the config's template first.
    """
    task = model = ""
    if config is not None:
        from ifedicl.backbone.load import fingerprint
        from ifedicl.settings import load_settings

        settings = load_settings(config)
        task, model = f'"{settings.task.digest}"', f'"{fingerprint(settings.model)}"'
    write_template("policy init", "client.toml", path, force=force, tasks=task, models=model)
    print(f"wrote {path}. Name your file in it, then show what it allows: ifedicl policy check {path}")


@policy.command("check")
def check_policy(
    path: ClientFile = Path("client.toml"),
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show what a client.toml allows; with --config, which requests of that run are answered, which are refused, and why.

    Nothing is sent and no model is loaded; what was sent before is read from the ledger.
    """
    from ifedicl.owner.policy import load_client_settings
    from ifedicl.owner.preview import preview
    from ifedicl.settings import load_settings

    facts = preview(load_client_settings(path), None if config is None else load_settings(config))
    print(json.dumps(facts, indent=None if as_json else 2, ensure_ascii=False))


@policy.command("identity")
def show_identity(path: ClientFile = Path("client.toml")) -> None:
    """Print this client's identity in secure sums: 64 digits for the [sums.peers] of the other clients.

    It stays the same as long as ledger.secret. Exchange it over a channel that is not the coordinator.
    """
    from ifedicl.owner.site import identity

    print(identity(path))


@ledger.command("show")
def show_ledger(path: LedgerFile, as_json: Json = False) -> None:
    """Print every line: time, kind, job, bytes (and those that the transport added), ε, and digest."""
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
        Path | None, typer.Option(help="The coordinator's heads.jsonl, beside its checkpoint; it shows whether lines were cut.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that no line was changed, moved, added or removed; with --heads, also against what the coordinator received.

    For a damaged ledger, it names the line and exits with 6.
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
    lines = [f"{facts['owner']}: {len(entries)} lines, all intact; the last digest is {facts['head']}"]
    if facts["torn_bytes"]:
        lines.append(
            f"after it, {facts['torn_bytes']} bytes of an incomplete line, left by a crash: its reply was never sent. The "
            "client quotes it in a new line at its next start"
        )
    if "heads_checked" in facts:
        lines.append(
            f"{facts['heads_checked']} heads of the coordinator match; it never received the last "
            f"{facts['entries_the_coordinator_never_had']} lines"
        )
    else:
        lines.append("lines cut at the end cannot be found without the coordinator's file; give it with --heads")
    return lines


def _line(entry: Entry) -> str:
    facts = entry.facts
    columns = [str(entry.number), entry.time, facts.get("kind", entry.event)]
    if "run" in facts:
        shapes = " ".join(f"{name}{shape}" for name, shape in facts["shapes"].items())
        sent = f"{facts['bytes']} + {facts['engine_bytes']} bytes"
        columns += [f"job {facts['run'][:8]}", sent, shapes or facts.get("code", "")]
        columns += [] if facts["epsilon"] is None else [f"ε {facts['epsilon']:g}"]
    return "\t".join([*columns, entry.digest[:12]])
