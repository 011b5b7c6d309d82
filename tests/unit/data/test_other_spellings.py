"""Files and labels that are written in another way than expected: read as they are meant, or refused with what they are."""

from __future__ import annotations

import gzip
import io
import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from pydantic import ValidationError

from ifedicl.data import read_examples, read_labelled, read_texts
from ifedicl.errors import DataError
from ifedicl.kinds.classify import Example, Task

Form: TypeAlias = Literal["NFC", "NFD"]
CITIES = Task(name="city", labels=("Zürich", "Genève", "서울"))
STARS = Task(name="stars", labels=("1", "2", "-3"))


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Labels


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_label_is_the_same_in_both_spellings_of_unicode(tmp_path: Path, forms: tuple[Form, Form]) -> None:
    names = [unicodedata.normalize(forms[0], label) for label in CITIES.labels]
    task = Task(name="city", labels=tuple(names))
    written = [unicodedata.normalize(forms[1], label) for label in CITIES.labels]
    path = _file(tmp_path, "a.csv", "text,label\n" + "".join(f"rain,{label}\n" for label in written))
    assert [example.label for example in read_examples(path, task)] == names
    unchecked = read_labelled(path)  # an owner learns the task later
    assert [task.class_of(example) for example in unchecked] == [0, 1, 2]


def test_a_task_has_no_label_twice_in_two_spellings() -> None:
    with pytest.raises(ValidationError, match=r"labels holds 'Zu\\u0308rich', 'Z\\xfcrich', the same in two Unicode spellings"):
        Task(name="city", labels=("Zürich", unicodedata.normalize("NFD", "Zürich")))


@pytest.mark.parametrize(
    "written", ['{"text": "a", "label": 2.0}', '{"text": "a", "label": 2}', '{"text": "a", "label": "2.0"}']
)
def test_a_whole_number_is_the_label_however_it_is_written(tmp_path: Path, written: str) -> None:
    assert read_examples(_file(tmp_path, "a.jsonl", written), STARS) == (Example("a", "2"),)


def test_a_fraction_is_no_label_and_a_label_that_is_one_stays_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label '2\.5' is not in the task"):
        read_examples(_file(tmp_path, "a.jsonl", '{"text": "a", "label": 2.5}'), STARS)
    exact = Task(name="version", labels=("1", "1.0", "3.0"))
    path = _file(tmp_path, "b.csv", "text,label\na,1.0\nb,1\nc,3.0\n")
    assert [example.label for example in read_examples(path, exact)] == ["1.0", "1", "3.0"]
    with pytest.raises(DataError, match=r"'1\.00' is not in the task"):  # of which of the two?
        read_examples(_file(tmp_path, "c.csv", "text,label\na,1.00\n"), exact)


# Separators, blank lines, keys


def test_a_name_in_the_header_may_hold_any_separator(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.csv", "text,label,seen; by | whom\nwet,Zürich,me\n")
    assert read_examples(path, CITIES) == (Example("wet", "Zürich"),)
    one = _file(tmp_path, "b.csv", "remark; long\nwet\n")
    assert read_texts(one, text="remark; long") == ("wet",)


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", "\t"), ("a.csv", "|"), ("a.csv", ";"), ("a.tsv", ","), ("a.tsv", ";")]
)
def test_another_separator_is_named(tmp_path: Path, name: str, separator: str) -> None:
    path = _file(tmp_path, name, separator.join(["text", "label"]) + "\n" + separator.join(["wet", "Zürich"]) + "\n")
    with pytest.raises(DataError) as caught:
        read_examples(path, CITIES)
    assert f"received cells that are separated by {separator!r}; allowed in a {path.suffix} file" in str(caught.value)


@pytest.mark.parametrize("first", ["\n\n", "\r\n", "   \n", ",,\n", " , \n\n"])
def test_blank_lines_before_the_header_mean_nothing(tmp_path: Path, first: str) -> None:
    path = _file(tmp_path, "a.csv", f"{first}text,label\nwet,Zürich\ndry,Bern\n")
    with pytest.raises(DataError, match=f"line {first.count(chr(10)) + 3}: label 'Bern'"):
        read_examples(path, CITIES)


@pytest.mark.parametrize("line", ['{"text": "a", "text": "b", "label": "1"}', '{"label": "1", "text": "a", "label": "1"}'])
def test_a_key_that_stands_twice_in_a_line_is_named(tmp_path: Path, line: str) -> None:
    path = _file(tmp_path, "a.jsonl", '{"text": "fine", "label": "2", "more": {"k": 1}}\n' + line)
    with pytest.raises(DataError, match=r"line 2: received the key '(text|label)' more than once; allowed: a distinct name"):
        read_examples(path, STARS)


def test_an_inner_object_that_nobody_reads_may_be_what_it_likes(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", '{"text": "fine", "label": "2", "more": {"k": 1, "k": 2}}')
    assert len(read_examples(path, STARS)) == 1


# Other kinds of files


def _zipped() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo("sheet1.xml"), "<x/>" * 500)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"text,label\nwet,1\n", mtime=0), "a gzip archive"),
        (_zipped(), "a zip archive, as .xlsx files are"),
        ("text,label\nwet,1\n".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + "text,label\n".encode("utf-16-be"), "UTF-16"),
        (b"PAR1\x15\x04\xff\xfe", "a Parquet file"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, content: bytes, kind: str, name: str) -> None:
    path = _file(tmp_path, name, content)
    with pytest.raises(DataError, match=f"received {kind}; allowed: text in UTF-8"):
        read_texts(path)


def test_a_folder_with_the_name_of_a_text_file_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "remarks.txt").mkdir()
    with pytest.raises(DataError, match="received a folder; allowed: a file"):
        read_texts(tmp_path / "remarks.txt")


def test_json_over_several_lines_is_no_torn_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", json.dumps([{"text": "a", "label": "1"}], indent=1))
    with pytest.raises(DataError, match=r"or one value over several lines\. Every line must be one object"):
        read_examples(path, STARS)
