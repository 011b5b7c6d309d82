"""Backbones with weights of 8 and 4 bits: the library's numbers, a gradient without kept weights, and another fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from ifedicl.adapter import Adapter
from ifedicl.backbone.families import writes_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.memory import ModelMemory
from ifedicl.backbone.quantisation import WeightOnlyLinear
from ifedicl.backbone.quantised_kinds import KINDS, fingerprint_with
from ifedicl.backbone.scoring import Scorer
from ifedicl.backbone.source import fingerprint, shape_of
from ifedicl.calibrate import ClientRound, calibrate, gradient_sum
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.errors import BackboneError, FingerprintError
from ifedicl.extract import context_vectors
from ifedicl.inspection import inspect_config
from ifedicl.settings import ModelSettings
from tests.support import tiny

pytest.importorskip("torchao", reason="`make quantised` installs torchao and runs these tests")

STEPS = {"int8": 127, "int4": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), "llama", hidden_size=64, intermediate_size=96, head_dim=16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_within_half_a_step_and_the_librarys_own(kind: str, dtype: torch.dtype) -> None:
    from torchao import quantization

    torch.manual_seed(0)
    linear = nn.Linear(64, 24).to(dtype).requires_grad_(False)
    made = WeightOnlyLinear.of(linear, KINDS[kind])
    group = KINDS[kind].group or 64
    whole, found = linear.weight.float().unflatten(1, (-1, group)), made.dequantised().float().unflatten(1, (-1, group))
    step = whole.abs().amax(dim=-1, keepdim=True) / STEPS[kind]
    assert ((found - whole).abs() <= 0.51 * step + 0.01 * whole.abs()).all()
    assert len(found.unique()) > 8
    theirs = quantization.IntxUnpackedToInt8Tensor.from_hp(linear.weight, (1, group), getattr(torch, kind))
    torch.testing.assert_close(made.dequantised(), theirs.dequantize(), rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)
    inputs = torch.randn(3, 5, 64).to(dtype)
    torch.testing.assert_close(made(inputs), nn.functional.linear(inputs, made.dequantised(), linear.bias))
    assert made.dequantised().dtype == made(inputs).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_as_many_bytes_as_planned_and_none_is_kept_for_the_gradient(kind: str, folder: Path) -> None:
    whole, backbone = tiny.load(folder), tiny.load(folder, quantisation=kind)
    layers = [module for module in backbone.model.modules() if isinstance(module, WeightOnlyLinear)]
    assert len(layers) == 3 * 7
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*backbone.model.parameters(), *_numbers(layers)))
    config, writes = whole.model.config, writes_of("llama", None)
    planned = ModelMemory.of(config, writes, torch.float32, kind).weights
    assert planned - 4 * 64 * 96 == held, "one weight is in full size at a time"
    assert held < 0.6 * ModelMemory.of(config, writes, torch.float32).weights

    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = layers[0](torch.ones(2, 64, requires_grad=True))
    assert not kept
    states.sum().backward()


def _numbers(layers: list[WeightOnlyLinear]) -> list[torch.Tensor]:
    return [tensor for layer in layers for tensor in layer.buffers()]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_computed_is_that_of_a_model_with_these_weights(kind: str, folder: Path) -> None:
    """The same model with the dequantised weights in ordinary layers gives the same vectors, gradients and probabilities."""
    backbone, plain = tiny.load(folder, quantisation=kind), tiny.load(folder)
    for (_, made), (_, linear) in zip(_linear(backbone), _linear(plain), strict=True):
        linear.weight.data = made.dequantised()
    method = tiny.method(calibration={"batch_size": 4, "local_steps": 3})
    turn = ClientRound("clinic", round=0, phase_start=0, phase_rounds=1)
    start = cold_start(Form(plain.layers), method.injection)
    found = []
    for each in (backbone, plain):
        scorer = Scorer(each, tiny.TASK)
        examples = scorer.encoded(tiny.examples(8))
        vectors = context_vectors(scorer, examples.prompts.tokens, examples.labels, method)
        context = Context(vectors.mean().astype(np.float32))
        found.append(
            [
                vectors.means,
                calibrate(scorer, examples, context, start, method, turn).coefficients.scales,
                gradient_sum(scorer, examples, context, start, method, range(8)).arrays["scales"],
                scorer.log_probabilities(examples.prompts),
            ]
        )
    for given, expected in zip(*found, strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def _linear(backbone: Backbone) -> list[tuple[str, Any]]:
    kinds = (nn.Linear, WeightOnlyLinear)
    return [(name, module) for name, module in backbone.model.base_model.named_modules() if isinstance(module, kinds)]


def test_inspect_plans_the_memory_of_the_quantised_weights(folder: Path, tmp_path: Path) -> None:
    found = {}
    for kind in (None, *KINDS):
        tiny.write_rows(tmp_path / "a.jsonl", tiny.rows(12, seed=0))
        config = tiny.write_config(tmp_path / "config.toml", folder, ["a"], "")
        chosen = f'dtype = "float32"\nquantisation = "{kind}"' if kind else 'dtype = "float32"'
        config.write_text(config.read_text().replace('dtype = "float32"', chosen))
        facts = inspect_config(config)
        found[kind] = facts["memory"]
        assert facts["quantisation"] == kind
    assert found[None]["weights"] > found["int8"]["weights"] > found["int4"]["weights"]
    assert len({memory["peak"] - memory["weights"] for memory in found.values()}) == 1


def test_each_quantisation_is_another_model(folder: Path) -> None:
    kinds: tuple[Literal["int8", "int4"] | None, ...] = (None, "int8", "int4")
    settings = {kind: ModelSettings(source=str(folder), device="cpu", quantisation=kind) for kind in kinds}
    names = [fingerprint(each) for each in settings.values()]
    assert len(set(names)) == 3
    assert [shape_of(each).fingerprint for each in settings.values()] == names
    assert fingerprint_with("ab", None) == "ab"
    backbones = {kind: tiny.load(folder, quantisation=kind) for kind in settings}
    assert [each.fingerprint for each in backbones.values()] == names
    assert [each.quantisation for each in backbones.values()] == [None, "int8", "int4"]
    adapter = tiny.drawn_adapter(backbones["int8"], source=str(folder))
    assert adapter.classifier(backbones["int8"]).classify(["a fine day"])
    for kind in (None, "int4"):
        with pytest.raises(FingerprintError, match="quantisation"):
            adapter.classifier(backbones[kind])


def test_nothing_is_folded_into_quantised_weights(folder: Path, tmp_path: Path) -> None:
    backbone = tiny.load(folder, quantisation="int8")
    adapter: Adapter = tiny.drawn_adapter(backbone, source=str(folder))
    with pytest.raises(
        BackboneError, match=r"export: the adapter was made with int8 weights .* Use the adapter with the model"
    ):
        adapter.export(tmp_path / "out", backbone)
    assert not (tmp_path / "out").exists()
