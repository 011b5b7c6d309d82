"""Keys, and the catalog of what is served."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.errors import AdapterError, FingerprintError, ServeError
from ifedicl.serve import server as server_module
from ifedicl.serve.api_keys import Keys, new_key
from ifedicl.serve.catalog import Catalog, Folder, StoreSource, slug
from ifedicl.store import open_store
from ifedicl.store.records import TaskKey
from tests.support import tiny
from tests.support.serve import catalog_of

# Keys


def test_a_key_is_kept_as_a_hash_and_known_again(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys = {name: new_key(file, name) for name in ("reader", "clinic.north")}
    assert file.stat().st_mode & 0o777 == 0o600
    assert not any(key in file.read_text() for key in keys.values())
    known = Keys(file)
    assert {known.holder(key) for key in keys.values()} == set(keys)
    assert known.holder(keys["reader"][:-1]) is None
    assert known.holder("") is None


def test_a_withdrawn_key_is_refused_after_a_refresh_and_a_broken_file_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first, second = new_key(file, "a"), new_key(file, "b")
    known = Keys(file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("# ours\n\n" + lines[1])
    known.refresh()
    assert (known.holder(first), known.holder(second)) == (None, "b")
    file.write_text("b secret\n")
    with pytest.raises(ServeError, match="line 1 is not a name and a SHA-256") as raised:
        known.refresh()
    assert "secret" not in str(raised.value)
    assert (known.holder(second), known.are_known) == (None, False)
    file.unlink()
    with pytest.raises(ServeError, match="cannot be read"):
        known.refresh()
    assert not known.are_known
    file.write_text(lines[1])
    known.refresh()
    assert (known.holder(second), known.are_known) == ("b", True)


def test_faults_in_keys_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="Make the first one: ifedicl key"):
        Keys(tmp_path / "absent")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ServeError, match="holds no key"):
        Keys(tmp_path / "empty")
    new_key(tmp_path / "keys", "a")
    with pytest.raises(ServeError, match="a key for 'a' already"):
        new_key(tmp_path / "keys", "a")
    with pytest.raises(ServeError, match="letters, digits"):
        new_key(tmp_path / "keys", "a b")


def test_a_folder_is_named_after_its_run_and_loaded_again_when_it_is_replaced(backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "My Run" / "adapter"
    tiny.drawn_adapter(backbone, seed=1).save(folder)
    catalog = catalog_of(backbone, Folder.of(str(folder)), Folder.of(f"other={folder}"))
    catalog.refresh(strict=True)
    first = catalog.get("my-run")
    assert [served.name for served in catalog] == ["my-run", "other"]
    catalog.refresh()
    assert catalog.get("my-run") is first
    tiny.drawn_adapter(backbone, seed=2).save(folder)
    catalog.refresh()
    assert catalog.get("my-run").loaded.version != first.loaded.version


def test_a_folder_that_is_torn_or_gone_leaves_what_was_served(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mood"
    tiny.drawn_adapter(backbone).save(folder)
    catalog = catalog_of(backbone, Folder.of(str(folder)))
    catalog.refresh(strict=True)
    served = catalog.get("mood")
    (folder / "adapter.safetensors").write_bytes(b"torn")
    (folder / "adapter.json").touch()
    catalog.refresh()
    shutil.rmtree(folder)
    catalog.refresh()
    assert catalog.get(None) is served
    assert "is torn" in caplog.text
    assert "is missing" in caplog.text


def test_an_adapter_that_fails_in_a_way_that_nobody_foresaw_keeps_no_other_from_being_taken_in(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("first", "second"):
        tiny.drawn_adapter(backbone, seed=1).save(tmp_path / name)
    placed: list[Any] = []

    def place(adapter: Any) -> Any:
        placed.append(adapter)
        if len(placed) == 3:
            raise TypeError("secret words")
        return adapter.classifier(backbone).placed()

    catalog = Catalog([Folder.of(str(tmp_path / name)) for name in ("first", "second")], backbone.fingerprint, place)
    catalog.refresh(strict=True)
    first, second = catalog.get("first"), catalog.get("second")
    for name in ("first", "second"):
        tiny.drawn_adapter(backbone, seed=2).save(tmp_path / name)
    catalog.refresh()
    assert catalog.get("first") is first
    assert catalog.get("second").loaded.version != second.loaded.version
    assert "first is not loaded: TypeError at" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [ServeError("a slip"), TypeError("secret words"), RecursionError()])
def test_whatever_goes_wrong_the_server_looks_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    looked: list[str] = []

    class Stopping:
        waits = 0

        def wait(self, seconds: float) -> bool:
            self.waits += 1
            return self.waits > 3

    class Source:
        def __init__(self, name: str) -> None:
            self._name = name

        def refresh(self) -> None:
            looked.append(self._name)
            raise error

    server_module._keep_refreshing(cast("Any", Stopping()), 0.1, cast("Any", Source("adapters")), cast("Any", Source("keys")))
    assert looked == ["keys", "adapters"] * 3
    assert "keys not refreshed: " in caplog.text
    assert "secret" not in caplog.text


def test_a_server_does_not_start_with_an_adapter_that_it_cannot_serve(backbone: Backbone, tmp_path: Path) -> None:
    replace(tiny.drawn_adapter(backbone), fingerprint="f" * 64).save(tmp_path / "foreign")
    with pytest.raises(FingerprintError, match="One server serves the adapters of one model"):
        catalog_of(backbone, Folder.of(str(tmp_path / "foreign"))).refresh(strict=True)
    with pytest.raises(AdapterError, match="is not an adapter"):
        catalog_of(backbone, Folder.of(str(tmp_path / "absent"))).refresh(strict=True)
    tiny.drawn_adapter(backbone).save(tmp_path / "mood")
    two = Folder.of(str(tmp_path / "mood")), Folder.of(str(tmp_path / "mood"))
    with pytest.raises(ServeError, match="two have the name 'mood'"):
        catalog_of(backbone, *two).refresh(strict=True)


def test_the_newest_version_of_each_task_of_the_store_is_served(backbone: Backbone, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "tasks.sqlite"))
    provenance = {"method": tiny.method().model_dump(mode="json")}
    key = {name: replace(tiny.drawn_adapter(backbone), provenance=provenance) for name in ("north", "south")}
    key["foreign"] = replace(key["north"], fingerprint="f" * 64)
    for federation in ("north", "south", "foreign"):
        store.put(TaskKey.of_adapter(federation, key[federation]), key[federation])
    catalog = catalog_of(backbone, StoreSource(store, backbone.fingerprint))
    catalog.refresh(strict=True)
    names = [served.name for served in catalog]
    assert names[0] == "mood"
    assert re.fullmatch("mood-[0-9a-f]{8}", names[1])
    assert len(names) == 2
    entry = store.put(
        TaskKey.of_adapter("north", key["north"]), replace(tiny.drawn_adapter(backbone, seed=9), provenance=provenance)
    )
    catalog.refresh()
    assert catalog.get("mood").loaded.version == "2"
    only_south = catalog_of(backbone, StoreSource(store, backbone.fingerprint, "south"))
    only_south.refresh(strict=True)
    assert [served.name for served in only_south] == ["mood"]
    store.remove(entry.id)
    catalog.refresh()
    assert catalog.get("mood").loaded.version == "1"
    store.close()


@pytest.mark.parametrize(("name", "expected"), [("Mood of a Text!", "mood-of-a-text"), ("../x", "x"), ("Ü", "adapter")])
def test_names_need_no_escaping(name: str, expected: str) -> None:
    assert slug(name) == expected
