"""A failed write leaves the older adapter whole."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ifedicl import files
from ifedicl.adapter import Adapter
from ifedicl.core.subspace import Context
from ifedicl.errors import StorageError
from tests.support.adapters import contents


def _no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_permission(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def fail_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, except that call number ``call`` finds the disk full."""
    calls = [0]

    def function(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return _no_space() if calls[0] == call else real(*args, **kwargs)

    return function


def test_files_have_the_permissions_that_the_umask_gives_and_private_ones_are_for_their_owner(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode
    files.write_bytes(tmp_path / "private", b"", private=True)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", [1, 2, 3], ids=["tensors", "header", "card"])
def test_a_full_disk_is_named_and_the_older_adapter_stays_whole(
    adapter: Adapter, saved: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    before = contents(saved)
    newer = replace(adapter, context=Context(adapter.context.vectors + 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_at(call, os.fsync))
        with pytest.raises(StorageError, match=r"disk is full.*Free some space"):
            newer.save(saved)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"], "something was left behind"
    newer.save(saved)
    np.testing.assert_array_equal(Adapter.load(saved).context.vectors, newer.context.vectors)


def test_an_adapter_is_replaced_without_leaving_anything_behind(adapter: Adapter, saved: Path) -> None:
    replace(adapter, context=Context(adapter.context.vectors + 1)).save(saved)
    np.testing.assert_array_equal(Adapter.load(saved).context.vectors, adapter.context.vectors + 1)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_the_older_adapter_comes_back_when_the_new_one_cannot_take_its_name(
    adapter: Adapter, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Three files, then the older folder moves aside, then the new one takes its name.
        patch.setattr(os, "replace", fail_at(5, os.replace))
        with pytest.raises(StorageError):
            replace(adapter, context=Context(adapter.context.vectors + 1)).save(saved)
    np.testing.assert_array_equal(Adapter.load(saved).context.vectors, adapter.context.vectors)


@pytest.mark.parametrize(("module", "function"), [(tempfile, "mkdtemp"), (os, "open")], ids=["folder", "file"])
def test_an_unwritable_place_is_named_and_the_older_adapter_stays_whole(
    adapter: Adapter, saved: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    before = contents(saved)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, _no_permission)
        with pytest.raises(StorageError, match=r"no permission.*Choose a folder of your own"):
            replace(adapter, context=Context(adapter.context.vectors + 1)).save(saved)
    assert contents(saved) == before


def test_a_parent_that_is_a_file_is_named(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        adapter.save(tmp_path / "file" / "adapter")


def test_somebody_elses_folder_is_left_alone(adapter: Adapter, tmp_path: Path) -> None:
    folder, file = tmp_path / "thesis", tmp_path / "note"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("a note")
    for place in (folder, file):
        with pytest.raises(StorageError, match="it is something else"):
            adapter.save(place)
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert file.read_text() == "a note"
    (tmp_path / "empty").mkdir()
    adapter.save(tmp_path / "empty")
    adapter.save(tmp_path / "empty")
    assert Adapter.load(tmp_path / "empty").fingerprint == adapter.fingerprint


@pytest.mark.parametrize("spread", [np.asfortranarray, lambda array: np.repeat(array, 2, axis=-1)[..., ::2]])
def test_arrays_that_do_not_lie_in_one_piece_are_saved_in_their_order(
    adapter: Adapter, tmp_path: Path, spread: Callable[[Any], Any]
) -> None:
    basis = adapter.context.basis
    spread_out = replace(
        adapter,
        context=Context(spread(adapter.context.vectors), None if basis is None else spread(basis)),
        coefficients=replace(adapter.coefficients, scales=spread(adapter.coefficients.scales)),
    )
    assert not spread_out.context.vectors.flags.c_contiguous
    spread_out.save(tmp_path / "spread")
    loaded = Adapter.load(tmp_path / "spread")
    np.testing.assert_array_equal(loaded.context.vectors, adapter.context.vectors)
    np.testing.assert_array_equal(loaded.coefficients.scales, adapter.coefficients.scales)
    if basis is not None:
        np.testing.assert_array_equal(loaded.context.basis, basis)
