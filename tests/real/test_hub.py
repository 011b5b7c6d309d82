"""The hub's own client against a stand-in for the hub: an adapter goes there and comes back, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from ifedicl import Adapter
from ifedicl.errors import AdapterError, DownloadError
from tests.support.hub import Hub, hub_server
from tests.support.run_folders import contents

# The hub's client uploads a file's bytes in a way that its own HTTP library is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as running:
        yield running


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client asks this hub, with its token, and keeps files in an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def adapter(tiny_adapters: Path) -> Path:
    return tiny_adapters / "mood"


def command(*words: object, hub: Hub, cache: Path, offline: bool = False, answer: str = "") -> subprocess.CompletedProcess[str]:
    """An ``ifedicl`` command in a process of its own, which knows the hub from the environment alone."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    arguments = [sys.executable, "-m", "ifedicl.cli", *map(str, words)]
    return subprocess.run(arguments, capture_output=True, text=True, input=answer, env={**os.environ, **environment})


def test_an_adapter_goes_to_the_hub_and_comes_back_the_same(adapter: Path, hub: Hub, cache: Path, tmp_path: Path) -> None:
    sent = Adapter.load(adapter)
    assert sent.push_to_hub("us/mood", confirm=lambda text: f"to: {hub.url}/us/mood" in text) == f"{hub.url}/us/mood"
    repository = hub.repositories["us/mood"]
    assert repository.private
    [held] = repository.commits.values()
    assert set(held) == {"adapter.safetensors", "adapter.json", "README.md"}
    assert held["adapter.safetensors"] == (adapter / "adapter.safetensors").read_bytes()
    assert any(request.startswith("PUT /lfs/") for request in hub.requests)  # tensors travel as large files do
    came = Adapter.from_pretrained("us/mood")
    sent.with_model_source(came.model.source).save(tmp_path / "sent")
    came.save(tmp_path / "came")
    assert contents(tmp_path / "came") == contents(tmp_path / "sent")
    header = huggingface_hub.ModelCard.load("us/mood").data
    assert (header.library_name, header.pipeline_tag) == ("ifedicl", "text-classification")


def test_a_revision_is_the_one_that_was_asked_for(adapter: Path, hub: Hub, cache: Path) -> None:
    sent = Adapter.load(adapter)
    for name in ("first", "second"):
        task = sent.task.model_copy(update={"name": name})
        Adapter(**{**sent.__dict__, "task": task}).push_to_hub("us/moods", confirm=lambda text: True)
    repository = hub.repositories["us/moods"]
    first, second = repository.commits
    repository.heads["v1"] = first
    read = {name: Adapter.from_pretrained("us/moods", revision=name).task.name for name in ("v1", "main", first, second)}
    assert read == {"v1": "first", "main": "second", first: "first", second: "second"}
    assert Adapter.from_pretrained("hub:us/moods@v1").task.name == "first"
    with pytest.raises(AdapterError, match=r"us/moods \(revision v9\): no such folder or hub id"):
        Adapter.from_pretrained("us/moods", revision="v9")
    with pytest.raises(AdapterError, match="us/none"):
        Adapter.from_pretrained("us/none")


def test_a_token_that_may_not_write_is_a_clear_error(
    adapter: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(DownloadError, match=r"(?s)us/refused: the hub did not accept the upload.*hf auth login"):
        Adapter.load(adapter).push_to_hub("us/refused", confirm=lambda text: True)
    assert "us/refused" not in hub.repositories


def test_the_commands_push_after_a_yes_and_use_what_was_pushed_also_offline(adapter: Path, hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    declined = command("push", adapter, "us/cli", hub=hub, cache=cache, answer="n\n")
    assert "Push this? [y/N]" in declined.stdout
    assert declined.stdout.endswith("nothing was pushed\n")
    assert "us/cli" not in hub.repositories
    pushed = command("push", adapter, "us/cli", "--public", hub=hub, cache=cache, answer="y\n")
    assert pushed.stdout.endswith(f"pushed to {hub.url}/us/cli\n"), pushed.stderr
    assert "library_name: ifedicl" in pushed.stdout
    assert not hub.repositories["us/cli"].private
    label = ["classify", "hub:us/cli", "we laughed all day", "--model", "./nowhere"]
    online = command(*label, hub=hub, cache=cache)
    assert (online.returncode, "model.source: ./nowhere" in online.stderr) == (4, True)  # the adapter was read before
    asked = len(hub.requests)
    offline = command(*label, hub=hub, cache=cache, offline=True)
    assert (offline.returncode, "model.source: ./nowhere" in offline.stderr, len(hub.requests)) == (4, True, asked)
    unknown = command("classify", "hub:us/mood", "text", hub=hub, cache=tmp_path / "empty", offline=True)
    assert (unknown.returncode, len(hub.requests)) == (7, asked)
    assert "Without a network, give the adapter's folder" in unknown.stderr
    refused = command("push", adapter, "us/offline", "--yes", hub=hub, cache=cache, offline=True)
    assert (refused.returncode, len(hub.requests)) == (7, asked)
