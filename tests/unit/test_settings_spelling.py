"""Config files with what people write by mistake: each fault says what was read, and how to write what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifedicl.errors import ConfigError
from ifedicl.owner.policy import load_client_settings
from ifedicl.settings import load_settings

GOOD = """
[task]
name = "mood"
labels = ["good", "bad"]
[model]
source = "some/model"
[data]
train = "train.jsonl"
"""
TWO = 'clients = {a = "a.jsonl", b = "b.jsonl"}'


def faults_of(folder: Path, old: str, new: str) -> dict[str, str]:
    assert old in GOOD
    path = folder / "config.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    return {fault.field: str(fault) for fault in caught.value.faults}


@pytest.mark.parametrize(
    ("labels", "quoted"),
    [("[3, -1]", ("3", "-1")), ("[0.5, 1.5]", ("0.5", "1.5")), ("[false, true]", ("false", "true"))],
)
def test_labels_that_are_no_text_are_one_fault_each_with_its_quotes(
    tmp_path: Path, labels: str, quoted: tuple[str, str]
) -> None:
    faults = faults_of(tmp_path, '["good", "bad"]', labels)
    assert set(faults) == {"task.labels.0", "task.labels.1"}, "and label_words, which are taken from them, are none"
    for fault, text in zip(faults.values(), quoted, strict=True):
        assert "allowed: two or more label names" in fault
        assert fault.endswith(f'Write it in quotes: "{text}".')


def test_one_text_in_place_of_a_list_is_told_what_a_list_is(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, '["good", "bad"]', '"good, bad"').items()
    assert fault[0] == "task.labels"
    assert fault[1].endswith('Write a list, as in ["a", "b"].')


@pytest.mark.parametrize("path", [r"C:\Users\eva\a.jsonl", r"D:\moods\x.csv", r"..\data\a.jsonl", r"E:\Umlaute\a.jsonl"])
def test_a_windows_path_that_is_no_toml_is_told_how_to_be(tmp_path: Path, path: str) -> None:
    (fault,) = faults_of(tmp_path, '"train.jsonl"', f'"{path}"').items()
    assert fault[0] == "file"
    assert "at line 8" in fault[1]
    assert "Write paths with /, or in single quotes" in fault[1]


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('train = "train.jsonl"', r'train = "C:\tmp\a.jsonl"'.replace(r"\a", "/a"), "data.train"),
        ('train = "train.jsonl"', r'train = "moods\news.csv"', "data.train"),
        ('train = "train.jsonl"', 'train = "train.jsonl"\n' + r'test = "held\test.csv"', "data.test"),
        ('train = "train.jsonl"', TWO.replace("b.jsonl", r"\bern.jsonl"), "data.clients.b"),
        ('"some/model"', r'"models\foo"', "model.source"),
    ],
)
def test_a_windows_path_that_toml_reads_otherwise_is_no_silent_other_path(
    tmp_path: Path, old: str, new: str, field: str
) -> None:
    (fault,) = faults_of(tmp_path, old, new).items()
    assert fault[0] == field
    assert "makes a control character. Write paths with /, or in single quotes" in fault[1]


def test_paths_of_an_owner_are_paths_too(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('[model]\nsource = "some/model"\n[data]\nfile = "rows\\train.csv"\n')
    with pytest.raises(ConfigError, match=r"data\.file: .*makes a control character"):
        load_client_settings(path)


def test_single_quotes_hold_a_windows_path_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(GOOD.replace('"train.jsonl"', r"'rows\train.jsonl'"))
    assert str(load_settings(tmp_path / "config.toml").data.train).endswith(r"rows\train.jsonl")


@pytest.mark.parametrize("name", ['""', '" "', r'"\t"', r'"a\nb"', r'"​"', f'"{"n" * 250}"', f'"{"病" * 30}"'])
def test_a_client_has_a_name_that_can_be_seen(tmp_path: Path, name: str) -> None:
    (fault,) = faults_of(tmp_path, 'train = "train.jsonl"', f'clients = {{{name} = "a.jsonl", b = "b.jsonl"}}').items()
    assert fault[0] == "data.clients"
    assert "Give a client another name than " in fault[1]


@pytest.mark.parametrize(("old", "new"), [('"train.jsonl"', '""'), ('train = "train.jsonl"', TWO.replace("a.jsonl", " "))])
def test_a_file_without_a_name_is_none(tmp_path: Path, old: str, new: str) -> None:
    (fault,) = faults_of(tmp_path, old, new).values()
    assert fault.endswith("Name a file.")


@pytest.mark.parametrize(
    ("new", "hint"),
    [("some/model", "Write text in quotes"), ("None", "Write true or false in lower case; leave the line out for no value")],
)
def test_a_value_that_is_no_toml_is_told_how_to_be(tmp_path: Path, new: str, hint: str) -> None:
    assert hint in faults_of(tmp_path, '"some/model"', new)["file"]


def test_a_config_in_another_encoding_is_told_to_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(ConfigError, match="Save it as UTF-8"):
        load_settings(tmp_path / "config.toml")
