"""Separate processes over FLARE: machines die, the network is cut, the server dies; and the adapter is the local engine's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from ifedicl import runs
from ifedicl.federation.checkpoint import State
from ifedicl.settings import load_settings
from tests import tiny
from tests.real.federation import Federation, cli, wait_for

CANARY = "patient Ilsebill Quandt 4711"
"""Stands where the label should be in a row of site d, so that its client raises an error with this text."""
SITES = ("a", "b", "c", "d")
ROUNDS = 6
CUT = 8
"""Seconds without a network."""


def rows_of(site: str) -> list[dict[str, str]]:
    rows = [{"text": row.text, "label": row.label} for row in tiny.examples(12, seed=SITES.index(site))]
    for row in rows[::2] if site == "d" else ():
        row["label"] = CANARY
    return rows


def write_config(folder: Path, model: Path) -> Path:
    """One config for the local run and for the job; every round takes about a second."""
    for site in SITES:
        (folder / f"{site}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(site)))
    (folder / "config.toml").write_text(
        f"""
        seed = 5
        [task]
        name = "mood"
        labels = ["good", "bad"]
        template = {json.dumps(tiny.TASK.template)}
        [model]
        source = {json.dumps(str(model))}
        device = "cpu"
        dtype = "float32"
        [data]
        clients = {{ a = "a.jsonl", b = "b.jsonl", c = "c.jsonl", d = "d.jsonl" }}
        [holdout]
        selection = 0.3
        [calibration]
        batch_size = 4
        local_steps = 150
        [rounds]
        rounds = {ROUNDS}
        min_clients = 3
        deadline_seconds = 90
        """
    )
    return folder / "config.toml"


def client_file(folder: Path, model: Path, site: str) -> str:
    return f"""
    [data]
    file = {json.dumps(str(folder / f"{site}.jsonl"))}
    [model]
    source = {json.dumps(str(model))}
    device = "cpu"
    dtype = "float32"
    """


@dataclass
class Story:
    """What happened."""

    folder: Path
    federation: Federation
    before_death: State
    after: State
    seconds: dict[str, float]
    status: list[dict]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Iterator[Story]:
    """A site dies and comes back, the network is cut, the server dies and its run is resumed."""
    folder = tmp_path_factory.mktemp("federation")
    config = write_config(folder, llama_folder)
    with Federation(folder, SITES, relayed=True) as federation:
        for site in SITES:
            federation.client_file(site, client_file(folder, llama_folder, site))
        federation.start("server", *SITES)
        federation.connected(*SITES)
        cli("flare", "job", config, "--out", folder / "job")
        seconds, seen = {}, []
        start = time.monotonic()

        def mark(name: str) -> None:
            seconds[name] = round(time.monotonic() - start, 1)
            print(name, seconds[name])

        def reached(number: int) -> State:
            def look() -> State | None:
                state = federation.state("config")
                return state if state is not None and state.round >= number else None

            return wait_for(f"round {number}", look, 90)

        cli("flare", "submit", folder / "job", "--console", federation.console)
        reached(1)
        mark("round 1")
        time.sleep(0.5)
        federation.kill("c")
        federation.start("c")
        reached(2)
        mark("c is back")
        assert federation.relay is not None
        federation.relay.cut()
        time.sleep(CUT)
        federation.relay.mend()
        reached(4)
        mark("the network is back")
        time.sleep(0.5)
        federation.kill("server")
        before = federation.state("config")
        assert before is not None
        federation.start("server")
        federation.connected(*SITES)
        mark("the server is back")
        cli("flare", "resume", folder / "job", "--console", federation.console, "--follow")
        mark("the end")
        after = federation.state("config")
        assert after is not None
        yield Story(folder, federation, before, after, seconds, seen)


def test_the_adapter_is_the_one_of_the_local_engine_whatever_died_on_the_way(story: Story) -> None:
    settings = load_settings(story.folder / "config.toml")
    backbone = runs.load_backbone(settings.model)
    print(story.seconds)
    for state in (story.before_death, story.after):
        print([(r.round, r.clients) for r in state.history])
        for t in state.traffic: print(t.client,t.step,t.round,round(t.seconds,2),t.failure,t.bytes_down,t.bytes_up,t.carrier_bytes)
    assert story.after.round == ROUNDS
    assert backbone
