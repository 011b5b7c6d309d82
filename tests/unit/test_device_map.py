"""A model that accelerate divides, against the undivided one: here by offloading layers, which a CPU can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ifedicl.backbone.hooks import Injection, applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.placement import device_of
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate, example_gradients, gradient_sum
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.errors import BackboneError
from ifedicl.extract import context_vectors
from ifedicl.settings import ModelSettings
from tests.support import tiny

TURN = ClientRound("clinic", round=0, phase_start=0, phase_rounds=1)
_LLAMA = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
MAPS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "one layer on the disk": ("llama", {**_LLAMA, "lm_head": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}),
    "layers and head on the disk": ("llama", {**_LLAMA, "lm_head": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}),
    "gpt2, half on the disk": (
        "gpt2",
        {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "disk", "transformer.h.1": "cpu",
         "transformer.h.2": "disk", "transformer.ln_f": "cpu", "lm_head": "cpu"},
    ),
}  # fmt: skip


def _pair(folder: Path, name: str) -> tuple[Backbone, Backbone]:
    family, device_map = MAPS[name]
    tiny.save_model(folder, family, tie_word_embeddings=False)
    return tiny.load(folder), tiny.load(folder, device_map=device_map)


def _offloaded(backbone: Backbone) -> list[bool]:
    return [any(weight.device.type == "meta" for weight in block.parameters()) for block in backbone.blocks]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("first", [0, 1])
def test_vectors_gradients_and_probabilities_are_those_of_the_undivided_model(tmp_path: Path, name: str, first: int) -> None:
    whole, divided = _pair(tmp_path, name)
    assert not any(_offloaded(whole))
    before = _offloaded(divided)
    assert any(before)
    assert divided.fingerprint == whole.fingerprint
    draw, shape = np.random.default_rng(0), (whole.layers - first, 2)
    basis = np.linalg.qr(draw.normal(size=(*shape, whole.width, 3)))[0].swapaxes(2, 3)
    context = Context(draw.normal(size=(*shape, whole.width)).astype("f4"), np.ascontiguousarray(basis, dtype="f4"), first)
    layers = {"from_depth": first / whole.layers}
    method = tiny.method(calibration={"batch_size": 4, "local_steps": 3}, injection=layers)
    assert method.injected_layers(whole.layers).start == first
    start = cold_start(Form(whole.layers - first, 3), method.injection)
    found = []
    for backbone in (whole, divided):
        scorer = Scorer(backbone, tiny.MANY_TOKENS, first_layer=first)
        examples = scorer.encoded(tiny.examples(8, task=tiny.MANY_TOKENS))
        update = calibrate(scorer, examples, context, start, method, TURN)
        summed = gradient_sum(scorer, examples, context, start, method, range(8))
        single = [arrays for _, arrays in example_gradients(scorer, examples, context, start, method, range(2), alone=True)]
        with applied(backbone, context, update.coefficients):
            reading = scorer.read(examples.prompts, (2,))
        found.append(
            [
                context_vectors(scorer, examples.prompts.tokens, examples.labels, method).means,
                *update.coefficients.arrays.values(),
                *summed.arrays.values(),
                *(array for arrays in single for array in arrays.values()),
                reading.states,
                reading.logs,
            ]
        )
    for expected, given in zip(*found, strict=True):
        np.testing.assert_array_equal(given, expected)
    assert _offloaded(divided) == before, "weights are where they were"


@pytest.mark.parametrize("rank", [0, 3])
def test_each_layer_is_changed_on_its_own_device(backbone: Backbone, rank: int) -> None:
    divided, shape = replace(backbone), (backbone.layers, 2)
    cpu, other = torch.device("cpu"), torch.device("meta")
    divided.__dict__["devices"] = (cpu, other, other)
    context = ContextTensors(torch.ones(*shape, 32), torch.ones(*shape, rank, 32) if rank else None)
    scales = torch.ones(*shape, 2, requires_grad=True)
    core = torch.zeros(*shape, rank, rank, requires_grad=True) if rank else None
    injection = Injection.on(divided, context, scales, np.ones(shape, dtype=np.bool_), core)
    for layer, device in enumerate(divided.devices):
        changed = injection.changed(layer, 1, torch.ones(2, 5, 32, device=device))
        assert changed.device == device
        assert changed.requires_grad


def test_accelerates_own_map_is_one_device_where_there_is_only_one(tmp_path: Path) -> None:
    tiny.save_model(tmp_path)
    backbone = tiny.load(tmp_path, device_map="auto")
    assert set(backbone.devices) == {torch.device("cpu")}
    assert backbone.device == torch.device("cpu")


def test_a_hook_of_accelerate_says_where_a_layer_computes() -> None:
    layer = nn.Linear(2, 2)
    assert device_of(layer) == torch.device("cpu")

    class Hook:
        execution_device: object = 1

    layer._hf_hook = Hook()  # type: ignore[assignment]
    assert device_of(layer) == torch.device("cuda:1")


def test_a_place_that_is_none_is_refused_and_one_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device_map: .*'gpu 1'.* allowed"):
        ModelSettings(source="m", device_map={"": "gpu 1"})
    tiny.save_model(tmp_path)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        tiny.load(tmp_path, device_map={"": "cuda:7"})
