"""The page in a browser: a server with a finished run, a browser, and a page that is watched for complaints."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import pytest

from tests.support import tiny
from tests.support.chromium import CHROMIUM, FLAGS
from tests.support.serving import Running, serving

if TYPE_CHECKING:
    from playwright import sync_api as playwright

TEXTS = ("the soup was warm and kind", "a cold room with a loud fan", 'they said "late", twice')


def level(colour: str) -> int:
    """Red, green and blue of a colour, added."""
    return sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(",")))


class Watched:
    """A page, and everything that must not happen on it."""

    def __init__(self, page: playwright.Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on(
            "console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))

    def at(self, view: str) -> playwright.Page:
        """The page, at a view of the server."""
        self.page.goto(f"{self.url}{view}")
        return self.page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder of runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(tiny_adapters: Path, runs: Path) -> Iterator[Running]:
    """A server with two adapters, one of them beside its finished run."""
    # As `ifedicl run` leaves it: the adapter beside its metrics.jsonl.
    shutil.copytree(tiny_adapters / "mood", runs / "finished" / "adapter")
    write(runs / "finished", [*beginning(), *one_round(1), *one_round(2), *ending()])
    with serving(runs, f"mood={runs}/finished/adapter", f"{tiny_adapters}/place", "--runs", str(runs)) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[playwright.BrowserContext]:
    """One browser for a file of tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        folder = tmp_path_factory.mktemp("browser")
        context = driver.chromium.launch_persistent_context(folder, executable_path=CHROMIUM, args=FLAGS, accept_downloads=True)
        context.set_default_timeout(20_000)
        yield context
        context.close()


@pytest.fixture
def watched(browser: playwright.BrowserContext, server: Running) -> Iterator[Watched]:
    """Whatever a test does, nothing may be complained of, and no other host asked."""
    page = browser.new_page()
    watched = Watched(page, server.url)
    yield watched
    page.close()
    assert watched.complaints == []
    assert watched.hosts == {f"127.0.0.1:{server.port}"}


Line = dict[str, object]


def beginning() -> list[Line]:
    """The lines before the first round."""
    clients = ["north", "south"]
    vectors = [exchange(name, "vectors", 0, up=1024, down=512) for name in clients]
    return [
        {"event": "run", "task": "mood", "labels": ["good", "bad"], "clients": clients},
        {"event": "step", "step": "vectors", "round": 0, "clients": 2},
        *vectors,
    ]


def exchange(client: str, step: str, number: int, *, up: int, down: int, failure: str | None = None) -> Line:
    """One exchange."""
    return {"event": "exchange", "client": client, "step": step, "round": number, "bytes_up": up, "bytes_down": down,
            "seconds": 0.1, "failure": failure}  # fmt: skip


def one_round(number: int, failing: str | None = None) -> list[Line]:
    """A round of two clients, of which one may fail."""
    clients = ["north", "south"]
    own = {name: {"examples": 4, "correct": 1 + number, "loss_sum": 4.0 - number} for name in clients}
    held_out = {"examples": 8, "correct": 2 + 2 * number, "loss_sum": 8.0 - 2 * number}
    failures = {name: "late" if name == failing else None for name in clients}
    return [
        {"event": "step", "step": "update", "round": number - 1, "clients": 2},
        *(
            exchange(name, "update", number - 1, up=0 if failures[name] else 1024, down=4096, failure=failures[name])
            for name in clients
        ),
        {"event": "step", "step": "evaluate", "round": number - 1, "clients": 2},
        *(exchange(name, "evaluate", number - 1, up=100, down=1024) for name in clients),
        {"event": "round", "round": number, "rounds": 3, "clients": [name for name in clients if name != failing],
         "train_loss": 1.0 / number, "by_client": own, "held_out": held_out, "worst": "north"},
    ]  # fmt: skip


def ending() -> list[Line]:
    """The lines after the last round, with test text."""
    tally = {"examples": 8, "correct": 3, "loss_sum": 6.0}

    def tested(name: str, confusion: list[list[int]]) -> Line:
        right = confusion[0][0] + confusion[1][1]
        return {"event": "test", "name": name, "examples": 8, "accuracy": right / 8, "interval": [0.3, 0.9], "macro_f1": 0.5,
                "loss": 0.6, "labels": list(tiny.TASK.labels), "confusion": confusion}  # fmt: skip

    return [
        {"event": "zero_shot", "held_out": tally},
        {"event": "finished", "chosen_round": 2, "gate": {"open": True, "adapter": {**tally, "correct": 6}, "raw": tally}},
        tested("zero-shot", [[2, 2], [3, 1]]),
        tested("adapter", [[3, 1], [0, 4]]),
    ]


def write(run: Path, lines: list[Line]) -> None:
    """The file of a run, whole or not at all."""
    run.mkdir(exist_ok=True, parents=True)
    (run / "new").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "new").rename(run / "metrics.jsonl")


def append(run: Path, lines: list[Line]) -> None:
    """In two writes, the first of which ends within a line."""
    content = "".join(json.dumps(line) + "\n" for line in lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(content[:-40])
        file.flush()
        time.sleep(0.3)
        file.write(content[-40:])
