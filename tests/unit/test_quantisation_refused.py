"""What weights of 8 and 4 bits are refused for, and what they are called; torchao is not needed here."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.quantisation import quantise
from ifedicl.backbone.quantised_kinds import KINDS, fingerprint_with
from ifedicl.backbone.source import fingerprint, shape_of
from ifedicl.errors import BackboneError
from ifedicl.settings import ModelSettings
from tests.support import tiny


def test_a_fingerprint_names_the_quantisation(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path)
    whole = ModelSettings(source=str(folder), device="cpu")
    eight, four = (whole.model_copy(update={"quantisation": kind}) for kind in KINDS)
    names = [fingerprint(each) for each in (whole, eight, four)]
    assert len(set(names)) == 3
    assert [shape_of(each).fingerprint for each in (whole, eight, four)] == names
    assert fingerprint_with(names[0], None) == names[0]
    assert fingerprint_with(names[0], "int8") == names[1]


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"model.quantisation: .*gpt2.* no linear layers"):
        tiny.load(tiny.save_model(tmp_path, "gpt2"), quantisation="int8")


def test_a_width_that_no_group_divides_is_refused(tmp_path: Path) -> None:
    odd = tiny.save_model(tmp_path, intermediate_size=40)
    with pytest.raises(BackboneError, match=r"no multiple of 32, for instance layers.0.mlp.down_proj; .* Use \"int8\""):
        tiny.load(odd, quantisation="int4")


def test_without_the_library_the_error_says_what_to_install(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError("no torchao")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BackboneError, match=r"pip install 'ifedicl\[quantised\]'"):
        quantise(backbone.model, "int8", "m")


def test_a_divided_model_keeps_its_weights() -> None:
    with pytest.raises(ValueError, match="one of device_map and quantisation"):
        ModelSettings(source="m", device_map="auto", quantisation="int8")
