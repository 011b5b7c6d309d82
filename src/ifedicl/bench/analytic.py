"""The paper's Table 1 without a GPU: bytes of serialised messages for ``L`` layers of width ``d``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES, ContextVectors
from ifedicl.federation.manifest import CONTEXT_ID_SIZE
from ifedicl.federation.messages import ContextRequest, UpdateReply, UpdateRequest, VectorsReply, encode, pack

_LORA_RANK = 8


@dataclass(frozen=True)
class Row:
    """Bytes of one message as serialised, and by the paper's Table 1 (None where it gives no figure)."""

    what: str
    ours: int
    paper: float | None


def table_1(layers: int = 32, width: int = 4096, key_value_width: int = 1024) -> list[Row]:
    """Bytes of every message of one client for a model of this shape; the defaults are those of Llama-3-8B, the paper's model.

    ``key_value_width`` is the output width of the value projection, for LoRA.
    """
    shape = (layers, len(WRITES), width)
    coefficients = Coefficients.identity(Form(layers))
    vectors = ContextVectors.zeros(1, layers, width)

    def sent(wire_dtype: str) -> int:
        return len(encode(VectorsReply(vectors, "340:" + "0" * 32, True, "bfloat16", wire_dtype)))

    def received(wire_dtype: str) -> int:
        return len(encode(ContextRequest("0" * 64, Context(np.zeros(shape, dtype=np.float32)), wire_dtype)))

    kib = 1024
    return [
        Row("vectors up, once (float16)", sent("float16"), 514 * kib),
        Row("vectors up, once (float32)", sent("float32"), None),
        Row("vectors down, once (float16)", received("float16"), 515.8 * kib),
        Row("vectors down, once (float32)", received("float32"), None),
        Row("coefficients up, a round", len(encode(UpdateReply(coefficients, 400, 0.5))), 1.8 * kib),
        Row("coefficients down, a round", len(encode(UpdateRequest("0" * CONTEXT_ID_SIZE, 3, 0, 30, coefficients))), None),
        Row(f"LoRA (rank {_LORA_RANK}, query and value) up, a round", _lora(layers, width, key_value_width), 13_357.78 * kib),
    ]


def _lora(layers: int, width: int, key_value_width: int) -> int:
    """Bytes of one client's LoRA weights, serialised as in FedAvg-LoRA."""
    arrays = {}
    for layer in range(layers):
        for projection, output in (("q_proj", width), ("v_proj", key_value_width)):
            for factor, shape in (("A", (_LORA_RANK, width)), ("B", (output, _LORA_RANK))):
                name = f"model.layers.{layer}.self_attn.{projection}.lora_{factor}.default.weight"
                arrays[name] = np.zeros(shape, dtype=np.float32)
    return len(pack("update", {"examples": 400}, arrays))
