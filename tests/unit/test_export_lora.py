"""An adapter of Γ alone is a LoRA: plain peft gives our own labels."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from ifedicl.adapter import Adapter
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lora_export import padded_rank
from ifedicl.cli import app
from ifedicl.errors import AdapterError, BackboneError, InputError
from tests.support import tiny
from tests.support.exports import POST_NORM, PROJECTED, TEXTS, label_logs, run_card, servable

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks transformers for it
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),  # GPT-J has biases at one of its two projections
]
ROW = torch.tensor([[5, 17, 3, 99, 250, 42, 8, 31, 77, 12]])


@torch.no_grad()
def _logs(model: Any) -> torch.Tensor:
    logs: torch.Tensor = model(input_ids=ROW).logits.float().log_softmax(dim=-1)
    return logs


def _with_lora(backbone: Backbone, folder: Path) -> Any:
    return PeftModel.from_pretrained(copy.deepcopy(backbone.model), folder).eval()


@pytest.mark.parametrize("case", PROJECTED)
def test_every_family_with_projections_gives_our_log_probabilities_through_peft(case: str, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(case)
    adapter = servable(backbone)
    adapter.export(tmp_path / "out", backbone, form="lora")
    model = _with_lora(backbone, tmp_path / "out")
    with applied(backbone, adapter.context, adapter.coefficients):
        expected = _logs(backbone.model)
    torch.testing.assert_close(_logs(model), expected, rtol=1e-4, atol=1e-4)
    assert (expected - _logs(backbone.model)).abs().max() > 1e-2
    labelled = replace(adapter, readout=None).classifier(backbone).log_probabilities(TEXTS)
    np.testing.assert_allclose(label_logs(model, backbone), labelled, atol=1e-4)


@pytest.mark.parametrize("case", POST_NORM)
def test_a_family_that_normalises_behind_its_projections_is_refused(case: str, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(case)
    for form in ("lora", "checkpoint", "lora-sequence-classification"):
        with pytest.raises(BackboneError, match=r"export: .*with the model"):
            servable(backbone).export(tmp_path / "out", backbone, form=form)
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_scalars_moved_is_no_lora(backbone: Backbone, tmp_path: Path) -> None:
    for rank in (0, 4):
        with pytest.raises(AdapterError, match="preset servable"):
            tiny.drawn_adapter(backbone, rank=rank).export(tmp_path / "out", backbone, form="lora")
    adapter = servable(backbone)
    moved = adapter.coefficients.scales.copy()
    moved[1, 0, 1] = 1.001
    with pytest.raises(AdapterError, match="β was moved"):
        replace(adapter, coefficients=replace(adapter.coefficients, scales=moved)).export(
            tmp_path / "out", backbone, form="lora"
        )
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_changes_nothing_is_no_lora(backbone: Backbone, tmp_path: Path) -> None:
    adapter = servable(backbone)
    closed = replace(adapter, coefficients=adapter.coefficients.identity(adapter.coefficients.form))
    with pytest.raises(AdapterError, match="changes no write"):
        closed.export(tmp_path / "out", backbone, form="lora")


def test_a_form_that_does_not_exist_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed: checkpoint, lora"):
        servable(backbone).export(tmp_path / "out", backbone, form="gguf")


def test_ranks_are_those_that_servers_take() -> None:
    assert [padded_rank(rank) for rank in (1, 8, 9, 16, 17, 33, 256)] == [8, 8, 16, 16, 32, 64, 256]


def test_the_layout_is_that_of_peft_and_names_the_injected_layers_alone(backbone: Backbone, tmp_path: Path) -> None:
    adapter = servable(backbone, rank=9)
    core = adapter.coefficients.core
    assert core is not None
    core[0] = 0  # the first layer is not injected
    adapter.export(tmp_path / "out", backbone, form="lora", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["lora_bias"]) == (16, 16, "none", False)
    assert config["target_modules"] == ["mlp.down_proj", "self_attn.o_proj"]
    assert config["layers_to_transform"] == [1, 2]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2
    first = tensors["base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"]
    assert first.dtype == torch.bfloat16
    assert first.shape[0] == 16
    assert not first[9:].any()
    assert first[:9].any()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "ifedicl",
    }


def test_two_tasks_in_one_batch_of_peft_get_our_own_labels(backbone: Backbone, tmp_path: Path) -> None:
    second = tiny.TASK.model_copy(update={"name": "place", "labels": ("in", "out"), "template": "Place: {text}\nMood:"})
    adapters = {
        "mood": servable(backbone),
        "place": servable(backbone, task=second, rank=8, seed=11),
    }
    for name, adapter in adapters.items():
        adapter.export(tmp_path / name, backbone, form="lora")
    model = PeftModel.from_pretrained(copy.deepcopy(backbone.model), tmp_path / "mood", adapter_name="mood").eval()
    model.load_adapter(tmp_path / "place", adapter_name="place")
    rows = [(name, text) for text in TEXTS for name in (*adapters, "__base__")]
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.padding_side = "right"
    tasks = {"mood": tiny.TASK, "place": second, "__base__": tiny.TASK}
    batch = tokenizer([tasks[name].prompt(text) for name, text in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch, adapter_names=[name for name, _ in rows]).logits
    last = batch["attention_mask"].sum(dim=1) - 1
    words = [backbone.tokenizer(" " + word)["input_ids"][0] for word in tiny.TASK.label_words]
    found = logits[torch.arange(len(rows)), last][:, words].log_softmax(dim=-1).numpy()
    for name, adapter in adapters.items():
        ours = replace(adapter, readout=None).classifier(backbone).log_probabilities(TEXTS)
        mine = [place for place, (other, _) in enumerate(rows) if other == name]
        np.testing.assert_allclose(found[mine], ours, atol=1e-4)
    raw = [place for place, (other, _) in enumerate(rows) if other == "__base__"]
    np.testing.assert_allclose(found[raw], label_logs(backbone.model, backbone), atol=1e-4)
    assert np.abs(found[raw] - found[[place for place, (other, _) in enumerate(rows) if other == "mood"]]).max() > 1e-2


def test_the_command_writes_a_lora_and_its_card_runs(backbone: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    adapter = servable(backbone, source=str(llama_folder))
    adapter.save(tmp_path / "adapter")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--as", "lora"])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "a LoRA for peft" in words
    assert "the readout is not in it" in words
    ours = replace(adapter, readout=None).classifier(backbone).classify(TEXTS)
    assert {prediction.label for prediction in ours} == {"good", "bad"}, "the labels differ, or the test proves nothing"
    for text, prediction in zip(TEXTS, ours, strict=True):
        assert run_card(tmp_path / "out", text) == prediction.label
    assert Adapter.load(tmp_path / "out" / "ifedicl").readout is not None


def test_the_card_says_when_servers_cannot_apply_the_biases(backbone: Backbone, tmp_path: Path) -> None:
    servable(backbone).export(tmp_path / "llama", backbone, form="lora")
    with_biases = tiny.family_backbone("gpt2")
    servable(with_biases).export(tmp_path / "gpt2", with_biases, form="lora")
    assert "lora_bias" not in (tmp_path / "llama" / "README.md").read_text()
    assert "vLLM and llama.cpp do not" in (tmp_path / "gpt2" / "README.md").read_text()
    assert json.loads((tmp_path / "gpt2" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
