"""Exports of SmolLM2-135M for plain peft and transformers: two LoRAs in one batch, and a classifier in a pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import pipeline

from ifedicl import Adapter, Backbone, Example, ModelSettings, Task, federate, load_preset, simulate
from ifedicl.core.vectors import Array32
from ifedicl.demo import story
from ifedicl.demo.fetch import demo_places
from ifedicl.kinds.classify import as_classification
from ifedicl.settings import changed
from tests.support.exports import run_card

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
TONE = Task(name="tone", labels=("loud", "quiet"), template="Note: {text}\nTone:")
"""A second task on the same sentences; its labels mean nothing, but they are learnt."""


def _calibrated(backbone: Backbone, model: ModelSettings, task: Task, examples: list[Example]) -> Adapter:
    short = {"rounds": {"rounds": 2, "select_by": "last"}, "calibration": {"learning_rate": 0.1}}
    method = changed(load_preset("servable"), short, "test")
    halves = {"north": tuple(examples[::2]), "south": tuple(examples[1::2])}
    return federate(simulate(backbone, task, halves), model, task, method).adapter


@pytest.fixture(scope="module")
def adapters(real_backbone: Backbone, model: ModelSettings) -> dict[str, Adapter]:
    """Two tasks that the preset servable calibrated over one model."""
    rows = [row for place in demo_places(pool=8, test=3, seed=0).values() for row in place.pool]
    tones = [Example(row.text, TONE.labels[len(row.text) % 2]) for row in rows]
    return {
        "mood": _calibrated(real_backbone, model, story.TASK, rows),
        "tone": _calibrated(real_backbone, model, TONE, tones),
    }


def _prompts(adapter: Adapter) -> list[str]:
    return [adapter.task.prompt(text) for text in story.SENTENCES]


def test_the_preset_servable_calibrates_the_core_alone(adapters: dict[str, Adapter]) -> None:
    for adapter in adapters.values():
        assert adapter.coefficients.is_core_alone
        assert adapter.coefficients.core is not None
        assert np.abs(adapter.coefficients.core).max() > 0.01
        assert adapter.readout is None or not adapter.readout.weights[:, -1].any()


def test_two_loras_in_one_batch_of_peft_give_our_own_labels(
    adapters: dict[str, Adapter], real_backbone: Backbone, tmp_path: Path
) -> None:
    for name, adapter in adapters.items():
        adapter.export(tmp_path / name, real_backbone, form="lora")
    model: Any = PeftModel.from_pretrained(copy.deepcopy(real_backbone.model), tmp_path / "mood", adapter_name="mood").eval()
    model.load_adapter(tmp_path / "tone", adapter_name="tone")
    names = [name for name in adapters for _ in story.SENTENCES]
    tokenizer = copy.deepcopy(real_backbone.tokenizer)
    tokenizer.padding_side = "right"
    prompts = [prompt for adapter in adapters.values() for prompt in _prompts(adapter)]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch, adapter_names=names).logits
    states = logits[torch.arange(len(names)), batch["attention_mask"].sum(dim=1) - 1]
    for place, (name, adapter) in enumerate(adapters.items()):
        own = states[place * len(story.SENTENCES) : (place + 1) * len(story.SENTENCES)]
        words = [tokenizer(" " + word)["input_ids"][0] for word in as_classification(adapter.task, "a test").label_words]
        expected = replace(adapter, readout=None).classifier(real_backbone).log_probabilities(story.SENTENCES)
        np.testing.assert_allclose(own[:, words].log_softmax(dim=-1).numpy(), expected, atol=1e-4, err_msg=name)
        raw = replace(adapter, readout=None, coefficients=adapter.coefficients.identity(adapter.coefficients.form))
        assert np.abs(raw.classifier(real_backbone).log_probabilities(story.SENTENCES) - expected).max() > 0.01


@pytest.mark.soak
def test_the_cards_code_loads_the_gguf_file_and_prints_our_label(
    adapters: dict[str, Adapter], real_backbone: Backbone, tmp_path: Path
) -> None:
    adapter = adapters["mood"]
    adapter.export(tmp_path / "out", real_backbone, form="lora")
    (ours,) = replace(adapter, readout=None).classifier(real_backbone).classify(story.SENTENCES[2:])
    assert run_card(tmp_path / "out", story.SENTENCES[2]) == ours.label


def _head(width: int, classes: int) -> Array32:
    """Weights of a readout without an intercept, should the held-out examples have preferred the label words."""
    weights = np.random.default_rng(0).normal(size=(classes, width + classes + 1)).astype(np.float32) * 0.02
    weights[:, -1] = 0
    return weights


def test_a_classifier_in_a_plain_pipeline_gives_our_own_probabilities(
    adapters: dict[str, Adapter], real_backbone: Backbone, tmp_path: Path
) -> None:
    from ifedicl.core.readout import Readout

    adapter = adapters["mood"]
    drawn = Readout(_head(real_backbone.width, adapter.task.columns))
    for number, readout in enumerate((adapter.readout, drawn)):
        scored = replace(adapter, readout=readout)
        folder = tmp_path / f"out{number}"
        scored.export(folder, real_backbone, form="sequence-classification")
        classify = pipeline("text-classification", str(folder), tokenizer=str(folder), device="cpu")
        expected = scored.classifier(real_backbone).log_probabilities(story.SENTENCES)
        rows = classify(_prompts(scored), top_k=None, batch_size=len(story.SENTENCES))
        found = [
            [{item["label"]: item["score"] for item in row}[label] for label in as_classification(scored.task, "a test").labels]
            for row in rows
        ]
        np.testing.assert_allclose(np.log(np.array(found)), expected, atol=1e-4)
