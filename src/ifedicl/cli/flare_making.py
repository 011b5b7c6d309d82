"""``ifedicl flare job`` and ``forget``: they make a job, and its manifest for the owners."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ifedicl.cli.flare_sending import connected, needs_flare
from ifedicl.errors import ConfigError, Fault, FederationError

if TYPE_CHECKING:
    from ifedicl.flare.jobs import JobSettings

ConsoleKit = Annotated[
    Path,
    typer.Option(
        "--console", envvar="IFEDICL_CONSOLE", show_envvar=True, help="The coordinator's kit, named after its address."
    ),
]


def job(
    config: Annotated[Path, typer.Argument(help="A config as for `ifedicl run`; its [data] clients name the sites.")],
    out: Annotated[Path, typer.Option(help="The job's folder.")] = Path("job"),
    site: Annotated[
        list[str] | None, typer.Option(help="A site that takes part, in order; repeat the option. Default: [data] clients.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run on the server. Default: the config's name.")] = None,
    interval: Annotated[
        float, typer.Option(min=0.01, max=60.0, help="Seconds between an idle site's polls for work; each sends 4 KB.")
    ] = 0.05,
) -> None:
    """Make a job from a config: settings and two class names, no code and no data.

    Beside the folder it writes OUT.manifest.json: send it to each site's owner, who approves it with `ifedicl policy approve`.
    The model must be on this machine, for its fingerprint; the server needs no model.
    """
    needs_flare()
    from ifedicl.flare.jobs import job_settings
    from ifedicl.settings import load_settings

    settings = load_settings(config)
    sites = tuple(site or settings.data.clients or ())
    if not sites:
        fault = Fault("data.clients", "none", "a table of sites", "Name the sites there, or with --site.")
        raise ConfigError(str(config), [fault])
    made = job_settings(settings, sites, name or config.stem, interval)
    _write(made, out)


def forget(
    folder: Annotated[Path, typer.Argument(help="The folder of the finished run's job, as it was submitted.")],
    console: ConsoleKit,
    out: Annotated[Path, typer.Option(help="The new job's folder.")] = Path("job-forget"),
    client: Annotated[
        list[str] | None, typer.Option(help="A site that left: its whole share is removed. May be given several times.")
    ] = None,
    changed: Annotated[
        list[str] | None, typer.Option(help="A site that removed examples from its file. May be given several times.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of calibration without the removed text.")] = 0,
    agreed: Annotated[
        bool, typer.Option("--agreed", help="Secure sums: the owners concerned accept that two sums show their share.")
    ] = False,
) -> None:
    """Make a job in which a finished run forgets sites, or removed examples; nothing is sent yet.

    The server says after how many rounds the run ended. Each owner who stays approves OUT.manifest.json, as the first one;
    then `ifedicl flare submit OUT` goes on from the run on the server without the removed text, as `ifedicl forget` does here.
    """
    needs_flare()
    from ifedicl.flare.jobs import Removal, read_job

    job = read_job(folder)
    with connected(console) as opened:
        record = opened.job(job.name)
        result = opened.result(record) if record.is_done else None
    if result is None:
        raise FederationError(
            f"run {job.name}: it is {record.state}, and only a finished run can forget. See: ifedicl flare status"
        )
    if unknown := sorted({*(client or ()), *(changed or ())} - set(job.sites)):
        fault = Fault("client", ", ".join(unknown), ", ".join(job.sites), "Name sites of the job, with --client or --changed.")
        raise ConfigError("forget", [fault])
    removal = Removal(
        left=tuple(client or ()),
        changed=tuple(changed or ()),
        rounds=rounds,
        agreed=agreed,
        round=result["round"],
        phases=result.get("phases", 1) + 1,
    )
    _write(job.without(removal), out)


def _write(made: JobSettings, out: Path) -> None:
    """Write a job and its manifest, and say what is to be done with them."""
    from ifedicl.flare.jobs import write_job
    from ifedicl.owner.approval import write_manifest
    from ifedicl.owner.needs import needs_of
    from ifedicl.owner.policy import Policy

    write_job(made, out)
    manifest = write_manifest(made.manifest, out)
    print(f"wrote {out}: run {made.name}, task {made.task.digest}, model {made.fingerprint}")
    print(f"wrote {manifest}: send it to each site's owner, who approves it with: ifedicl policy approve {manifest.name}")
    print(f"the job's digest {made.manifest.digest}: tell each owner its first 16 digits on another way than the file")
    if needs := needs_of(made.manifest, Policy()):
        print("a client.toml as `ifedicl policy init` writes it does not allow this job; each owner has to allow it:")
        print("\n".join(f"  [{need.section}] {need.line}   # {need.why}" for need in needs))
    print(f"next, when every owner has approved it: ifedicl flare submit {out}")
