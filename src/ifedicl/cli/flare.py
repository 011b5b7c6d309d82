"""``ifedicl flare``: a federation of separate machines, over NVIDIA FLARE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ifedicl.cli.flare_making import ConsoleKit, forget, job
from ifedicl.cli.flare_sending import connected, follow_to_the_end, needs_flare, send_or_look_up, show_sent
from ifedicl.cli.flare_text import ending, status_lines
from ifedicl.cli.options import Json, MLflow, Telemetry, TensorBoard
from ifedicl.errors import FederationError

if TYPE_CHECKING:
    from rich.console import Console as Printer

    from ifedicl.flare.task_cache import Finished

Kit = Annotated[Path, typer.Argument(help="A folder that `ifedicl flare provision` made.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show the rounds until the job ends.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Follow the job to its end, and write its adapter to this folder. Default with --store: runs/flare/NAME."
    ),
]
CacheUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="IFEDICL_STORE",
        show_envvar=True,
        help="A task cache on this machine or in PostgreSQL. The job is followed to its end, and its adapter stored.",
    ),
]
CacheFederation = Annotated[str, typer.Option("--federation", help="With --store: adapters of this federation only.")]
Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name of a run. Default: the newest.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A federation of separate machines: mTLS identities, signed start-up kits, rounds that survive a crash.\n\n"
    "The coordinator runs provision, hands out the kits, then runs job, submit, status. The server and each site run start and "
    "logs. docs/deploy.md explains each step. Needs: pip install 'ifedicl[nvflare]'.",
)


@app.command(short_help="Make a start-up kit for each party.")
def provision(
    project: Annotated[Path, typer.Argument(help="A TOML file: name, server, sites, coordinator.")],
    out: Annotated[Path, typer.Option(help="A folder that only you can read: it keeps the authority's key.")] = Path(
        "federation"
    ),
    as_json: Json = False,
) -> None:
    """Make a start-up kit for the server, for each site and for your console.

    Each kit has a key and a certificate of the project's authority. Send each party its kit over a channel you trust.
    Example of the file: name = "triage"; coordinator = "you@example.org"; sites = ["clinic-a", "clinic-b"];
    [server] host = "fl.example.org", port = 8002, admin_port = 8003; valid_days = 360.
    """
    needs_flare()
    from ifedicl.flare.kits import provision as make
    from ifedicl.flare.participants import load_project

    kits = make(load_project(project), out)
    if as_json:
        print(json.dumps({name: str(kit) for name, kit in kits.items()}))
        return
    for name, kit in kits.items():
        print(f"{name}\t{kit}")
    print(f"give each party its folder; keep {out} secret: its key can sign a certificate in any name")


@app.command(short_help="Run the server or a site.")
def start(kit: Kit, tensorboard: TensorBoard = None, mlflow: MLflow = None, telemetry: Telemetry = False) -> None:
    """Run the server or a site, until Ctrl-C or SIGTERM.

    A site needs its `client.toml` in the kit's folder: its data, its model, and what may be sent. After a crash, start it
    again: it rejoins the running job. The last three options are of the server: a site has no figures of a run.
    """
    needs_flare()
    from ifedicl.flare.kit_folder import check_is_kit

    check_is_kit(kit)
    from ifedicl.flare.processes import run
    from ifedicl.tracking.choice import Trackers

    raise typer.Exit(run(kit, Trackers(tensorboard, mlflow, telemetry)))


app.command(short_help="Make a job from a config.")(job)


@app.command(short_help="Sign a job and send it.")
def submit(
    folder: Annotated[Path, typer.Argument(help="The folder that `ifedicl flare job` wrote.")],
    console: ConsoleKit,
    follow: Follow = False,
    out: Out = None,
    store: CacheUrl = None,
    federation: CacheFederation = "default",
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="With --store: do not reuse a stored adapter.")] = False,
) -> None:
    """Sign a job with your key and send it; it starts when enough of its sites are connected.

    With --store a job whose adapter is stored is not sent: the adapter is written to OUT.
    """
    needs_flare()
    from ifedicl.flare.jobs import read_job

    job = read_job(folder)

    def send(*, follow: bool, fetch: bool) -> Finished | None:
        with connected(console) as opened:
            opened.submit(folder)
            return show_sent(opened, "submitted", follow=follow, fetch=fetch)

    again = recalibrate or job.removal is not None  # what is stored holds the removed text
    send_or_look_up(job, send, follow, out, store, federation, recalibrate=again)


@app.command(short_help="Continue a run whose job ended early.")
def resume(
    folder: Annotated[Path, typer.Argument(help="The job's folder, as it was submitted.")],
    console: ConsoleKit,
    follow: Follow = False,
    out: Out = None,
    store: CacheUrl = None,
    federation: CacheFederation = "default",
) -> None:
    """Continue a run whose job ended early: the server died, was stopped, or too few sites answered.

    It starts from the server's checkpoint: no finished round is lost, and the result is the same as without the interruption.
    """
    needs_flare()
    from ifedicl.flare.jobs import as_resume, read_job

    job = read_job(folder)

    def send(*, follow: bool, fetch: bool) -> Finished | None:
        with connected(console) as opened:
            with as_resume(folder) as again:
                opened.submit(again)
            return show_sent(opened, "resumed", follow=follow, fetch=fetch)

    send_or_look_up(job, send, follow, out, store, federation, recalibrate=True)


app.command(short_help="Make a job that forgets sites or removed examples.")(forget)


@app.command(short_help="Show sites, rounds, and how a run ended.")
def status(
    console: ConsoleKit,
    run: Run = None,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Show the connected sites and a run's rounds, losses, last answers, and bytes, ours and FLARE's."""
    with connected(console) as opened:
        sites = opened.sites()
        # A named run must exist; without a name there may be no run yet.
        record = opened.job(run) if run is not None or opened.jobs() else None
        facts = None if record is None else opened.status(record)
        if as_json:
            found = None if record is None else {"run": record.name, "id": record.id, "state": record.state}
            result = opened.result(record) if record is not None and record.is_over else None
            print(json.dumps({"connected": sites, "job": found, "now": facts, "result": result}))
            return
        print(f"connected: {', '.join(sites) or 'no site'}")
        if record is None:
            return
        print(f"run {record.name}: {record.state}")
        if record.is_over:
            print("\n".join(ending(opened.result(record))))
            return
        if facts is not None:
            print("\n".join(status_lines(facts)))
        if follow:
            follow_to_the_end(opened, record)


@app.command(short_help="Abort a run's job; its checkpoint stays.")
def stop(console: ConsoleKit, run: Run = None) -> None:
    """Abort a run's job. Its checkpoint stays: `ifedicl flare resume` continues it."""
    with connected(console) as opened:
        record = opened.job(run)
        opened.stop(record)
        print(f"stopped: run {record.name}")


@app.command(short_help="Show a party's log, or the server's.")
def logs(
    kit: Kit,
    lines: Annotated[int, typer.Option(min=1, help="Number of last lines to show.")] = 40,
    everything: Annotated[bool, typer.Option("--all", help="Also show what FLARE says about its own work.")] = False,
) -> None:
    """Show the log of this machine's server or site; with the console's kit, the server's log of the newest finished job.

    A site's log is never sent to the server.
    """
    from ifedicl.flare.kit_folder import is_console
    from ifedicl.flare.log_files import last_lines, own_lines

    if not is_console(kit):
        print("\n".join(last_lines(kit, lines, everything=everything)))
        return
    with connected(kit) as opened:
        record = opened.job()
        found = opened.log(record) if record.is_over else []
    shown = found if everything else list(own_lines(found))
    print(f"run {record.name}: {record.state}" + ("" if found else "; a log can be fetched when the job is over"))
    print("\n".join(shown[-lines:]))


def demo(out: Path, console: Printer, seed: int) -> None:
    """Run `ifedicl demo --flare`.

    Raises:
        FederationError: its result differs from the local engine's.
    """
    needs_flare()
    from ifedicl.demo.over_flare import LARGEST_LOG, LARGEST_SUM, play

    found = play(out, console, seed=seed)
    console.print(
        f"difference from the local engine: sums of round 1 {found.largest_sum:.1e} (relative; allowed {LARGEST_SUM:g}), "
        f"label log-probabilities by {found.largest_log:.1e} (allowed {LARGEST_LOG:g})",
        highlight=False,
    )
    if not found.is_equal:
        raise FederationError("result: FLARE and the local engine differ by more than rounding explains")
