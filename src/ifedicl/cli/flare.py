"""``ifedicl flare``: a federation of separate machines, over NVIDIA FLARE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.cli.options import Json
from ifedicl.errors import ConfigError, Fault, FederationError

if TYPE_CHECKING:
    from rich.console import Console as Printer

    from ifedicl.flare.console import Console, JobRecord

Kit = Annotated[Path, typer.Argument(help="A folder that `ifedicl flare provision` made.")]
ConsoleKit = Annotated[
    Path,
    typer.Option(
        "--console",
        envvar="IFEDICL_CONSOLE",
        show_envvar=True,
        help="The coordinator's kit, named after its address.",
    ),
]
Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name of a run. Default: the newest.")]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A federation of separate machines: mTLS identities, signed start-up kits, rounds that survive a crash.\n\n"
    "The coordinator: provision, hand out the kits, job, submit, status. The server and each site: start, logs. "
    "docs/deploy.md goes through it step by step. Needs: pip install 'ifedicl[nvflare]'.",
)


@app.command()
def provision(
    project: Annotated[Path, typer.Argument(help="A TOML file: name, server, sites, coordinator.")],
    out: Annotated[Path, typer.Option(help="A folder of your own; the authority's key stays in it.")] = Path("federation"),
    as_json: Json = False,
) -> None:
    """Make a start-up kit for the server, for each site and for your console.

    Each holds a key and a certificate of the project's own authority. Give each party its own, over a channel you trust.
    The file says for instance: name = "triage"; coordinator = "you@example.org"; sites = ["clinic-a", "clinic-b"];
    [server] host = "fl.example.org", port = 8002, admin_port = 8003; valid_days = 360.
    """
    _needs_flare()
    from ifedicl.flare.kits import provision as make
    from ifedicl.flare.participants import load_project

    kits = make(load_project(project), out)
    if as_json:
        print(json.dumps({name: str(kit) for name, kit in kits.items()}))
        return
    for name, kit in kits.items():
        print(f"{name}\t{kit}")
    print(f"give each party its folder; keep {out} to yourself: who has it can make a certificate in anybody's name")


@app.command()
def start(kit: Kit) -> None:
    """Run the server or a site, until Ctrl-C or SIGTERM.

    A site needs its `client.toml` in the kit's folder: which data, which model, and what may leave. Start it again after a
    crash: it is taken back into the job that runs.
    """
    _needs_flare()
    from ifedicl.flare.processes import run

    raise typer.Exit(run(kit))


@app.command()
def job(
    config: Annotated[Path, typer.Argument(help="As for `ifedicl run`; its [data] clients name the sites.")],
    out: Annotated[Path, typer.Option(help="The job's folder.")] = Path("job"),
    site: Annotated[
        list[str] | None, typer.Option(help="A site that takes part, in order; repeat. Default: [data] clients.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run on the server. Default: the config's name.")] = None,
    interval: Annotated[
        float, typer.Option(min=0.01, max=60.0, help="Seconds between an idle site's questions for work; each costs 4 KB.")
    ] = 0.05,
) -> None:
    """Make a job of a config: settings and two names of classes, no code and no data.

    The model must lie here, so that its fingerprint is known; the server itself needs none.
    """
    _needs_flare()
    from ifedicl.flare.jobs import job_settings, write_job
    from ifedicl.settings import load_settings

    settings = load_settings(config)
    sites = tuple(site or settings.data.clients or ())
    if not sites:
        fault = Fault("data.clients", "none", "a table of sites", "Name them there, or each with --site.")
        raise ConfigError(str(config), [fault])
    made = job_settings(settings, sites, name or config.stem, interval)
    write_job(made, out)
    print(f"wrote {out}: run {made.name}, task {made.task.digest}, model {made.fingerprint}")
    print(f"next: ifedicl flare submit {out}. A site that is to take part must allow that task and that model")


@app.command()
def submit(
    folder: Annotated[Path, typer.Argument(help="What `ifedicl flare job` wrote.")],
    console: ConsoleKit,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show the rounds until the job is over.")] = False,
) -> None:
    """Sign a job with your key and send it; it starts when enough of its sites are connected."""
    _needs_flare()
    from ifedicl.flare.jobs import read_job

    read_job(folder)
    with _connected(console) as opened:
        opened.submit(folder)
        _sent(opened, "submitted", follow=follow)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The job's folder, as it was submitted.")],
    console: ConsoleKit,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show the rounds until the job is over.")] = False,
) -> None:
    """Go on with a run whose job ended early: the server died, was stopped, or too few sites answered.

    It continues from the server's checkpoint: no finished round is lost, and the result is as if nothing had happened.
    """
    _needs_flare()
    from ifedicl.flare.jobs import as_resume

    with _connected(console) as opened:
        with as_resume(folder) as again:
            opened.submit(again)
        _sent(opened, "resumed", follow=follow)


@app.command()
def status(
    console: ConsoleKit,
    run: Run = None,
    follow: Annotated[bool, typer.Option("--follow", help="Stay until the job is over.")] = False,
    as_json: Json = False,
) -> None:
    """Show who is connected, and of a run: rounds, losses, who answered last, bytes of ours and of FLARE."""
    with _connected(console) as opened:
        sites = opened.sites()
        # Of a run that is named, not to know it is an error; with none named there may be none yet.
        record = opened.job(run) if run is not None or opened.jobs() else None
        facts = None if record is None else opened.status(record)
        if as_json:
            found = None if record is None else {"run": record.name, "id": record.id, "state": record.state}
            print(json.dumps({"connected": sites, "job": found, "now": facts}))
            return
        print(f"connected: {', '.join(sites) or 'no site'}")
        if record is None:
            return
        print(f"run {record.name}: {record.state}")
        if facts is not None:
            print("\n".join(_lines(facts)))
        if follow:
            _follow(opened, record)


@app.command()
def stop(console: ConsoleKit, run: Run = None) -> None:
    """Abort a run's job. Its checkpoint stays: `ifedicl flare resume` goes on."""
    with _connected(console) as opened:
        record = opened.job(run)
        opened.stop(record)
        print(f"stopped: run {record.name}")


@app.command()
def logs(
    kit: Kit,
    lines: Annotated[int, typer.Option(min=1, help="So many of the last ones.")] = 40,
) -> None:
    """Show the log of this machine's own party. No log of a site is ever sent to the server."""
    from ifedicl.flare.log_files import last_lines

    print("\n".join(last_lines(kit, lines)))


def demo(out: Path, console: Printer, seed: int) -> None:
    """`ifedicl demo --flare`.

    Raises:
        FederationError: the processes' result is not the local engine's.
    """
    _needs_flare()
    from ifedicl.demo.over_flare import LARGEST_LOG, LARGEST_SUM, play

    found = play(out, console, seed=seed)
    console.print(
        f"against the local engine: sums of round 1 differ by {found.largest_sum:.1e} (relative; allowed {LARGEST_SUM:g}), "
        f"label log-probabilities by {found.largest_log:.1e} (allowed {LARGEST_LOG:g})",
        highlight=False,
    )
    if not found.is_equal:
        raise FederationError("the two differ by more than rounding can explain")


def _needs_flare() -> None:
    from importlib.util import find_spec

    if find_spec("nvflare") is None:
        fault = Fault("nvflare", "not installed", "nvflare 2.9", "Install it: pip install 'ifedicl[nvflare]'.")
        raise ConfigError("ifedicl flare", [fault])


@contextmanager
def _connected(kit: Path) -> Iterator[Console]:
    _needs_flare()
    from ifedicl.flare.console import connected

    with connected(kit) as console:
        yield console


def _sent(console: Console, how: str, *, follow: bool) -> None:
    """Say which run a job became, and show its rounds where that is wanted."""
    record = console.job()
    print(f"{how}: run {record.name}, id {record.id}")
    if follow:
        _follow(console, record)


def _follow(console: Console, record: JobRecord) -> None:
    """Print each round once, until the job is over.

    Raises:
        FederationError: it did not end well.
    """
    for facts in console.rounds(record):
        print(_round_line(facts), flush=True)
    print(f"run {record.name}: {console.again(record).state}")


def _round_line(facts: dict[str, Any]) -> str:
    figures = [("training loss", facts["train_loss"]), ("held-out loss", facts["held_out_loss"])]
    shown = "".join(f", {name} {value:.3f}" for name, value in figures if value is not None)
    return f"round {facts['round']} of {facts['rounds']}{shown}"


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield _round_line(facts)
    yield f"now: {facts['step']}, {len(facts['answered'])} of {facts['asked']} have answered"
    for name, site in facts["sites"].items():
        seconds = "" if site["seconds"] is None else f" in {site['seconds']:.1f} s"
        yield (
            f"  {name}: {site['last']}{seconds}; bytes down {site['bytes_down']:,}, up {site['bytes_up']:,}, "
            f"FLARE's own {site['carrier_bytes']:,}"
        )
