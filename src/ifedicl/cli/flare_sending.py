"""What `ifedicl flare submit`, `resume` and `status` share: the console, a job followed to its end, the task cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ifedicl.cli.extras import require
from ifedicl.cli.flare_text import ending, round_line
from ifedicl.errors import FederationError

if TYPE_CHECKING:
    from ifedicl.flare.console import Console, JobRecord
    from ifedicl.flare.jobs import JobSettings
    from ifedicl.flare.task_cache import Finished


def needs_flare() -> None:
    """Check that FLARE is installed.

    Raises:
        ConfigError: it is not.
    """
    require("ifedicl flare", "nvflare", "nvflare")


@contextmanager
def connected(kit: Path) -> Iterator[Console]:
    """The console of a coordinator's kit, for a ``with`` block.

    Raises:
        FederationError: ``kit`` is none, or the server does not answer.
    """
    needs_flare()
    from ifedicl.flare.kit_folder import check_is_kit

    check_is_kit(kit)
    from ifedicl.flare.console import connected as connect

    with connect(kit) as console:
        yield console


class Send(Protocol):
    """Sends a job."""

    def __call__(self, *, follow: bool, fetch: bool) -> Finished | None:
        """Send it; with ``follow`` wait for its end, and with ``fetch`` return it with its adapter."""


def send_or_look_up(
    job: JobSettings, send: Send, follow: bool, out: Path | None, url: str | None, federation: str, *, recalibrate: bool
) -> None:
    """Send a job, or take its adapter from the task cache."""
    if url is None:
        finished = send(follow=follow or out is not None, fetch=out is not None)
        if finished is not None and out is not None:
            finished.adapter.save(out)
            print(f"adapter: {out}")
        return
    from ifedicl.flare.task_cache import request
    from ifedicl.store import open_store

    def work() -> Finished:
        finished = send(follow=True, fetch=True)
        assert finished is not None
        return finished

    with closing(open_store(url)) as opened:
        answer, _ = request(opened, federation, job, work, recalibrate=recalibrate)
    folder = out or Path("runs") / "flare" / job.name
    answer.adapter.save(folder)
    print(f"task cache: {answer.found.kind}: {answer.found.why}")
    print(f"adapter: {folder}")


def show_sent(console: Console, how: str, *, follow: bool, fetch: bool) -> Finished | None:
    """Print the run of a submitted job, and with ``follow`` its rounds; with ``fetch`` return it with its adapter."""
    from ifedicl.flare.task_cache import Finished

    record = console.job()
    print(f"{how}: run {record.name}, id {record.id}", flush=True)
    if not follow:
        return None
    result = follow_to_the_end(console, record)
    return Finished(console.adapter(record), result) if fetch else None


def follow_to_the_end(console: Console, record: JobRecord) -> Mapping[str, Any]:
    """Print each round once, until the job ends, and return how it ended.

    Raises:
        FederationError: the job failed.
    """
    for facts in console.rounds(record):
        print(round_line(facts), flush=True)
    last = console.again(record)
    result = console.result(last)
    print(f"run {record.name}: {last.state}")
    print("\n".join(ending(result)))
    if not last.is_done or result is None:
        why = "" if result is None else f": {result['error']}"
        raise FederationError(f"run {record.name} did not finish{why}")
    return result
