"""Methods that inject into some layers, and their arrays extended to all layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.settings import Method
from tests.support import tiny

LAYERS = 4
SPANS: dict[str, tuple[dict[str, Any], range]] = {
    "upper half": ({"from_depth": 0.5}, range(2, 4)),
    "upper quarter": ({"from_depth": 0.75}, range(3, 4)),
    "all": ({}, range(4)),
}
each_span = pytest.mark.parametrize(("injection", "layers"), SPANS.values(), ids=SPANS)


def method(injection: dict[str, Any], **sections: Any) -> Method:
    """A short run with these injection settings; sections override."""
    base = {"subspace": {"rank": 2}, "rounds": {"rounds": 2, "select_by": "last"}, "calibration": {"learning_rate": 0.2}}
    return tiny.method(injection=injection, **{**base, **sections})


def embedded(values: Array32, layers: range, fill: float = 0.0) -> Array32:
    """The same numbers in an array of all layers, as it was before."""
    whole = np.full((LAYERS, *values.shape[1:]), fill, dtype=np.float32)
    whole[layers.start : layers.stop] = values
    return whole


def everywhere(context: Context, coefficients: Coefficients) -> tuple[Context, Coefficients]:
    """Both in arrays of all layers; nothing is injected where they had none."""
    layers = context.layers
    whole = Coefficients.identity(Form(LAYERS, context.rank))
    for name, array in coefficients.arrays.items():
        whole.arrays[name][layers.start : layers.stop] = array
    basis = None if context.basis is None else embedded(context.basis, layers)
    return Context(embedded(context.vectors, layers), basis), whole


def cut(adapter: Adapter, layers: range) -> Adapter:
    """Of an adapter of all layers, those."""
    rows, context, values = slice(layers.start, layers.stop), adapter.context, adapter.coefficients
    basis, core = (None if array is None else array[rows] for array in (context.basis, values.core))
    own = Context(context.vectors[rows], basis, layers.start)
    return replace(adapter, context=own, coefficients=Coefficients(values.scales[rows], core))
