"""Adapter files that are missing, cut short or changed are refused with a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ifedicl.adapter import Adapter
from ifedicl.errors import AdapterError
from tests.support.adapters import resigned


def test_an_absent_folder_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"nowhere is not an adapter.*RUN/adapter"):
        Adapter.load(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(AdapterError, match="file"):
        Adapter.load(tmp_path / "file")


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named_with_a_remedy(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(AdapterError, match=rf"{name} is missing\. Give the folder"):
        Adapter.load(saved)


def test_tensors_cut_short_anywhere_are_refused_with_a_remedy(saved: Path) -> None:
    whole = (saved / "adapter.safetensors").read_bytes()
    for length in (0, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        (saved / "adapter.safetensors").write_bytes(whole[:length])
        with pytest.raises(AdapterError, match=r"torn.*copy the adapter again"):
            Adapter.load(saved)


def test_one_changed_byte_of_the_tensors_is_noticed(saved: Path) -> None:
    data = bytearray((saved / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "adapter.safetensors").write_bytes(data)
    with pytest.raises(AdapterError, match="torn or not the one written"):
        Adapter.load(saved)


def test_a_header_cut_short_anywhere_is_refused(saved: Path) -> None:
    whole = (saved / "adapter.json").read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        (saved / "adapter.json").write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="copy the adapter again"):
            Adapter.load(saved)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"adapter"'])
def test_a_header_that_is_no_object_is_refused(saved: Path, text: str) -> None:
    (saved / "adapter.json").write_text(text)
    with pytest.raises(AdapterError, match="version None"):
        Adapter.load(saved)


@pytest.mark.parametrize("version", [0, 4, "1", None])
def test_another_format_version_is_refused_with_the_one_that_is_read(saved: Path, version: object) -> None:
    resigned(saved, format_version=version)
    with pytest.raises(AdapterError, match=rf"version {version!r}; this ifedicl reads 1, 2 and 3\. Update ifedicl"):
        Adapter.load(saved)


@pytest.mark.parametrize("field", ["task", "model", "fingerprint", "provenance"])
def test_a_header_without_a_field_is_refused(saved: Path, field: str) -> None:
    values = json.loads((saved / "adapter.json").read_text())
    del values[field]
    (saved / "adapter.json").write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="do not fit each other"):
        Adapter.load(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", 7),
        ("model", "a name"),
        ("fingerprint", 7),
        ("fingerprint", ["a"]),
        ("provenance", ["rounds"]),
        ("provenance", "text"),
        ("readout", 7),
        ("readout", {"pooled_layer": "2"}),
        ("readout", {"pooled_layers": [1, "2"]}),
        ("readout", [1]),
    ],
)
def test_a_header_with_a_field_of_another_type_is_refused(saved: Path, field: str, value: object) -> None:
    header: dict[str, Any] = {field: value}
    resigned(saved, **header)
    with pytest.raises(AdapterError, match=rf"do not fit each other \((?s:.*){field}"):
        Adapter.load(saved)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("first_layer", ["1", 1.5, [1], -1, None, True])
def test_a_first_layer_that_is_no_number_of_a_layer_is_refused(saved: Path, first_layer: object, version: int) -> None:
    resigned(saved, format_version=version, first_layer=first_layer)
    with pytest.raises(AdapterError, match=r"do not fit each other \((?s:.*)first_layer"):
        Adapter.load(saved)


def test_a_header_nested_too_deep_to_be_read_is_refused(saved: Path) -> None:
    (saved / "adapter.json").write_text("[" * 100_000)
    with pytest.raises(AdapterError, match="copy the adapter again"):
        Adapter.load(saved)


def test_tensors_under_other_names_are_refused(saved: Path) -> None:
    resigned(saved, {"weights": np.zeros(3, dtype=np.float32)})
    with pytest.raises(AdapterError, match="do not fit each other"):
        Adapter.load(saved)


@pytest.mark.parametrize(
    "change",
    [lambda v: v[:2], lambda v: v[0], lambda v: v[..., None], lambda v: v.astype(np.int64)],
    ids=["a layer short", "no layers", "an axis too many", "whole numbers"],
)
def test_vectors_that_do_not_fit_the_coefficients_are_refused(saved: Path, change: Callable[[Any], Any]) -> None:
    tensors = load_file(saved / "adapter.safetensors")
    resigned(saved, {**tensors, "vectors.mean": np.ascontiguousarray(change(tensors["vectors.mean"]))})
    with pytest.raises(AdapterError):
        Adapter.load(saved)
