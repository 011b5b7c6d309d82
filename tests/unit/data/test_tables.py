"""Parquet files are read by the columns that are needed; folders are read, or named for what they are."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ifedicl.data import read_examples, read_texts
from ifedicl.errors import DataError
from ifedicl.inspection import inspect_data
from ifedicl.kinds.classify import Example, Task
from ifedicl.rows import rows_of
from tests.support import tiny

TASK = tiny.TASK
ROWS = (Example("warm soup", "good"), Example("cold room", "bad"))


def _table(**columns: Any) -> pa.Table:
    return pa.table({"text": [row.text for row in ROWS], "label": [row.label for row in ROWS], **columns})


# Columns that nobody asks for

OTHERS = {
    "nanoseconds": pa.array([1, -(2**62) - 7], pa.timestamp("ns", tz="Asia/Kathmandu")),
    "no such time zone": pa.array([1, 2], pa.timestamp("s", tz="Mars/Olympus")),
    "a far year": pa.array([2**42, -(2**50)], pa.timestamp("s")),
    "a far date": pa.array([2**31 - 1, 0], pa.date32()),
    "a duration": pa.array([1, 2**60 + 1], pa.duration("ns")),
    "a time": pa.array([1, 2], pa.time64("ns")),
    "a struct": pa.array([{"a": [1], "b": {"c": None}}, None]),
    "a map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())),
    "a decimal": pa.array([1, None], pa.decimal128(38, 0)),
    "nothing": pa.nulls(2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_column_that_is_not_needed_stops_nothing(tmp_path: Path, name: str) -> None:
    parquet.write_table(_table(other=OTHERS[name]), tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet", TASK) == ROWS
    assert read_texts(tmp_path / "a.parquet") == ("warm soup", "cold room")
    assert inspect_data(tmp_path / "a.parquet")["columns"] == ["text", "label", "other"]


def test_a_torn_column_that_is_not_needed_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(_table(other=["x" * 999, "y" * 999]), file, compression="gzip", use_dictionary=False)
    column = parquet.ParquetFile(file).metadata.row_group(0).column(2)
    content = bytearray(file.read_bytes())
    for place in range(column.data_page_offset, column.data_page_offset + column.total_compressed_size):
        content[place] = 255
    file.write_bytes(content)
    assert read_examples(file, TASK) == ROWS
    with pytest.raises(DataError, match="not a whole Parquet file"):
        read_texts(file, text="other")


def test_a_text_in_a_column_with_a_dot_is_read(tmp_path: Path) -> None:
    parquet.write_table(_table(**{"meta.note": ["x", "y"], "meta": [{"note": 1}, None]}), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet", text="meta.note") == ("x", "y")


@pytest.mark.parametrize("name", ["nanoseconds", "no such time zone", "a far year"])
def test_a_needed_column_that_cannot_be_read_is_named_with_its_type(tmp_path: Path, name: str) -> None:
    parquet.write_table(_table(when=OTHERS[name]), tmp_path / "a.parquet")
    kind = parquet.read_schema(tmp_path / "a.parquet").field("when").type
    with pytest.raises(DataError) as caught:
        read_examples(tmp_path / "a.parquet", TASK, text="when")
    assert "column 'when': received" in str(caught.value)
    assert "allowed: text, or a number" in str(caught.value)
    read_as = ("a datetime", "a Timestamp")  # with pandas, pyarrow makes the second
    assert any(shown in str(caught.value) for shown in (str(kind), *read_as))


def test_a_missing_column_is_named_with_all_that_there_are(tmp_path: Path) -> None:
    parquet.write_table(_table(other=OTHERS["nanoseconds"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'note' and no 'mood'; it has 'text', 'label', 'other'"):
        read_examples(tmp_path / "a.parquet", TASK, text="note", label="mood")


# Names of classes


def _features(names: Any, **more: Any) -> dict[bytes, bytes]:
    features = {"label": {"names": names, "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}, **more}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def _classes(*numbers: int | None) -> pa.Table:
    return pa.table({"text": [f"row {place}" for place in range(len(numbers))], "label": pa.array(numbers, pa.int64())})


def test_the_names_of_classes_are_read_from_the_schema(tmp_path: Path) -> None:
    parquet.write_table(_classes(1, 0, 1).replace_schema_metadata(_features(["bad", "good"])), tmp_path / "a.parquet")
    assert [row.label for row in read_examples(tmp_path / "a.parquet", TASK)] == ["good", "bad", "good"]


@pytest.mark.parametrize(("number", "fault"), [(-1, "column 'label' is empty"), (None, "is empty"), (2, "label '2' is not in")])
def test_a_class_without_a_name_is_an_error_and_never_the_last_name(tmp_path: Path, number: int | None, fault: str) -> None:
    parquet.write_table(_classes(0, number).replace_schema_metadata(_features(["bad", "good"])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"line 2: .*{fault}"):
        read_examples(tmp_path / "a.parquet", TASK)


@pytest.mark.parametrize(
    "metadata", [{b"huggingface": b"{"}, {b"huggingface": b"[]"}, _features("ab"), _features(None), {b"x": b"y"}]
)
def test_other_words_in_the_schema_mean_nothing(tmp_path: Path, metadata: dict[bytes, bytes]) -> None:
    parquet.write_table(_classes(1, 0).replace_schema_metadata(metadata), tmp_path / "a.parquet")
    numbers = Task(name="n", labels=("0", "1"))
    assert [row.label for row in read_examples(tmp_path / "a.parquet", numbers)] == ["1", "0"]


# Folders


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    if file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        tiny.write_rows(file, rows)
    else:
        file.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))


@pytest.mark.parametrize(
    "names",
    [
        [f"part-{number}.jsonl" for number in range(12)],
        [f"train-{number:05d}-of-00012.parquet" for number in range(12)],
        [f"{number}.csv" for number in range(12)],
        [f"part-{number:05d}-0f3a-77be-c000.snappy.parquet" for number in range(12)],
        ["only.jsonl"],
    ],
)
def test_a_folder_of_parts_is_one_set_in_the_order_of_their_numbers(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "set.parquet"  # as Spark names the folder
    folder.mkdir()
    for place, name in enumerate(names):
        _write(folder / name, [{"text": f"text {place}", "label": "good"}])
    for other in ("_SUCCESS", ".part-0.crc", "README.md", "_metadata"):
        (folder / other).write_text("x")
    expected = tuple(Example(f"text {place}", "good") for place in range(len(names)))
    assert read_examples(folder, TASK) == expected
    assert read_texts(str(folder)) == tuple(row.text for row in expected)


def test_a_fault_in_a_part_is_named_with_the_part(tmp_path: Path) -> None:
    for number, label in ((1, "good"), (2, "ugly")):
        _write(tmp_path / f"part{number}.jsonl", [{"text": "x", "label": "good"}, {"text": "y", "label": label}])
    with pytest.raises(DataError, match=r"line 2 of part2\.jsonl: label 'ugly'"):
        read_examples(tmp_path, TASK)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train.jsonl", "dev.jsonl"], r"several data files \(dev\.jsonl, train\.jsonl\)"),
        (["a-1.csv", "a-1.jsonl"], "several data files"),
        (["train-0-of-1.parquet", "test-0-of-1.parquet"], "several data files"),
        ([f"{name}.tsv" for name in "abcdef"], "and 2 more"),
        (["x-00000-of-00003.jsonl", "x-00002-of-00003.jsonl"], r"received 2 parts; allowed: all 3"),
        (["x.xlsx", "README.md"], "a folder with no data files; allowed: files ending in .csv, .jsonl, .parquet, .tsv"),
        ([], "a folder with no data files"),
    ],
)
def test_a_folder_that_is_not_one_set_is_named_for_what_it_is(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=found):
        read_examples(tmp_path, TASK)


def test_a_folder_of_folders_is_named(tmp_path: Path) -> None:
    (tmp_path / "label=good").mkdir()
    with pytest.raises(DataError, match="folders only \\(label=good\\)"):
        read_texts(tmp_path)


# Folders that datasets saves


def _saved(folder: Path, *tables: pa.Table, **state: Any) -> Path:
    """As ``Dataset.save_to_disk`` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{place:05d}-of-{len(tables):05d}.arrow" for place in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_folder_that_datasets_saved_is_read(tmp_path: Path) -> None:
    parts = [_classes(0, 1), _classes(1)]
    metadata = _features(["bad", "good"])
    parts = [part.append_column("at", pa.nulls(len(part), pa.timestamp("ns"))) for part in parts]
    folder = _saved(tmp_path / "set", *(part.replace_schema_metadata(metadata) for part in parts))
    assert [row.label for row in read_examples(folder, TASK)] == ["bad", "good", "good"]
    assert [row["text"] for _, row in rows_of(folder)] == ["row 0", "row 1", "row 0"]


def test_a_folder_of_saved_splits_is_named_with_one_of_them(tmp_path: Path) -> None:
    for split in ("train", "held_out"):
        _saved(tmp_path / split, _table())
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "held_out"]}')
    with pytest.raises(DataError, match=rf"saved splits \(held_out, train\).*for instance {tmp_path}/held_out"):
        read_examples(tmp_path, TASK)


def test_saved_folders_that_are_torn_or_pick_rows_are_refused(tmp_path: Path) -> None:
    picks = _saved(tmp_path / "picks", _table(), _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="picks rows of them; allowed: all rows"):
        read_examples(picks, TASK)
    torn = _saved(tmp_path / "torn", _table())
    (file,) = torn.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="not a whole Arrow file"):
        read_examples(torn, TASK)
    (torn / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_examples(torn, TASK)


# The hub


class _HubTable(list[dict[str, Any]]):
    """As much of a ``datasets.Dataset`` as is used."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        super().__init__(rows)
        self.features = features

    def select_columns(self, names: list[str]) -> _HubTable:
        assert "picture" not in names, "a picture was decoded"
        return _HubTable([{name: row[name] for name in names} for row in self], {n: self.features[n] for n in names})


def test_a_set_of_the_hub_gives_names_of_classes_and_decodes_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Label:
        names = ("bad", "good")

    rows = [{"text": "a", "label": 1, "picture": dt.date.min}, {"text": "b", "label": -1, "picture": None}]
    module = ModuleType("datasets")
    features = {"text": object(), "label": Label(), "picture": object()}
    module.load_dataset = lambda name, split: _HubTable(rows, features)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert read_texts("hub:some/set/train") == ("a", "b")
    with pytest.raises(DataError, match="1 faulty rows\n  line 2: column 'label' is empty"):
        read_examples("hub:some/set/train", TASK)
