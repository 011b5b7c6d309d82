"""Planned memory against what passes take, and steps that are divided into several passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from ifedicl.backbone.encoding import EncodedExamples
from ifedicl.backbone.families import FAMILIES, writes_of
from ifedicl.backbone.hooks import injected
from ifedicl.backbone.layout import right_padded
from ifedicl.backbone.load import Backbone, wrap
from ifedicl.backbone.memory import RESERVE, ROOM, ModelMemory
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate, example_gradients, gradient_sum
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.settings import Method, ModelSettings
from tests.support import tiny

GB = 10**9
LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def _peak(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator for the CPU handed out at once, beyond those before: its own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_token_takes_as_many_bytes_as_planned(model_type: str) -> None:
    layers, rank, width = 6, 8, 96
    size = {"n_embd": width, "n_inner": 256, "n_layer": layers} if model_type == "gpt2" else {}
    if model_type == "llama":
        size = {"hidden_size": width, "intermediate_size": 256, "num_hidden_layers": layers, "head_dim": 24}
    config, writes = tiny.config(model_type, **size), writes_of(model_type, None)
    memory = ModelMemory.of(config, writes, torch.float32)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert memory.weights == sum(weight.numel() * 4 for weight in model.parameters())
    backbone = wrap(model, tiny.tokenizer(), writes, ModelSettings(source=model_type, device="cpu"), model_type)
    scales = torch.ones(layers, 2, 2, requires_grad=True)
    core = torch.zeros(layers, 2, rank, rank, requires_grad=True)
    context = ContextTensors(torch.ones(layers, 2, width), torch.ones(layers, 2, rank, width))
    active = np.ones((layers, 2), dtype=np.bool_)

    def step(rows: int) -> None:
        with injected(backbone, context, scales, active, core=core):
            states = backbone.hidden_states(right_padded([tuple(range(1, 65))] * rows, backbone.device))
        backbone.logits(states[:, -1]).log_softmax(dim=-1)[:, 0].sum().backward()

    step(2)
    few, many = _peak(lambda: step(8)), _peak(lambda: step(24))
    assert (many - few) / (16 * 64) == pytest.approx(memory.trained_token, rel=0.15)


@pytest.mark.parametrize("case", ["gemma3-with-vision", "bloom"])
def test_other_families_are_planned_from_their_configuration_alone(case: str) -> None:
    model_type, overrides = tiny.FAMILY_CASES[case]
    memory = ModelMemory.of(tiny.config(model_type, **overrides), writes_of(model_type, None), torch.bfloat16)
    # The two writes of each of the three layers are kept for the gradient, at least.
    assert memory.trained_token > 3 * 2 * 32 * 2
    assert memory.kept_token == 32 * 2


def test_a_step_of_an_8b_model_fits_a_card_of_24_gb() -> None:
    memory = ModelMemory.of(AutoConfig.for_model("llama", **LLAMA_8B), writes_of("llama", None), torch.bfloat16)
    assert memory.weights == 2 * 8_030_261_248
    tokens = memory.trained_tokens(24 * GB)
    assert tokens >= 512, "fewer tokens in a pass would leave the card idle"
    assert memory.peak(tokens) + RESERVE <= 24 * GB
    assert memory.trained_tokens(141 * GB) * memory.trained_token <= ROOM, "a larger card does not take more than pays"
    assert memory.trained_tokens(17 * GB) == 1, "less than fits at all: one row at a time, and torch says that it is full"


Setting: TypeAlias = tuple[Scorer, EncodedExamples, Context, Coefficients, Method]


# --- a step in several passes -----------------------------------------------------------------------------------------


def _setting(backbone: Backbone, rank: int = 3) -> Setting:
    scorer, method = Scorer(backbone, tiny.MANY_TOKENS), tiny.method(calibration={"batch_size": 12, "local_steps": 2})
    draw, shape = np.random.default_rng(0), (backbone.layers, 2)
    basis = np.linalg.qr(draw.normal(size=(*shape, backbone.width, rank)))[0].swapaxes(2, 3)
    vectors = draw.normal(size=(*shape, backbone.width)).astype(np.float32)
    context = Context(vectors, np.ascontiguousarray(basis, dtype=np.float32))
    start = cold_start(Form(backbone.layers, rank), method.injection)
    return scorer, scorer.encoded(tiny.examples(12, task=tiny.MANY_TOKENS)), context, start, method


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_in_as_many_passes_as_memory_asks_for_gives_the_same_numbers(family: str) -> None:
    whole = tiny.family_backbone(family)
    turn = ClientRound("clinic", round=0, phase_start=0, phase_rounds=1)
    expected, sums = calibrate(*_setting(whole), turn), gradient_sum(*_setting(whole), range(12))
    for tokens in (200, 1):
        divided = replace(whole, trained_tokens=tokens)
        scorer, examples, *_ = _setting(divided)
        passes = scorer.batches(examples.prompts.tokens, trains=True)
        assert len(passes) > 1
        assert len(scorer.batches(examples.prompts.tokens)) == 1, "a pass without gradients is not divided"
        found = gradient_sum(*_setting(divided), range(12))
        for name, array in sums.arrays.items():
            np.testing.assert_allclose(found.arrays[name], array, rtol=1e-4, atol=1e-4 * np.abs(array).max())
        assert found.loss == pytest.approx(sums.loss, rel=1e-6)
        update = calibrate(*_setting(divided), turn)
        for name, array in expected.coefficients.arrays.items():
            np.testing.assert_allclose(update.coefficients.arrays[name], array, atol=2e-3)


def test_a_divided_step_is_the_same_whatever_ran_before() -> None:
    backbone = replace(tiny.family_backbone("llama"), trained_tokens=60)
    setting = _setting(backbone)
    fresh = gradient_sum(*setting, range(12))
    for rows in ([3], [5, 1, 9], range(6)):
        gradient_sum(*setting, rows)
    setting[0].log_probabilities(setting[1].prompts)
    again = gradient_sum(*setting, range(12))
    for name, array in fresh.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_gradients_of_single_examples_are_divided_too() -> None:
    backbone = replace(tiny.family_backbone("llama"), trained_tokens=60)
    assert len(list(example_gradients(*_setting(backbone), range(12)))) > 1


def test_a_setting_bounds_the_tokens_of_a_pass(backbone: Backbone) -> None:
    settings = ModelSettings(source="m", device="cpu", max_pass_tokens=99)
    writes = writes_of(backbone.model.config.model_type, None)
    assert wrap(backbone.model, backbone.tokenizer, writes, settings, "f").trained_tokens == 99
    assert backbone.trained_tokens is None
    assert "llama" in FAMILIES
