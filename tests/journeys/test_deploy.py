"""The coordinator's and the owners' walk: docs/deploy.md from the first kit to the owners' ledgers, on loopback."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support import tiny
from tests.support.pages import blocks_of, run_block
from tests.support.processes import free_ports, wait_for

SITES = ("clinic-a", "clinic-b")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGE = "docs/deploy.md"


def on_loopback(text: str, model: Path, ports: list[int]) -> str:
    """The page's file with what loopback needs: another host, ports and model. It also takes fewer rounds."""
    text = text.replace("fl.example.org", "localhost").replace("8002", str(ports[0])).replace("8003", str(ports[1]))
    text = text.replace(MODEL, str(model))
    return text + "\n[rounds]\nrounds = 2\nevaluate_every = 2\n" if "[task]" in text else text


def allow(client: Path, data: Path, model: Path) -> None:
    """What the page asks an owner to do by hand: name file and model, and remove the two characters before each needed line."""
    text = client.read_text().replace('"tickets.jsonl"', f'"{data.name}"').replace(MODEL, str(model))
    text = re.sub(r"^(# The job needs the next line\..*\n)# ", r"\1", text, flags=re.MULTILINE)
    client.write_text(text)


def started(folder: Path, stack: ExitStack) -> None:
    """`ifedicl flare start kit` in the background; when the stack closes, every process of it ends."""
    out = stack.enter_context((folder / "out.txt").open("wb"))
    command = [sys.executable, "-m", "ifedicl.cli", "flare", "start", "kit"]
    process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out)

    def end() -> None:
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for member in reversed(family):
            member.kill()
        process.wait()

    stack.callback(end)


def test_following_the_page_ends_with_an_adapter_at_the_server_and_a_ledger_at_each_owner(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("coordinator", "server", *SITES)}
    for place in places.values():
        place.mkdir()
    ports = free_ports(2)
    kits = places["coordinator"] / "federation" / "triage" / "prod_00"
    said: dict[str, str] = {}

    def run(who: str, text: str) -> None:
        said[who] = run_block(text, places[who], monkeypatch)

    with ExitStack() as stack:
        for block in blocks_of(PAGE):
            if block.kind == "toml":
                assert block.file is not None, block.text
                (places["coordinator"] / block.file).write_text(on_loopback(block.text, llama_folder, ports))
            elif block.kind != "bash":
                assert block.kind == "ini", block.text
            elif "in the background" in block.who:
                for who in places.keys() - {"coordinator"}:
                    started(places[who], stack)
                out = places["server"] / "out.txt"
                wait_for("the sites", lambda: all(f"New client {site}@" in out.read_text() for site in SITES), 120)  # noqa: B023
            elif block.who == "owner":
                for site in SITES:
                    if "policy init" in block.text:  # step 3: kit and job are handed over
                        shutil.copytree(kits / site, places[site] / "kit")
                        shutil.copy(places["coordinator"] / "job.manifest.json", places[site])
                        rows = [
                            {"text": f"{row['text']} {site}", "label": ("urgent", "normal")[number % 2]}
                            for number, row in enumerate(tiny.rows(200, seed=SITES.index(site)))
                        ]
                        tiny.write_rows(places[site] / "kit" / "data.jsonl", rows)
                    if "--dry-run" in block.text:
                        allow(places[site] / "kit" / "client.toml", Path("data.jsonl"), llama_folder)
                    run(site, block.text)
                    if "--dry-run" in block.text:  # the digits from the telephone
                        digest = re.search(r"digest ([0-9a-f]{16})", said["coordinator"])
                        assert digest is not None, said["coordinator"]
                        assert f"job {digest[1]}" in said[site]
            else:
                assert block.who == "coordinator", f"{PAGE}: nobody is said to run:\n{block.text}"
                run("coordinator", block.text)
                if "provision" in block.text:
                    shutil.copytree(kits / "localhost", places["server"] / "kit")
                if "flare job" in block.text:
                    assert "class_counts = true" in said["coordinator"]
                if "submit" in block.text:
                    ending = said["coordinator"]
                    assert "run config: FINISHED:COMPLETED" in ending
                    adapter = Path(ending.split("adapter, on the server's machine: ")[1].splitlines()[0])
                    assert adapter == places["server"] / "kit" / "runs" / "config" / "adapter"
                    assert (adapter / "adapter.json").is_file()
    assert "round 2 of 2 is done" in said["coordinator"]  # the server's log, from the console's kit
    for site in SITES:
        assert "vectors_reply" in said[site]
        assert "all intact" in said[site]
        assert "model loaded" in said[site]
