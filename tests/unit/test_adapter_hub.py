"""Adapters from the hub and to it: their own files and no others."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from ifedicl import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import AdapterError, ConfigError
from tests.support import tiny


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
    adapter.save_pretrained(tmp_path / "own")
    adapter.save(tmp_path / "plain")
    for name in ("adapter.safetensors", "adapter.json", "README.md"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    np.testing.assert_array_equal(Adapter.from_pretrained(tmp_path / "own").context.vectors, adapter.context.vectors)


@pytest.mark.parametrize(("name", "revision"), [("us/nothing", None), ("us/moods", "v2")])
def test_a_name_that_is_neither_folder_nor_repository_is_refused(hub: FakeHub, name: str, revision: str | None) -> None:
    with pytest.raises(AdapterError, match=rf"{name} \(revision .*no such folder or hub id.*hf auth login"):
        Adapter.from_pretrained(name, revision=revision)


@pytest.mark.parametrize("public", [False, True])
def test_an_adapter_is_sent_to_the_hub_with_front_matter_and_terms(
    adapter: Adapter, hub: FakeHub, tmp_path: Path, public: bool
) -> None:
    adapter.save_pretrained(tmp_path / "own", repo_id="us/new", public=public)
    assert hub.made == {"us/new": not public}
    [(name, sent)] = hub.uploads
    assert name == "us/new"
    assert set(sent) == {"adapter.safetensors", "adapter.json", "README.md"}
    assert sent["README.md"].startswith("---\n")
    assert "library_name: ifedicl" in sent["README.md"]
    assert "## Terms" in sent["README.md"]
    assert "## This checkpoint" not in sent["README.md"]
    assert (tmp_path / "own" / "README.md").read_text() == adapter.describe()


def test_a_name_that_the_licence_forbids_is_refused_before_anything_is_written(
    adapter: Adapter, hub: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    with pytest.raises(ConfigError, match="a name that begins with 'Llama'"):
        adapter.with_model_source(str(tmp_path / "base")).save_pretrained(tmp_path / "own", repo_id="us/new")
    assert not (tmp_path / "own").exists()
    assert hub.uploads == []
