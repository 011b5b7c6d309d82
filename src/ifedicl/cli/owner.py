"""``ifedicl policy`` and ``ifedicl ledger``: what an owner allows, and what was sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.cli.extras import write_new
from ifedicl.cli.options import Force, Json

if TYPE_CHECKING:
    from ifedicl.ledger.entries import Entry

JobOrConfig = Annotated[
    Path | None, typer.Option("--config", help="The coordinator's config, or a job's manifest: JOB.manifest.json.")
]
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


@policy.command("init", short_help="Write a client.toml, with a job's needs as comments.")
def init_policy(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("client.toml"),
    config: JobOrConfig = None,
    force: Force = False,
) -> None:
    """Write a commented client.toml.

    Without --config it allows no task and no model. With --config, those of the job; what else the job needs is written as
    comments, for you to allow. Read the job's prompt first: it is printed.
    """
    from ifedicl.owner.approval import read_job
    from ifedicl.owner.new_file import new_client_file, prompt_lines

    made = new_client_file(None if config is None else read_job(config))
    write_new(path, made.text, force=force)
    print(f"wrote {path}")
    if made.manifest is not None:
        task = made.manifest.task
        print(f"the job's prompt ({task.turn}), around each of your texts:")
        print("\n".join(f"  | {line}" for line in prompt_lines(task)))
    if made.needs:
        print("the job needs what you have not allowed. These lines are comments in the file; remove their '# ' to allow them:")
        print("\n".join(f"  [{need.section}] {need.line}   # {need.why}" for need in made.needs))
    print(
        f"next: name your file under [data], then: ifedicl policy check {path}{'' if config is None else f' --config {config}'}"
    )


@policy.command("check", short_help="Show what your rules allow, and what a job gets.")
def check_policy(
    path: ClientFile = Path("client.toml"),
    config: JobOrConfig = None,
    as_json: Json = False,
) -> None:
    """Show what a client.toml allows; with --config, which requests of that job are answered, which are refused, and why.

    Nothing is sent and no model is loaded; what was sent before is read from the ledger. If the job or a step of it is refused,
    the exit code is 2.
    """
    from ifedicl.cli.facts_text import is_refused, print_policy
    from ifedicl.owner.approval import OwnFacts, manifest_of, read_job
    from ifedicl.owner.policy import load_client_settings
    from ifedicl.owner.preview import preview

    settings = load_client_settings(path)
    job = None if config is None else read_job(config)
    own = OwnFacts.of(settings)
    facts = preview(own, None if job is None else manifest_of(job, own.model))
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print_policy(facts)
    if is_refused(facts):
        raise typer.Exit(2)


@policy.command("approve", short_help="Explain a job, and approve it.")
def approve_job(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job's manifest, its folder beside it, or a config.")],
    path: ClientFile = Path("client.toml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Explain the job; approve nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a job would get from you, how often, at most how many bytes and how much ε; then approve it.

    Your approval takes the place of allow.tasks and allow.models, for this job alone: its digest is kept in ledger.approved. A
    job that breaks another rule is not approved; the rules are listed, and the exit code is 2. Steps that your rules refuse are
    listed too; they are refused in an approved job as well.
    """
    from ifedicl.owner.approval import OwnFacts, explain, manifest_of, read_job
    from ifedicl.owner.own_files import approve_job as approve
    from ifedicl.owner.policy import load_client_settings

    settings = load_client_settings(path)
    read = read_job(job)
    own = OwnFacts.of(settings)
    facts = explain(own, manifest_of(read, own.model))
    is_approved = not facts["breaks"] and not dry_run
    if is_approved:
        approve(settings.ledger, facts["job"])
    facts["approved"] = is_approved
    print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(_explained(facts)))
    if facts["breaks"]:
        raise typer.Exit(2)


@policy.command("identity", short_help="Print your identity in secure sums.")
def show_identity(path: ClientFile = Path("client.toml")) -> None:
    """Print this client's identity in secure sums: 64 digits for the [sums.peers] of the other clients.

    It stays the same as long as ledger.secret. Exchange it over a channel that is not the coordinator.
    """
    from ifedicl.owner.site import identity

    print(identity(path))


@ledger.command("show", short_help="Print every line.")
def show_ledger(path: LedgerFile, as_json: Json = False) -> None:
    """Print every line: time, kind, job, bytes (and those that the transport added), ε, and digest."""
    from ifedicl.ledger.ledger import read

    for entry in read(path)[0]:
        if as_json:
            print(entry.line.decode())
        else:
            print(_line(entry))


@ledger.command("verify", short_help="Check that no line was changed.")
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


@ledger.command("restore", short_help="Put back a copy of a lost ledger.")
def restore_ledger(
    copy: Annotated[Path, typer.Argument(metavar="COPY", help="The newest copy of the ledger.")],
    path: ClientFile = Path("client.toml"),
) -> None:
    """Put a copy in the place of a ledger that is missing or older.

    Replies that left after the copy was made are not in it: the coordinator that got them refuses to go on.
    """
    from ifedicl.owner.own_files import restore_ledger as restore
    from ifedicl.owner.policy import load_client_settings

    settings = load_client_settings(path).ledger
    lines = restore(settings, copy)
    print(f"restored {settings.file}: {lines} lines. Next: ifedicl ledger verify {settings.file}")


@ledger.command("forget", short_help="Begin a new ledger, at a cost.")
def forget_ledger(
    path: ClientFile = Path("client.toml"),
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
) -> None:
    """Begin a new ledger, if the old one is lost. Without --yes, say what that costs.

    The cost: every limit and every ε counts from 0 again, so more can leave about the same examples than your policy says. A
    run that has begun does not go on with you.
    """
    from ifedicl.owner.own_files import forget_ledger as forget
    from ifedicl.owner.policy import load_client_settings

    settings = load_client_settings(path).ledger
    if not yes:
        print(
            "nothing was changed. This would count every limit of [most] and every ε from 0 again, so more can leave about the "
            "same examples than your policy says; and runs that have begun would not go on with you. To do it: add --yes"
        )
        raise typer.Exit(2)
    kept = forget(settings)
    print(f"the next start makes a new ledger{'' if kept is None else f'; the old one is kept as {kept}'}")


def _explained(facts: dict[str, Any]) -> list[str]:
    """The facts of a job in sentences."""
    task, most = facts["task"], facts["at_most"]
    lines = [
        f"job {facts['job']}",
        f"task {task['name']!r}",
        f"  the prompt around each of your texts ({task['turn']}): {task['template']!r}",
        f"  then {task['separator']!r} and {task['asks']!r}",
        f"model {facts['model']['fingerprint']}: {'yours' if facts['model']['yours'] else 'NOT the one in your client.toml'}",
        facts["mode"],
        "what would leave:",
        *(f"  - {sentence}" for sentence in facts["would_leave"]),
        f"at most: {most['updates']} updates or gradient sums, {most['figures']} held-out figures, {most['sums']} vectors and "
        f"readout sums; {most['bytes_up']:,} bytes, and what the transport adds",
        "no bound on what is learned about one example (no ε)"
        if most["epsilon"] is None
        else f"at most ε = {most['epsilon']:g} for one example",
    ]
    if facts["refused_steps"]:
        lines.append("your rules refuse these steps of it, and the run goes on without you there:")
        lines += [f"  - {step}: {reason}" for step, reason in facts["refused_steps"].items()]
    if facts["breaks"]:
        return [*lines, "it breaks your rules and is not approved:", *(f"  - {reason}" for reason in facts["breaks"])]
    return [
        *lines,
        "approved: this job is answered" if facts["approved"] else "it breaks no rule; approve it without --dry-run",
    ]


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
