"""Tasks, files of labelled text, splits that can be repeated, and figures against known values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ValidationError

from ifedicl import seeds
from ifedicl.data import Example, Role, dirichlet_split, draw_pool, read_examples, read_labelled, read_texts, split_roles
from ifedicl.errors import DataError
from ifedicl.metrics import Evaluation, Tally, mean_hits, paired_p, wilson
from ifedicl.task import Task
from tests.support import tiny

TASK = tiny.TASK
PRIVATE = "patient Ada Lovelace, born 1815"

# --- the task ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_words": ("good",)}, "2 labels but 1 label_words; give one word a label"),
        ({"labels": ("good", "bad", "good")}, "labels holds 'good' more than once; each must be its own"),
        ({"label_words": ("x", "x")}, "label_words holds 'x' more than once"),
        ({"labels": ("good", " ")}, "labels holds an empty name"),
        ({"label_words": ("good", "")}, "label_words holds an empty name"),
        ({"template": "no place"}, "template holds {text} 0 times; it must stand there once"),
        ({"template": "{text} {text}"}, "template holds {text} 2 times"),
        ({"labels": ("good",)}, "at least 2 items"),
        ({"name": ""}, "at least 1 character"),
        ({"turn": "shout"}, "'raw' or 'chat'"),
        ({"seperator": " "}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_task_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Task(**{"name": "mood", "labels": ("good", "bad"), **fields})
    assert message in str(caught.value)


def test_all_faults_of_a_task_are_reported_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Task(name="mood", labels=("a", "a"), label_words=("x",), template="-")
    assert all(part in str(caught.value) for part in ("1 label_words", "'a' more than once", "0 times"))


def test_label_words_default_to_the_labels_and_the_separator_to_the_turn() -> None:
    raw = Task(name="t", labels=("a", "b"))
    assert raw.label_words == ("a", "b")
    assert raw.separator == " "
    assert Task(name="t", labels=("a", "b"), turn="chat").separator == ""
    assert Task(name="t", labels=("a", "b"), turn="chat", separator="\n").separator == "\n"


def test_braces_within_a_text_mean_nothing() -> None:
    assert TASK.prompt("{text} {0} {mood} %s") == "Text: {text} {0} {mood} %s\nMood:"
    braces = Task(name="t", labels=("a", "b"), template='{"q": "{text}"}')
    assert braces.prompt("x") == '{"q": "x"}'


def test_a_label_is_found_by_name_and_an_unknown_one_is_not() -> None:
    assert (TASK.index("good"), TASK.index("bad")) == (0, 1)
    with pytest.raises(DataError, match="'ugly' is not in the task; allowed"):
        TASK.index("ugly")
    assert TASK.missing(["bad", "bad"]) == ("good",)
    assert TASK.missing(["bad", "good"]) == ()


def test_the_digest_is_the_same_on_every_machine_and_in_every_version() -> None:
    # A change here means that old adapters and running federations no longer match: raise the format version then.
    assert TASK.digest == Task(**json.loads(TASK.model_dump_json())).digest
    assert TASK.digest == "f50b24525aafab064e455fb44cf30883ffb4789a2d975f8dc057cc1a39504734"


def test_the_digest_knows_everything_that_shapes_the_question_but_not_the_name() -> None:
    changes: list[dict[str, Any]] = [
        {"labels": ("good", "worse")},
        {"labels": ("bad", "good")},
        {"label_words": ("good", "awful")},
        {"template": "Text: {text}\nMood?"},
        {"separator": ""},
        {"turn": "chat", "separator": " "},
        {"normalise_length": True},
    ]
    base: dict[str, Any] = {
        "name": "mood",
        "labels": ("good", "bad"),
        "label_words": ("good", "bad"),
        "template": TASK.template,
    }
    digests = {TASK.digest, *(Task(**{**base, **change}).digest for change in changes)}
    assert len(digests) == 1 + len(changes)
    assert Task(**{**base, "name": "other"}).digest == TASK.digest


# --- splits ------------------------------------------------------------------------------------------------------------


def test_an_example_keeps_its_role_when_others_are_added() -> None:
    many = tiny.examples(200)
    small = split_roles(many[:80], selection=0.3, gate=0.2, seed=1)
    large = split_roles(many, selection=0.3, gate=0.2, seed=1)
    for role in Role:
        assert small[role] == tuple(example for example in large[role] if example in many[:80])


def test_roles_share_out_every_example_once_in_the_fractions_asked_for() -> None:
    many = tiny.examples(2_000)
    roles = split_roles(many, selection=0.3, gate=0.1, seed=0)
    assert Counter(example for rows in roles.values() for example in rows) == Counter(many)
    assert abs(len(roles[Role.SELECTION]) / 2_000 - 0.3) < 0.04
    assert abs(len(roles[Role.GATE]) / 2_000 - 0.1) < 0.03
    assert roles != split_roles(many, selection=0.3, gate=0.1, seed=1)
    order = {example: number for number, example in enumerate(many)}
    assert all([order[e] for e in rows] == sorted(order[e] for e in rows) for rows in roles.values())


def test_no_fraction_holds_nothing_out() -> None:
    roles = split_roles(tiny.examples(50), selection=0.0, gate=0.0, seed=0)
    assert len(roles[Role.TRAIN]) == 50
    assert roles[Role.SELECTION] == roles[Role.GATE] == ()


@settings(deadline=None, max_examples=30)
@given(st.integers(20, 80), st.integers(1, 5), st.sampled_from([0.3, 1.0, 10.0]), st.integers(0, 3))
def test_a_split_deals_every_example_exactly_once(count: int, clients: int, alpha: float, seed: int) -> None:
    pool = tiny.examples(count, task=tiny.MANY_TOKENS)
    hands = dirichlet_split(pool, clients=clients, alpha=alpha, seed=seed)
    assert len(hands) == clients
    assert min(map(len, hands)) >= 2
    assert Counter(example for hand in hands for example in hand) == Counter(pool)
    assert hands == dirichlet_split(pool, clients=clients, alpha=alpha, seed=seed)


def test_another_seed_deals_otherwise() -> None:
    pool = tiny.examples(60)
    assert dirichlet_split(pool, clients=3, alpha=1.0, seed=0) != dirichlet_split(pool, clients=3, alpha=1.0, seed=1)


def test_small_alpha_is_more_uneven_than_large() -> None:
    pool = tiny.examples(300, task=tiny.MANY_TOKENS)

    def unevenness(alpha: float) -> float:
        values = []
        for seed in range(5):
            for hand in dirichlet_split(pool, clients=4, alpha=alpha, seed=seed):
                counts = Counter(example.label for example in hand)
                values.append(max(counts.values()) / len(hand))
        return float(np.mean(values))

    assert unevenness(0.1) > unevenness(1.0) + 0.1
    assert unevenness(1.0) > unevenness(1_000.0) + 0.1
    assert unevenness(1_000.0) == pytest.approx(1 / 3, abs=0.02)


def test_too_few_examples_for_the_clients_is_an_error() -> None:
    with pytest.raises(DataError, match="5 examples cannot be dealt to 3 clients with at least 2 each"):
        dirichlet_split(tiny.examples(5), clients=3, alpha=1.0, seed=0)


def test_a_split_that_never_comes_out_is_an_error_and_no_endless_loop() -> None:
    pool = [Example(text, "good") for text in "abcd"]
    with pytest.raises(DataError, match=r"no Dirichlet\(1e-06\) split of 4 examples gave each of 2 clients 2 examples"):
        dirichlet_split(pool, clients=2, alpha=1e-6, seed=0)


def test_a_pool_is_drawn_without_replacement_in_file_order() -> None:
    many = tiny.examples(50)
    pool = draw_pool(many, 20, seed=0)
    places = [many.index(example) for example in pool]
    assert len(set(places)) == 20
    assert places == sorted(places)
    assert pool == draw_pool(many, 20, seed=0)
    assert pool != draw_pool(many, 20, seed=1)
    assert draw_pool(many, 50, seed=0) == draw_pool(many, 99, seed=0) == many


def test_keys_name_examples_by_text_and_label() -> None:
    keys = {Example("a", "b").key, Example("ab", "").key, Example("b", "a").key, Example("a", "c").key}
    assert len(keys) == 4
    assert Example("a", "b").key == Example("a", "b").key


def test_draws_derive_from_seed_and_path_alone() -> None:
    assert seeds.derive(0, "batch", "clinic", 3) == seeds.derive(0, "batch", "clinic", 3)
    others = {seeds.derive(1, "batch", "clinic", 3), seeds.derive(0, "batch", "clinic", 4), seeds.derive(0, "batch", "clinic3")}
    assert len({seeds.derive(0, "batch", "clinic", 3), *others}) == 4
    units = [seeds.unit(0, "u", number) for number in range(1_000)]
    assert 0 <= min(units) < 0.01
    assert 0.99 < max(units) < 1
    assert abs(np.mean(units) - 0.5) < 0.03
    assert 0 <= seeds.derive(5) < 2**63


# --- reading labelled text ---------------------------------------------------------------------------------------------

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
        ("NaN", "nan, which is no number"),
        ("-Infinity", "-inf, which is no number"),
        ('"\\ud83d Lovelace"', "a lone surrogate"),
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
    assert "line 1: received the column 'text' more than once; allowed: a name of its own for each column" in message
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
        assert "no rows; give a file with at least one labelled text" in _faulty(tmp_path / name, content)


def test_a_parquet_file_without_rows_is_an_error(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", ())
    with pytest.raises(DataError, match="no rows"):
        read_examples(tmp_path / "a.parquet", TASK)


@pytest.mark.parametrize("columns", [{"text": "note"}, {"label": "mood"}])
def test_a_missing_column_names_the_ones_there_are(tmp_path: Path, columns: dict[str, str]) -> None:
    message = _faulty(tmp_path / "a.jsonl", json.dumps({"text": PRIVATE, "label": "good"}), **columns)
    (name,) = columns.values()
    assert f"line 1: no column '{name}'; it has 'text', 'label'. Name the columns: text_column" in message


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
    assert f"files ending in '{Path(name).suffix}' are not read; allowed: .csv, .jsonl, .parquet, .tsv" in message


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
    with pytest.raises(DataError, match="no texts in it"):
        read_texts(tmp_path / "a.txt")


# --- figures -----------------------------------------------------------------------------------------------------------


def _evaluation(truth: list[int], predicted: list[int], labels: tuple[str, ...] = ("a", "b", "c")) -> Evaluation:
    return Evaluation(labels, np.array(truth), np.array(predicted), loss=0.5)


def test_confusion_counts_true_labels_by_row() -> None:
    evaluation = _evaluation([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2])
    assert evaluation.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert evaluation.accuracy == pytest.approx(4 / 6)
    assert evaluation.hits.tolist() == [1, 1, 0, 1, 0, 1]


def test_macro_f1_by_hand() -> None:
    # a: precision 1, recall 2/3, F1 0.8; b: 1/2, 1/2, F1 0.5; c: 1/2, 1, F1 2/3.
    assert _evaluation([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]).macro_f1 == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_macro_f1_leaves_out_a_label_that_occurs_nowhere_and_counts_one_never_hit() -> None:
    assert _evaluation([0, 1, 0, 1], [0, 1, 0, 1]).macro_f1 == 1.0  # c occurs nowhere
    assert _evaluation([0, 0], [2, 2]).macro_f1 == 0.0
    assert _evaluation([0, 0, 1], [0, 0, 2]).macro_f1 == pytest.approx(1 / 3)


def test_wilson_intervals_are_those_of_the_formula() -> None:
    def formula(successes: int, trials: int) -> tuple[float, float]:
        z, share = 1.959963984540054, successes / trials
        middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
        half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
        return middle - half, middle + half

    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    for successes, trials in ((1, 3), (50, 100), (999, 1_000)):
        assert wilson(successes, trials) == pytest.approx(formula(successes, trials), abs=1e-9)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert _evaluation([0] * 10, [0] * 8 + [1] * 2).interval == wilson(8, 10)


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided: the chance of a difference at least this large under random signs."""
    total = wins + losses
    return sum(comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= abs(wins - losses)) / 2.0**total


@pytest.mark.parametrize(("wins", "losses", "ties"), [(5, 0, 0), (6, 1, 3), (0, 4, 1), (3, 3, 2), (8, 1, 1)])
def test_the_p_value_of_hits_is_that_of_the_exact_sign_test(wins: int, losses: int, ties: int) -> None:
    first = [1] * wins + [0] * losses + [1] * ties
    second = [0] * wins + [1] * losses + [1] * ties
    assert paired_p(first, second) == pytest.approx(_sign_test(wins, losses), abs=1e-9)
    assert paired_p(second, first) == pytest.approx(_sign_test(wins, losses), abs=1e-9)


def test_the_p_value_of_many_examples_is_close_and_repeatable() -> None:
    first, second = np.array([1] * 30 + [0] * 14 + [1] * 60), np.array([0] * 30 + [1] * 14 + [1] * 60)
    value = paired_p(first, second)
    assert value == pytest.approx(_sign_test(30, 14), abs=0.006)
    assert value == paired_p(first, second)


def test_two_methods_that_agree_everywhere_do_not_differ() -> None:
    assert paired_p([1, 0, 1], [1, 0, 1]) == 1.0


def test_tallies_add_up_and_an_empty_one_has_no_figure() -> None:
    total = Tally(3, 2, 1.5) + Tally(1, 0, 0.5) + Tally()
    assert total == Tally(4, 2, 2.0)
    assert (total.accuracy, total.loss) == (0.5, 0.5)
    assert np.isnan(Tally().accuracy)
    assert np.isnan(Tally().loss)


def test_mean_hits_are_per_example() -> None:
    first, second = _evaluation([0, 1, 2, 0], [0, 1, 0, 1]), _evaluation([0, 1, 2, 0], [0, 0, 0, 0])
    assert mean_hits([first, second]).tolist() == [1.0, 0.5, 0.0, 0.5]


def test_semicolons_between_cells_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text;label\nfine, really;good\n")
    with pytest.raises(DataError, match="separated by ';'"):
        read_examples(file, tiny.TASK)


def test_a_label_nearly_right_is_offered(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\nfine,Good \n")
    with pytest.raises(DataError, match="Did you mean 'good'"):
        read_examples(file, tiny.TASK)
