"""Whether a device computes what the CPU computes, in float32: the same shape, the same weights, the same text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from _gpu_shapes import backbone_of
from _pairs import TASK, sentences
from ifedicl.backbone.capture import Captures, CudaGraphs
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, LocalUpdate, calibrate, gradient_sum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.injection import fold
from ifedicl.core.subspace import Context
from ifedicl.core.transfer import to_device, to_host
from ifedicl.extract import context_vectors
from ifedicl.settings import CalibrationSettings, Method

_RANK, _EXAMPLES = 4, 12
_TURN = ClientRound("bench", round=0, phase_start=0, phase_rounds=1)


@dataclass(frozen=True)
class Parity:
    """The largest difference of one kind of numbers, over their largest size; 0 where bits must be equal."""

    what: str
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed."""
        return self.difference <= self.allowed


def parity(shape: str, device: torch.device) -> list[Parity]:
    """Vectors, gradients, log-probabilities, folds and seeds of a device against the CPU, in float32."""
    host = backbone_of(shape, torch.device("cpu"), torch.float32)
    there = replace(host, model=copy.deepcopy(host.model).to(device))
    there = replace(there, blocks=_same(host, there, host.blocks), writes=tuple(_pairs(host, there)))
    found = [_numbers(backbone) for backbone in (host, there)]
    result = []
    for what, allowed in (("vectors", 1e-4), ("gradients", 1e-3), ("log-probabilities", 1e-3), ("readout sums", 1e-3)):
        expected, array = (numbers[what] for numbers in found)
        result.append(Parity(what, float(np.abs(array - expected).max() / np.abs(expected).max()), allowed))
    result.append(Parity("folded weights against injection", _fold_error(there), 1e-4))
    first, second = _update(there), _update(there)
    same = all(np.array_equal(first.coefficients.arrays[name], array) for name, array in second.coefficients.arrays.items())
    result.append(Parity("two updates of one seed, bit for bit", 0.0 if same else 1.0, 0.0))
    captures = Captures(CudaGraphs()) if device.type == "cuda" else None
    for name, other in (("plain", None), ("captured", captures)):
        update = _update(replace(there, launches=name, captures=other))
        differ = [
            float(np.abs(update.coefficients.arrays[key] - array).max()) for key, array in first.coefficients.arrays.items()
        ]
        result.append(Parity(f"an update with launches {name} against auto", max(differ), 1e-3))
    return result


def _same(host: Backbone, there: Backbone, modules: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """The modules of the copied model that stand where ``modules`` stand in the first."""
    names = {id(module): name for name, module in host.model.named_modules()}
    return tuple(there.model.get_submodule(names[id(module)]) for module in modules)


def _pairs(host: Backbone, there: Backbone) -> list[tuple[nn.Module, nn.Module]]:
    return [(attention, mlp) for attention, mlp in (_same(host, there, pair) for pair in host.writes)]


def _setting(backbone: Backbone) -> tuple[Scorer, Context, Coefficients, Method]:
    scorer = Scorer(backbone, TASK)
    layers, width = scorer.backbone.layers, scorer.backbone.width
    draw, shape = np.random.default_rng(0), (layers, 2)
    basis = np.linalg.qr(draw.normal(size=(*shape, width, _RANK)))[0].swapaxes(2, 3)
    vectors = 0.1 * draw.normal(size=(*shape, width)).astype(np.float32)
    context = Context(vectors.astype(np.float32), np.ascontiguousarray(basis, dtype=np.float32))
    start = Coefficients.identity(Form(layers, _RANK))
    assert start.core is not None
    start.scales[..., 0], start.core[:] = 0.1, 0.1 * draw.normal(size=start.core.shape)
    return scorer, context, start, Method(calibration=CalibrationSettings(local_steps=2, batch_size=4, loss="vocabulary"))


def _numbers(backbone: Backbone) -> dict[str, npt.NDArray[np.floating]]:
    scorer, context, start, method = _setting(backbone)
    examples = scorer.encoded(sentences(_EXAMPLES))
    sums = gradient_sum(scorer, examples, context, start, method, range(_EXAMPLES))
    with applied(scorer.backbone, context, start):
        reading = scorer.read(examples.prompts, (max(1, scorer.backbone.layers // 2),))
    return {
        "vectors": context_vectors(scorer, examples.prompts.tokens, examples.labels, method).mean(),
        "gradients": np.concatenate([array.ravel() / np.abs(array).max() for array in sums.arrays.values()]),
        "log-probabilities": reading.logs,
        "readout sums": reading.states.T @ reading.states,
    }


def _update(backbone: Backbone) -> LocalUpdate:
    scorer, context, start, method = _setting(backbone)
    return calibrate(scorer, scorer.encoded(sentences(_EXAMPLES)), context, start, method, _TURN)


@torch.no_grad()
def _fold_error(backbone: Backbone) -> float:
    """Of the last MLP's projection with the injection folded in, against the injection of its output."""
    scorer, context, start, _ = _setting(backbone)
    device = scorer.backbone.device
    module = scorer.backbone.writes[-1][1]
    assert isinstance(module, nn.Linear)
    inputs = to_device(np.random.default_rng(1).normal(size=(8, 16, module.in_features)).astype(np.float32), device)
    with applied(scorer.backbone, context, start):
        expected = module(inputs)
    assert context.basis is not None
    assert start.core is not None
    basis, core, vector = (to_device(array[-1, 1], device) for array in (context.basis, start.core, context.vectors))
    scale, factor = (float(number) for number in start.scales[-1, 1])
    weight, bias = fold(module.weight, module.bias, vector, scale, factor, basis, core)
    found, wanted = to_host(nn.functional.linear(inputs, weight, bias), expected)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
