"""Writes an adapter as a LoRA in a GGUF file, which llama.cpp and what is built on it serve beside the base model's GGUF file.

The names of tensors and metadata are those of llama.cpp's own converter from the layout of ``peft``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lora_export import factors_of
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.errors import BackboneError

FILE = "adapter.gguf"
_ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "phi3": "phi3",
}
"""Names of llama.cpp, by ``config.model_type``. In other families the projections have biases, or a norm behind them: llama.cpp
applies no bias of a LoRA."""


def export_gguf_lora(backbone: Backbone, context: Context, coefficients: Coefficients, folder: Path, *, dtype: str) -> None:
    """Write ``adapter.gguf``.

    Args:
        backbone: the model.
        context: global vectors and basis.
        coefficients: Γ alone.
        folder: an existing folder.
        dtype: of the stored weights: ``float32``, ``bfloat16`` or ``float16``. They are computed in float64.

    Raises:
        AdapterError: λ or β was moved, or the adapter injects nothing.
        BackboneError: llama.cpp cannot apply a LoRA of this family, or the package ``gguf`` is missing.
    """
    if find_spec("gguf") is None:
        raise BackboneError("export: GGUF files need a package that is not installed (gguf): pip install 'ifedicl[gguf]'")
    import gguf

    factors = factors_of(backbone, context, coefficients)
    family = backbone.model.config.model_type
    if family not in _ARCHITECTURES or any(factor.bias.any() for factor in factors):
        raise BackboneError(
            f"export: received a {family} model, of whose LoRA llama.cpp would leave out a part; allowed: "
            f"{', '.join(_ARCHITECTURES)} without biases. Export it for peft: --as lora, or folded: --as checkpoint"
        )
    kind = {
        "float32": gguf.GGMLQuantizationType.F32,
        "float16": gguf.GGMLQuantizationType.F16,
        "bfloat16": gguf.GGMLQuantizationType.BF16,
    }[dtype]
    architecture = _ARCHITECTURES[family]
    names = gguf.get_tensor_name_map(
        next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), backbone.layers
    )
    writer = gguf.GGUFWriter(folder / FILE, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, context.rank)  # over the rank: 1
    for factor in factors:
        for part, tensor in (("lora_a", factor.first), ("lora_b", factor.second)):
            stored = gguf.quants.quantize(tensor.float().numpy(), kind)
            writer.add_tensor(f"{names.get_name(factor.path)}.weight.{part}", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
