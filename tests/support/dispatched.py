"""Counts what torch dispatches, and what crosses between the host and the model's device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from ifedicl.backbone.families import writes_of
from ifedicl.backbone.load import Backbone, wrap
from ifedicl.settings import ModelSettings
from tests.support import tiny

ITEM = "aten._local_scalar_dense.default"
_NOT_OPERATIONS = ("profiler.",)


class Dispatched(TorchDispatchMode):
    """Operations of a block, backward passes included.

    Attributes:
        operations: by name. Views count too, though they launch no kernel.
        launches: those that are no views.
        mixed: operations on tensors of both the host and another device, copies to the device left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.mixed: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = str(operation)
        if name.startswith(_NOT_OPERATIONS):
            return result
        self.operations[name] += 1
        returns = operation._schema.returns
        if not any(value.alias_info is not None and not value.alias_info.is_write for value in returns):
            self.launches[name] += 1
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
        if len(devices) > 1 and "copy" not in name:
            self.mixed.append(name)
        return result


def counted(work: Callable[[], object]) -> Dispatched:
    """What one run of ``work`` dispatches; an unmeasured run goes before it."""
    work()
    seen = Dispatched()
    with seen:
        work()
    return seen


def deep_backbone(family: str, *, layers: int = 12, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """A tiny random model as deep as the smallest models of these families, of :data:`tiny.FAMILY_CASES`."""
    model_type, overrides = tiny.FAMILY_CASES[family]
    deep = {"n_layer" if model_type in {"gpt2", "gptj", "bloom"} else "num_hidden_layers": layers}
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(tiny.config(model_type, **{**overrides, **deep}), dtype=dtype)
    settings = ModelSettings(source=family, device="cpu")
    return wrap(model, tiny.tokenizer(), writes_of(model_type, None), settings, fingerprint=family)
