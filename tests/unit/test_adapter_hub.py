"""Adapters from the hub and to it: their own files and no others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from ifedicl import Adapter, cli
from ifedicl.adapter.hub_name import HubName
from ifedicl.backbone.load import Backbone
from ifedicl.cli.adapters import folder_argument
from ifedicl.errors import AdapterError, ConfigError
from tests.support import tiny
from tests.support.checkpoints import raising


@pytest.fixture
def adapter(backbone: Backbone) -> Adapter:
    return tiny.drawn_adapter(backbone, source=backbone.source)


@pytest.fixture
def saved(adapter: Adapter, tmp_path: Path) -> Path:
    adapter.save(tmp_path / "adapter")
    return tmp_path / "adapter"


class FakeHub:
    """A folder in place of a repository: gives what the patterns ask for, and keeps what is uploaded."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.uploads: list[tuple[str, dict[str, str]]] = []
        self.made: dict[str, bool] = {}
        self.endpoint = "https://hub.example"

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        if name != "us/moods" or revision not in (None, "v1"):
            raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://hub")))
        for path in self.repository.rglob("*"):
            relative = path.relative_to(self.repository)
            if path.is_file() and any(fnmatch(str(relative), pattern) for pattern in allow_patterns):
                (self.cache / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.cache / relative)
        return str(self.cache)

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made[repo_id] = private

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert commit_message == "An ifedicl adapter"
        self.uploads.append((repo_id, {path.name: path.read_text("latin-1") for path in Path(folder_path).iterdir()}))


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with one repository, ``us/moods``, which holds what ``saved`` holds."""
    fake = FakeHub(saved, tmp_path / "cache" / "us")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


@pytest.mark.parametrize("revision", [None, "v1"])
def test_an_adapter_comes_from_the_hub_with_its_own_files_alone(
    adapter: Adapter, saved: Path, hub: FakeHub, revision: str | None
) -> None:
    for name in ("run_me.py", "weights.bin", "model.safetensors", "notes.txt"):
        (saved / name).write_text("not the adapter's")
    loaded = Adapter.from_pretrained("us/moods", revision=revision)
    np.testing.assert_array_equal(loaded.context.vectors, adapter.context.vectors)
    assert {path.name for path in hub.cache.iterdir()} == {"adapter.safetensors", "adapter.json", "README.md"}


def test_the_adapter_beside_an_exported_checkpoint_is_found(adapter: Adapter, hub: FakeHub, tmp_path: Path) -> None:
    adapter.save(tmp_path / "checkpoint" / "ifedicl")
    (tmp_path / "checkpoint" / "model.safetensors").write_text("gigabytes")
    hub.repository = tmp_path / "checkpoint"
    for name in ("us/moods", tmp_path / "checkpoint"):
        assert Adapter.from_pretrained(name).fingerprint == adapter.fingerprint
    assert not (hub.cache / "model.safetensors").exists()


def test_from_pretrained_reads_a_folder_without_the_hub(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "own")
    np.testing.assert_array_equal(Adapter.from_pretrained(tmp_path / "own").context.vectors, adapter.context.vectors)


@pytest.mark.parametrize(("name", "revision"), [("us/nothing", None), ("us/moods", "v2")])
def test_a_name_that_is_neither_folder_nor_repository_is_refused(hub: FakeHub, name: str, revision: str | None) -> None:
    with pytest.raises(AdapterError, match=rf"{name} \(revision .*no such folder or hub id.*hf auth login"):
        Adapter.from_pretrained(name, revision=revision)


@pytest.mark.parametrize("public", [False, True])
def test_an_adapter_is_sent_to_the_hub_with_front_matter_and_terms_once_that_was_agreed(
    adapter: Adapter, hub: FakeHub, public: bool
) -> None:
    shown: list[str] = []
    answers = iter([False, True])

    def asked(text: str) -> bool:
        shown.append(text)
        return next(answers)

    assert adapter.push_to_hub("us/new", confirm=asked, public=public) is None
    assert (hub.made, hub.uploads) == ({}, [])
    address = adapter.push_to_hub("us/new", confirm=asked, public=public)
    assert address == "https://hub.example/us/new"
    assert hub.made == {"us/new": not public}
    [(name, sent)] = hub.uploads
    assert name == "us/new"
    assert set(sent) == {"adapter.safetensors", "adapter.json", "README.md"}
    assert sent["README.md"].startswith("---\n")
    assert "library_name: ifedicl" in sent["README.md"]
    assert 'Adapter.from_pretrained("us/new")' in sent["README.md"]
    assert "## Terms" in sent["README.md"]
    assert "## This checkpoint" not in sent["README.md"]
    assert shown[0] == shown[1]
    assert "to: https://hub.example/us/new" in shown[0]
    assert ("can be seen by everyone" if public else "is private") in shown[0]
    assert all(f"{name} ({len(text.encode('latin-1')):,} bytes)" in shown[0] for name, text in sent.items())
    assert sent["README.md"].encode("latin-1").decode() in shown[0]


def test_nothing_that_is_sent_names_a_folder_of_this_machine(adapter: Adapter, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "LICENSE").write_text("be kind")
    adapter.with_model_source(str(tmp_path / "base")).push_to_hub("us/new", confirm=lambda text: str(tmp_path) not in text)
    [(_, sent)] = hub.uploads
    assert sent["LICENSE"] == "be kind"
    assert not [name for name, text in sent.items() if str(tmp_path) in text]
    assert "base_model" not in sent["README.md"]
    assert json.loads(sent["adapter.json"])["model"]["source"] == "./base"  # a path, which no reader takes for a hub id


def test_the_card_says_what_the_coordinator_saw(adapter: Adapter) -> None:
    facts: dict[str, Any] = {"clients": 3, "method": {"privacy": None}}
    modes = {"open": None, "secure": {"mode": "secure"}, "private": {"mode": "private"}}
    cards = {
        mode: replace(adapter, provenance=facts | {"method": {"privacy": privacy}}).describe()
        for mode, privacy in modes.items()
    }
    assert "saw each client's means, sums and coefficients one by one" in cards["open"]
    assert "saw sums over the clients only, and no text" in cards["secure"]
    promise = {"privacy": {"epsilon": 2.5, "delta": 1e-5, "of": "one example of one client"}}
    private = replace(adapter, provenance=facts | promise | {"method": {"privacy": modes["private"]}}).describe()
    assert "Noise hides one example of one client: ε = 2.5, δ = 1e-05." in private
    assert all("the examples of 3 clients, and no text of theirs" in text for text in (*cards.values(), private))
    assert "## Privacy" not in adapter.describe()  # nothing is known of an adapter that no run made


@pytest.mark.parametrize("name", ["mood", "us/mood/x", "us mood/x", "../mood", "us/", "-us/mood"])
def test_a_name_that_no_repository_can_have_is_refused(adapter: Adapter, hub: FakeHub, name: str) -> None:
    with pytest.raises(ConfigError, match=r"repository: received .*allowed: OWNER/NAME"):
        adapter.push_to_hub(name, confirm=lambda text: True)
    assert hub.uploads == []


def test_a_name_that_the_licence_forbids_is_refused_before_anything_is_shown(
    adapter: Adapter, hub: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    with pytest.raises(ConfigError, match="a name that begins with 'Llama'"):
        adapter.with_model_source(str(tmp_path / "base")).push_to_hub("us/new", confirm=raising(AssertionError("shown")))
    assert hub.uploads == []


# Names that commands take


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:us/mood", HubName("us/mood")),
        ("hub:us/mood@v1", HubName("us/mood", "v1")),
        ("hub:us/mood@refs/pr/1", HubName("us/mood", "refs/pr/1")),
        ("us/mood", None),
        ("runs/hub:us/mood", None),
        ("./hub:us", None),
    ],
)
def test_only_the_prefix_names_the_hub(text: str, expected: HubName | None) -> None:
    assert HubName.of(text) == expected


@pytest.mark.parametrize("text", ["hub:", "hub:mood", "hub:us/mood/x", "hub:us/mood@", "hub:us/mo od", "hub:https://x/y"])
def test_a_hub_name_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(AdapterError, match="allowed: hub:OWNER/NAME, or hub:OWNER/NAME@REVISION"):
        HubName.of(text)


@pytest.mark.parametrize(
    "command",
    [
        ["classify", "us/mood", "a text"],
        ["evaluate", "us/mood", "x.csv"],
        ["export", "us/mood", "out"],
        ["serve", "us/mood"],
    ],
)
def test_a_mistyped_path_never_goes_to_the_hub(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(AssertionError("the hub was asked")))
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 5
    assert "us/mood is not an adapter" in capsys.readouterr().err


def test_classify_and_serve_take_an_adapter_of_the_hub_that_is_named_as_one(
    adapter: Adapter, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["classify", "hub:us/moods@v1", "a text", "--model", "./nowhere"])
    assert stop.value.code == 4  # the adapter was read, and its model is looked for
    assert "model.source: ./nowhere" in capsys.readouterr().err
    assert folder_argument("hub:us/moods") == f"moods={hub.cache}"
    assert folder_argument("mine=hub:us/moods@v1") == f"mine={hub.cache}"
    assert folder_argument("mine=runs/x") == "mine=runs/x"


def test_an_adapter_of_the_hub_is_exported_as_one_on_this_machine(saved: Path, hub: FakeHub, tmp_path: Path) -> None:
    for named, out in ((str(saved), "from the folder"), ("hub:us/moods", "from the hub")):
        cli.app(["export", named, str(tmp_path / out)], standalone_mode=False)
    ours, theirs = (
        {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*") if path.is_file()}
        for out in ("from the hub", "from the folder")
    )
    assert Path("model.safetensors") in ours
    assert ours == theirs
