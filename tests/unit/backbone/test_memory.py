"""Planned memory against what passes take, and steps that are divided into several passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TypeAlias, cast

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from ifedicl.backbone.families import FAMILIES, writes_of
from ifedicl.backbone.hooks import injected
from ifedicl.backbone.layer_cache import MOST_BYTES, Shelf, UpperLayers, shelves_of
from ifedicl.backbone.layout import Row, right_padded
from ifedicl.backbone.load import Backbone, wrap
from ifedicl.backbone.memory import RESERVE, ROOM, SLACK, ModelMemory, trained_tokens_of
from ifedicl.backbone.prompts import EncodedExamples
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


# --- what is measured to be free --------------------------------------------------------------------------------------


def test_less_memory_than_planned_divides_a_step_further_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    memory = ModelMemory.of(AutoConfig.for_model("llama", **LLAMA_8B), writes_of("llama", None), torch.bfloat16)
    planned = memory.trained_tokens(24 * GB)
    assert memory.divided(24 * GB, 24 * GB - memory.weights) == planned, "an idle card: the plan, and so the same bits"
    assert memory.divided(24 * GB, 24 * GB - memory.weights - 10**8) == planned
    assert not caplog.records
    few = memory.divided(24 * GB, 2 * GB)
    assert 0 < few * memory.trained_token <= 2 * GB - SLACK
    assert memory.divided(24 * GB, 2 * GB + 10**6) == few, "small changes of what is free change nothing"
    assert memory.divided(24 * GB, 0) == 1
    assert f"takes {few} tokens, not {planned}" in caplog.text


def test_a_model_on_several_cards_is_planned_for_the_fullest(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _card: SimpleNamespace(total_memory=24 * GB))
    cards = [torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")]
    monkeypatch.setattr(backbone.model, "hf_device_map", {"": 0}, raising=False)
    writes, free = writes_of("llama", None), {"cuda:0": 3 * GB, "cuda:1": 1 * GB}

    def tokens(*devices: torch.device) -> int | None:
        return trained_tokens_of(backbone.model, writes, devices, free=lambda card: free[str(card)])

    assert tokens(cards[2]) is None, "a CPU's passes are small"
    assert tokens(*cards) == tokens(cards[1])
    assert tokens(cards[1]) != tokens(cards[0])


def test_a_card_of_8_gb_holds_a_step_of_an_8b_model_in_four_bits() -> None:
    config, writes = AutoConfig.for_model("llama", **LLAMA_8B), writes_of("llama", None)
    whole, eight, four = (ModelMemory.of(config, writes, torch.bfloat16, kind) for kind in (None, "int8", "int4"))
    embeddings = 2 * 2 * 128_256 * 4_096
    assert four.weights - embeddings < 0.3 * (whole.weights - embeddings), "the embedding and the head stay as they are"
    assert four.trained_token == eight.trained_token == whole.trained_token
    assert whole.trained_tokens(16 * GB) == 1
    assert eight.trained_tokens(16 * GB) >= 512
    assert four.trained_tokens(8 * GB) * four.trained_token + four.weights + RESERVE <= 8 * GB
    assert four.trained_tokens(8 * GB) > 32


def test_kept_states_go_to_the_gpu_then_to_the_host_then_nowhere(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(tuple(range(1, 9 + number))) for number in range(6)]
    expected = UpperLayers(backbone, 1, shelves=[]).entering(rows)
    pinned: list[int] = []

    def pin(states: torch.Tensor) -> torch.Tensor:  # there is no GPU to pin memory for
        pinned.append(len(states))
        return states

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    size = backbone.width * 4
    shelves = [Shelf(size * (8 + 9)), Shelf(size * (10 + 11), is_pinned=True)]
    upper = UpperLayers(backbone, 1, shelves=shelves)
    runs: list[int] = []
    handle = backbone.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    for _ in range(2):
        assert torch.equal(upper.entering(rows), expected)
    handle.remove()
    assert pinned == [10, 11]
    assert len(runs) == 6 + 2, "two rows found no room and were computed again"
    assert [shelf.free_bytes for shelf in shelves] == [0, 0]


def test_room_for_states_is_measured_beside_a_pass(backbone: Backbone) -> None:
    free = {"cuda": 20 * GB, "cpu": 64 * GB}
    card = SimpleNamespace(device=torch.device("cuda:0"))
    on_card, on_host = shelves_of(cast("Backbone", card), lambda device: free[device.type])
    assert (on_card.free_bytes, on_card.is_pinned) == (20 * GB - ROOM - RESERVE, False)
    assert (on_host.free_bytes, on_host.is_pinned) == (32 * GB, True)
    free["cuda"] = 1 * GB
    assert shelves_of(cast("Backbone", card), lambda device: free[device.type])[0].free_bytes == 0
    (alone,) = shelves_of(backbone)
    assert (alone.free_bytes, alone.is_pinned) == (MOST_BYTES, False)
