"""The record of what left: whole after any crash, and no change of it goes unseen."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ifedicl import files
from ifedicl.errors import LedgerError, StorageError
from ifedicl.ledger.entries import START, Entry, Head
from ifedicl.ledger.ledger import OPENED, REPAIRED, REPLY, Ledger, read
from ifedicl.ledger.receipts import HeadLog, Received, check_heads, read_heads

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=60)


def facts(number: int) -> dict[str, Any]:
    return {"kind": "update_reply", "bytes": 400 + number, "sha256": hashlib.sha256(bytes([number])).hexdigest(), "held": 0}


def written(folder: Path, lines: int = 6, name: str = "ledger.jsonl") -> Path:
    ledger = Ledger(folder / name, "clinic")
    for number in range(lines - 1):
        ledger.append(REPLY, facts(number))
    return folder / name


def heads_of(path: Path) -> list[Received]:
    """What an honest coordinator has written down of this ledger."""
    return [
        Received("clinic", entry.head, entry.facts["sha256"], "run", "update", 0)
        for entry in read(path)[0]
        if entry.event == REPLY
    ]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return written(tmp_path_factory.mktemp("ledger")).read_bytes().splitlines(keepends=True)


def test_each_line_names_the_sha256_of_the_one_before(tmp_path: Path) -> None:
    """Computed here by other means than the ledger's own."""
    previous = START
    for number, line in enumerate(written(tmp_path).read_text().splitlines(), start=1):
        values = json.loads(line)
        assert (values["n"], values["previous"]) == (number, previous)
        own = values.pop("hash")
        content = json.dumps(values, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(content.encode()).hexdigest()
        assert own == previous


def test_a_ledger_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    head = Ledger(path, "clinic").append(REPLY, facts(9))
    entries, torn = read(path)
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert (entries[-1].head, torn) == (head, b"")


def test_a_ledger_knows_every_head_that_it_had_and_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "clinic")
    heads = [ledger.head, *(ledger.append(REPLY, facts(number)) for number in range(4))]
    assert all(ledger.knows(head) for head in heads)
    again = Ledger(tmp_path / "ledger.jsonl", "clinic")
    assert all(again.knows(head) for head in heads)
    assert not any(ledger.knows(Head(head.entries, "0" * 64)) for head in heads)
    assert not ledger.knows(Head(6, heads[-1].digest))
    assert not ledger.knows(Head(2, heads[-1].digest))


def test_two_ledgers_differ_from_their_first_line_on(tmp_path: Path) -> None:
    clock = lambda: "2026-01-01T00:00:00"  # noqa: E731
    assert Ledger(tmp_path / "a", "clinic", clock=clock).head != Ledger(tmp_path / "b", "clinic", clock=clock).head


def test_another_owners_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="ledger of 'clinic', not of 'ward'"):
        Ledger(written(tmp_path), "ward")


def test_a_ledger_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert written(tmp_path).stat().st_mode & 0o077 == 0


# Tampering


def found(path: Path, heads: list[Received]) -> bool:
    try:
        check_heads(read(path)[0], heads)
    except LedgerError:
        return True
    return False


def test_an_untouched_ledger_is_found_whole(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert check_heads(read(path)[0], heads_of(path)) == (5, 0)


@REPEATABLE
@given(data=st.data())
def test_any_changed_byte_is_found_without_the_coordinators_help(data: st.DataObject, lines: list[bytes]) -> None:
    whole = b"".join(lines)
    place = data.draw(st.integers(0, len(whole) - 2))  # the last newline alone is a torn line, which is another case
    byte = data.draw(st.integers(0, 255))
    assume(whole[place] != byte)
    assert_found(whole[:place] + bytes([byte]) + whole[place + 1 :])


@REPEATABLE
@given(data=st.data())
def test_any_inserted_or_deleted_bytes_within_are_found(data: st.DataObject, lines: list[bytes]) -> None:
    whole = b"".join(lines)
    start = data.draw(st.integers(0, len(whole) - 2))
    stop = data.draw(st.integers(start, min(start + 80, len(whole) - 2)))
    put = data.draw(st.binary(max_size=40))
    assume(whole[start:stop] != put)
    assert_found(whole[:start] + put + whole[stop:])


@REPEATABLE
@given(data=st.data())
def test_any_other_order_of_the_lines_is_found(data: st.DataObject, lines: list[bytes]) -> None:
    order = data.draw(st.permutations(range(len(lines))))
    assume(list(order) != sorted(order))
    assert_found(b"".join(lines[place] for place in order))


@REPEATABLE
@given(data=st.data())
def test_lines_taken_out_or_doubled_within_are_found(data: st.DataObject, lines: list[bytes]) -> None:
    times = data.draw(st.lists(st.integers(0, 2), min_size=len(lines) - 1, max_size=len(lines) - 1))
    assume(any(count != 1 for count in times))
    kept = [line for line, count in zip(lines[:-1], times, strict=True) for _ in range(count)]
    assert_found(b"".join([*kept, lines[-1]]))


def assert_found(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        path.write_bytes(content)
        with pytest.raises(LedgerError):
            read(path)
        with pytest.raises(LedgerError):
            Ledger(path, "clinic")
        assert path.read_bytes() == content


@pytest.mark.parametrize("cut", range(1, 6))
def test_lines_cut_off_at_the_end_are_found_with_the_coordinators_heads(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path)
    heads = heads_of(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-cut]))
    assert not found(path, [])  # by itself a shorter ledger is a ledger
    assert found(path, heads)


REWRITES: dict[str, Callable[[dict[str, Any]], None]] = {
    "fewer bytes": lambda values: values.update(bytes=1),
    "another time": lambda values: values.update(time="2020-01-01T00:00:00.000+00:00"),
    "another reply": lambda values: values.update(sha256="0" * 64),
    "one fact more": lambda values: values.update(note="nothing left"),
}


@pytest.mark.parametrize("number", range(2, 7))
@pytest.mark.parametrize("rewrite", REWRITES)
def test_an_owner_who_rewrites_a_line_and_all_that_follow_is_found_with_the_coordinators_heads(
    tmp_path: Path, rewrite: str, number: int
) -> None:
    path = written(tmp_path)
    heads = heads_of(path)
    entries = read(path)[0]
    forged: list[Entry] = entries[: number - 1]
    for entry in entries[number - 1 :]:
        values = {"n": entry.number, "time": entry.time, "event": entry.event, **entry.facts}
        if entry.number == number:
            REWRITES[rewrite](values)
        own = {key: values.pop(key) for key in ("n", "time", "event")}
        forged.append(Entry(own["n"], own["time"], own["event"], values, forged[-1].digest))
    path.write_bytes(b"".join(entry.line + b"\n" for entry in forged))
    assert not found(path, [])
    assert found(path, heads)


def test_a_coordinator_that_claims_another_reply_or_drops_a_head_is_found_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "clinic")
    head = ledger.append(REPLY, facts(0))
    ledger.append(REPLY, {**facts(1), "held": head.entries})
    path = tmp_path / "ledger.jsonl"
    heads = heads_of(path)
    assert check_heads(read(path)[0], heads) == (2, 0)
    other = Received("clinic", heads[0].head, "0" * 64, "run", "update", 0)
    with pytest.raises(LedgerError, match="another reply"):
        check_heads(read(path)[0], [other, heads[1]])
    with pytest.raises(LedgerError, match="was acknowledged and is missing"):
        check_heads(read(path)[0], heads[1:])


def test_heads_of_other_clients_are_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path)
    other = Received("ward", Head(99, "0" * 64), "0" * 64, "run", "update", 0)
    assert check_heads(read(path)[0], [other]) == (0, 6)


# Crashes


@REPEATABLE
@given(data=st.data())
def test_a_line_torn_at_any_byte_is_reported_and_quoted_at_the_next_start(data: st.DataObject, lines: list[bytes]) -> None:
    import tempfile

    cut = data.draw(st.integers(1, len(lines[-1]) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        before, torn = read(path)
        assert (len(before), torn) == (len(lines) - 1, lines[-1][:cut])
        Ledger(path, "clinic").append(REPLY, facts(7))
        entries, rest = read(path)
        assert rest == b""
        assert entries[: len(before)] == before
        repaired = entries[len(before)]
        assert repaired.event == REPAIRED
        assert repaired.facts["torn"] == lines[-1][:cut].decode()
        assert entries[-1].facts == facts(7)


def test_a_disk_that_fills_up_within_a_line_leaves_a_whole_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "clinic")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="disk is full"):
            ledger.append(REPLY, facts(0))
    assert len(read(tmp_path / "ledger.jsonl")[0]) == 1
    assert ledger.append(REPLY, facts(1)).entries == 2
    assert len(read(tmp_path / "ledger.jsonl")[0]) == 2


def test_a_line_is_flushed_to_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, sizes = Ledger(tmp_path / "ledger.jsonl", "clinic"), []
    flush = os.fsync

    def watching(descriptor: int) -> None:
        flush(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", watching)
    ledger.append(REPLY, facts(0))
    assert sizes == [(tmp_path / "ledger.jsonl").stat().st_size]


def test_a_second_writer_is_found_at_its_first_line(tmp_path: Path) -> None:
    first, second = (Ledger(tmp_path / "ledger.jsonl", "clinic") for _ in range(2))
    first.append(REPLY, facts(0))
    with pytest.raises(StorageError, match="Another process has written"):
        second.append(REPLY, facts(1))
    assert len(read(tmp_path / "ledger.jsonl")[0]) == 2


# The coordinator's file


def test_heads_come_back_as_they_went_also_behind_a_torn_line(tmp_path: Path) -> None:
    heads = heads_of(written(tmp_path))
    path = tmp_path / "heads.jsonl"
    HeadLog(path).note(heads[:2])
    with path.open("ab") as file:
        file.write(b'{"client":"cli')
    HeadLog(path).note(heads[2:])
    assert read_heads(path) == heads
    assert '{"client":\\"cli' in path.read_text() or '{\\"client\\":\\"cli' in path.read_text()


def test_without_a_path_no_heads_are_written(tmp_path: Path) -> None:
    HeadLog(None).note(heads_of(written(tmp_path)))
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"client": "a"}', "no JSON", '{"time": 1, "head": {"entries": 0, "digest": "x"}}']
)
def test_a_line_that_no_coordinator_wrote_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "heads.jsonl").write_text(line + "\n")
    with pytest.raises(LedgerError, match="line 1"):
        read_heads(tmp_path / "heads.jsonl")


@pytest.mark.parametrize(
    "values", [(0, "0" * 64), (True, "0" * 64), (1, "0" * 63), (1, "G" * 64), (2**60, "0" * 64), (1.0, "0" * 64)]
)
def test_a_head_that_cannot_be_is_refused(values: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="ledger head: received"):
        Head(*values)


def test_a_file_that_is_absent_or_empty_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(LedgerError, match="no complete line"):
        read(tmp_path / "empty.jsonl")


def test_a_ledger_that_does_not_begin_with_its_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for entry in (Entry(1, "t", REPLY, {}, START), Entry(1, "t", OPENED, {}, START)):
        path.write_bytes(entry.line + b"\n")
        with pytest.raises(LedgerError, match="line 1"):
            read(path)


class _FullOnce(io.FileIO):
    """The first write finds no room."""

    is_full = True

    def write(self, data: Any) -> int:
        if self.is_full:
            self.is_full = False
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_what_a_full_disk_refuses_is_not_written_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room again by the time the file is closed."""

    def full_once(path: Path, _mode: str, buffering: int = -1) -> Any:
        raw = _FullOnce(path, "r+b")
        return raw if buffering == 0 else io.BufferedRandom(raw)

    (tmp_path / "file").write_bytes(b"abc")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full_once)
        with pytest.raises(StorageError):
            files.append(tmp_path / "file", b"def", at=3)
    assert (tmp_path / "file").read_bytes() == b"abc"


def test_appending_checks_where_the_file_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    files.append(tmp_path / "file", b"def", at=3)
    with pytest.raises(StorageError, match="6 bytes, not 3"):
        files.append(tmp_path / "file", b"ghi", at=3)
    assert (tmp_path / "file").read_bytes() == b"abcdef"
