"""Files of labelled text are read in every format, and faults are named without their text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ifedicl.data import read_examples, read_labelled, read_texts
from ifedicl.errors import DataError
from ifedicl.kinds.classify import Example, Task
from tests.support import tiny

TASK = tiny.TASK
PRIVATE = "patient Ada Lovelace, born 1815"


ROWS = (
    ('she said "yes", and left', "good"),
    ("two\nlines; one\ttab", "bad"),
    ("naïve café 🙂", "good"),
    ("line\u2028separator and next\x85line", "bad"),
    (" spaces around ", "good"),
)


def _jsonl(path: Path, rows: tuple[tuple[str, str], ...]) -> None:
    path.write_text("\n".join(json.dumps({"text": t, "label": y}, ensure_ascii=False) for t, y in rows), encoding="utf-8")


def _delimited(delimiter: str, *, quote_all: bool = True) -> Callable[[Path, tuple[tuple[str, str], ...]], None]:
    def write(path: Path, rows: tuple[tuple[str, str], ...]) -> None:
        import csv

        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
            writer.writerow(("text", "label"))
            writer.writerows(rows)

    return write


def _parquet(path: Path, rows: tuple[tuple[str, str], ...]) -> None:
    parquet.write_table(pa.table({"text": [t for t, _ in rows], "label": [y for _, y in rows]}), path)


WRITERS = {
    "a.jsonl": _jsonl,
    "a.csv": _delimited(","),
    "a.tsv": _delimited("\t"),
    "a.parquet": _parquet,
    "A.JSONL": _jsonl,
    "minimal.csv": _delimited(",", quote_all=False),
    "minimal.tsv": _delimited("\t", quote_all=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    assert read_examples(tmp_path / name, TASK) == tuple(Example(*row) for row in ROWS)
    assert read_texts(tmp_path / name) == tuple(text for text, _ in ROWS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_mean_nothing(tmp_path: Path, name: str, ending: str) -> None:
    rows = (("warm soup", "good"), ("cold room", "bad"))
    WRITERS[name](tmp_path / name, rows)
    text = "".join(line + ending for line in (tmp_path / name).read_text(encoding="utf-8").splitlines())
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_examples(tmp_path / name, TASK) == tuple(Example(*row) for row in rows)


def test_other_columns_can_be_named_and_more_of_them_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,note,mood\n1,warm soup,good\n2,cold room,bad\n")
    expected = (Example("warm soup", "good"), Example("cold room", "bad"))
    assert read_examples(str(tmp_path / "a.csv"), TASK, text="note", label="mood") == expected


def test_labels_that_are_numbers_in_json_are_read_by_their_digits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n\n{"text": "y", "label": "0"}\n')
    numbers = Task(name="n", labels=("0", "1"))
    assert read_examples(tmp_path / "a.jsonl", numbers) == (Example("x", "1"), Example("y", "0"))


def _faulty(path: Path, content: str | bytes, **columns: str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_examples(path, TASK, **columns)
    message = str(caught.value)
    assert str(path) in message
    assert "Lovelace" not in message, "the text of a row is shown"
    return message


def test_a_torn_jsonl_file_is_named_with_its_line(tmp_path: Path) -> None:
    whole = json.dumps({"text": PRIVATE, "label": "good"})
    message = _faulty(tmp_path / "a.jsonl", f"{whole}\n{whole[:-12]}")
    assert "line 2: not JSON (" in message
    assert "may be torn" in message


@pytest.mark.parametrize(("line", "kind"), [('["x", "good"]', "list"), ('"x"', "str"), ("3", "int"), ("null", "NoneType")])
def test_a_json_line_that_is_no_object_is_named_by_its_type(tmp_path: Path, line: str, kind: str) -> None:
    assert f"line 1: a {kind}; every line must be one object" in _faulty(tmp_path / "a.jsonl", line)


def test_a_csv_file_torn_within_quotes_is_named(tmp_path: Path) -> None:
    message = _faulty(tmp_path / "a.csv", f'text,label\n"{PRIVATE}",good\n"{PRIVATE}')
    assert "line 3: unexpected end of data; the file may be torn" in message


def test_a_csv_file_torn_before_the_label_is_an_error(tmp_path: Path) -> None:
    assert "line 3: " in _faulty(tmp_path / "a.csv", f"text,label\nwarm,good\n{PRIVATE.split(',')[0]}")


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_row_with_more_cells_than_columns_is_an_error_that_shows_no_text(tmp_path: Path, name: str, delimiter: str) -> None:
    # A comma without quotes moves the rest of the text to where the label should be.
    row = delimiter.join(("patient Ada", " Lovelace", "good"))
    assert "line 2" in _faulty(tmp_path / name, f"text{delimiter}label\n{row}\n")


def test_half_a_surrogate_pair_is_an_error(tmp_path: Path) -> None:
    # A cut emoji: valid as a JSON escape, but no text that could be hashed or tokenised.
    assert "line 1: " in _faulty(tmp_path / "a.jsonl", '{"text": "Lovelace \\ud83d", "label": "good"}')


@pytest.mark.parametrize(
    ("cell", "received"),
    [
        ('["Lovelace"]', "a list"),
        ('{"a": "Lovelace"}', "an object"),
        ("true", "true or false"),
        ("NaN", "nan, which is not a number"),
        ("-Infinity", "-inf, which is not a number"),
        ('"\\ud83d Lovelace"', "an unpaired surrogate"),
    ],
)
def test_a_cell_that_is_no_text_is_an_error_in_either_column_and_never_its_words(
    tmp_path: Path, cell: str, received: str
) -> None:
    for column, line in (("text", f'{{"text": {cell}, "label": "good"}}'), ("label", f'{{"text": "x", "label": {cell}}}')):
        message = _faulty(tmp_path / "a.jsonl", f'{{"text": "x", "label": "good"}}\n{line}')
        assert f"line 2: column {column!r}: received {received}" in message
        assert "; allowed: " in message
        with pytest.raises(DataError, match=f"line 2: column {column!r}: received {received}"):
            read_labelled(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(f'{{"text": {cell}}}')
    with pytest.raises(DataError, match=f"line 1: column 'text': received {received}"):
        read_texts(tmp_path / "a.jsonl")


def test_cells_of_other_types_in_a_parquet_file_are_errors(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": [["Lovelace"]], "label": ["good"]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"text": [b"Lovelace"], "label": ["good"]}), tmp_path / "b.parquet")
    for name, received in (("a", "a list"), ("b", "bytes")):
        with pytest.raises(DataError, match=f"line 1: column 'text': received {received}; allowed: text, or a number"):
            read_examples(tmp_path / f"{name}.parquet", TASK)


def test_a_number_is_read_by_its_digits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": 1.5}}\n{{"text": -3}}\n{{"text": {"9" * 400}}}')
    assert read_texts(tmp_path / "a.jsonl") == ("1.5", "-3", "9" * 400)


def test_json_that_python_will_not_read_is_named_with_its_line(tmp_path: Path) -> None:
    whole = '{"text": "Lovelace", "label": "good"}\n'
    message = _faulty(tmp_path / "a.jsonl", whole + "[" * 100_000)
    assert "line 2: received lists or objects nested too deep to be read; allowed: one object" in message
    message = _faulty(tmp_path / "a.jsonl", whole + '{"text": ' + "7" * 5_000 + "}")
    assert "line 2: received a number of thousands of digits; allowed: text, or a shorter number" in message


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
def test_two_columns_of_one_name_are_an_error(tmp_path: Path, name: str, delimiter: str) -> None:
    message = _faulty(tmp_path / name, "text,label,text\nLovelace,good,other\n".replace(",", delimiter))
    assert "line 1: received the column 'text' more than once; allowed: a distinct name for each column" in message
    (tmp_path / name).write_text("text,label,,\nx,good,,\n".replace(",", delimiter))
    assert read_examples(tmp_path / name, TASK) == (Example("x", "good"),)


def test_two_columns_of_one_name_in_a_parquet_file_are_an_error(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["good"]), pa.array(["y"])], names=["text", "label", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the column 'text' more than once"):
        read_examples(tmp_path / "a.parquet", TASK)


def test_a_cell_longer_than_the_reader_takes_says_so_and_what_to_do(tmp_path: Path) -> None:
    message = _faulty(tmp_path / "a.csv", f'text,label\nx,good\n"{"Lovelace " * 20_000}",good\n')
    assert "line 3: received a cell of more than 131072 characters" in message
    assert "save the file as .jsonl" in message


def test_a_torn_parquet_file_is_named(tmp_path: Path) -> None:
    _parquet(tmp_path / "whole.parquet", ((PRIVATE, "good"),) * 50)
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert "not a whole Parquet file (" in _faulty(tmp_path / "a.parquet", whole[: len(whole) // 2])
    assert "not a whole Parquet file (" in _faulty(tmp_path / "a.parquet", b"")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str) -> None:
    for content in ("", "\n\n", "" if name.endswith("jsonl") else "text\tlabel\n" if name.endswith("tsv") else "text,label\n"):
        assert "received no rows; allowed: at least one labelled text" in _faulty(tmp_path / name, content)


def test_a_parquet_file_without_rows_is_an_error(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", ())
    with pytest.raises(DataError, match="no rows"):
        read_examples(tmp_path / "a.parquet", TASK)


@pytest.mark.parametrize("columns", [{"text": "note"}, {"label": "mood"}])
def test_a_missing_column_names_the_ones_there_are(tmp_path: Path, columns: dict[str, str]) -> None:
    message = _faulty(tmp_path / "a.jsonl", json.dumps({"text": PRIVATE, "label": "good"}), **columns)
    (name,) = columns.values()
    assert f"no column '{name}'; it has 'text', 'label'. Name the columns: text_column" in message
    assert message.count("no column") == 1


def test_a_column_that_is_null_counts_as_missing(tmp_path: Path) -> None:
    message = _faulty(tmp_path / "a.jsonl", '{"text": null, "label": "good"}\n{"text": "Lovelace", "label": null}')
    assert "2 faulty rows" in message
    assert "line 1: column 'text' is empty" in message
    assert "line 2: column 'label' is empty" in message


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_is_an_error(tmp_path: Path, text: str) -> None:
    message = _faulty(tmp_path / "a.jsonl", json.dumps({"text": text, "label": "good"}))
    assert "line 1: the text is empty; remove the row or fill it" in message


def test_only_the_first_faulty_rows_are_shown_with_a_count_and_never_their_text(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{PRIVATE} {number}", "label": "good"}) for number in range(3)]
    lines += [json.dumps({"text": f"{PRIVATE} {number}", "label": f"ugly{number}"}) for number in range(8)]
    message = _faulty(tmp_path / "a.jsonl", "\n".join(lines))
    assert "8 faulty rows" in message
    assert "and 3 more" in message
    assert "line 4: label 'ugly0' is not in the task; allowed: 'good', 'bad'" in message
    assert "line 8: label 'ugly4'" in message
    assert "ugly5" not in message


def test_five_faulty_rows_are_all_shown(tmp_path: Path) -> None:
    message = _faulty(tmp_path / "a.jsonl", "\n".join([json.dumps({"text": PRIVATE, "label": "ugly"})] * 5))
    assert message.count("line ") == 5
    assert " more" not in message


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text('text,label\n"two\nlines",good\nx,ugly\n')
    with pytest.raises(DataError, match="line 4: label 'ugly'"):
        read_examples(tmp_path / "b.csv", TASK)
    (tmp_path / "b.jsonl").write_text('{"text": "x", "label": "good"}\n\n{"text": "x", "label": "ugly"}\n')
    with pytest.raises(DataError, match="line 3: label 'ugly'"):
        read_examples(tmp_path / "b.jsonl", TASK)


@pytest.mark.parametrize("name", ["a.xlsx", "a.json", "a", "a.txt"])
def test_a_file_of_another_kind_is_an_error_that_names_the_kinds(tmp_path: Path, name: str) -> None:
    message = _faulty(tmp_path / name, "x")
    assert f"received a file ending in '{Path(name).suffix}'; allowed: .csv, .jsonl, .parquet, .tsv" in message


def test_a_file_that_is_absent_is_an_error(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        with pytest.raises(DataError, match="there is no such file"):
            read_examples(tmp_path / name, TASK)
    with pytest.raises(DataError, match="there is no such file"):
        read_texts(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_a_file_that_is_not_utf8_is_an_error_with_the_place(tmp_path: Path, name: str) -> None:
    message = _faulty(tmp_path / name, b"text,label\ncaf\xe9 of Lovelace,good\n")
    assert "not UTF-8 text (byte 14)" in message


def test_texts_alone_are_read_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufefffirst, with a comma\r\n\n  \nsecond naïve\n".encode())
    assert read_texts(tmp_path / "a.txt") == ("first, with a comma", "second naïve")


def test_a_line_of_texts_ends_at_a_newline_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028still one\x85and still\ntwo\n", encoding="utf-8")
    assert read_texts(tmp_path / "a.txt") == ("one\u2028still one\x85and still", "two")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"text": null}'), ("a.csv", "id,text\n1\n")])
def test_a_text_that_is_null_is_an_error_and_not_the_word_none(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError):
        read_texts(tmp_path / name)


def test_texts_need_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("note\nwarm soup\ncold room\n")
    assert read_texts(tmp_path / "a.csv", text="note") == ("warm soup", "cold room")


def test_texts_of_a_missing_column_or_an_empty_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("note\nwarm soup\n")
    with pytest.raises(DataError, match="line 2: no column 'text'; it has 'note'"):
        read_texts(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(DataError, match="received no texts"):
        read_texts(tmp_path / "a.txt")


def test_semicolons_between_cells_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text;label\nfine, really;good\n")
    with pytest.raises(DataError, match="separated by ';'"):
        read_examples(file, tiny.TASK)


def test_a_label_nearly_right_is_offered(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\nfine,Good \n")
    with pytest.raises(DataError, match=r"'bad' \(did you mean 'good'\?\)\. Correct the row"):
        read_examples(file, tiny.TASK)
