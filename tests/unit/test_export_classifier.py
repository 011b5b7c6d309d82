"""An adapter as a model with a classification head: plain transformers and peft give our own labels and probabilities."""

from __future__ import annotations

import ast
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner

from ifedicl.adapter import Adapter
from ifedicl.backbone.classification import Head
from ifedicl.backbone.load import Backbone
from ifedicl.cli import app
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.vectors import Array32
from ifedicl.errors import AdapterError, BackboneError
from ifedicl.kinds.classify import as_classification
from tests.support import tiny
from tests.support.exports import PROJECTED, TEXTS, head, run_card, servable

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft asks transformers for it
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),  # GPT-J has biases at one of its two projections
]
LAYER_NORM = ("gpt2", "opt", "gpt_neox-parallel", "bloom", "falcon-7b", "phi", "starcoder2", "gptj")
"""Cases whose last hidden state is the output of a LayerNorm with a bias."""


def _prompts(adapter: Adapter) -> list[str]:
    return [adapter.task.prompt(text) for text in TEXTS]


def _logs(classify: Any, adapter: Adapter, **options: Any) -> Array32:
    """``(N, C)`` log-probabilities of a pipeline."""
    rows = classify(_prompts(adapter), top_k=None, **options)
    by_label = [{item["label"]: item["score"] for item in row} for row in rows]
    return np.log(
        np.array(
            [[row[label] for label in as_classification(adapter.task, "a test").labels] for row in by_label], dtype=np.float32
        )
    )


def _pipeline_of(folder: Path) -> Any:
    return pipeline("text-classification", str(folder), tokenizer=str(folder), device="cpu")


@pytest.mark.parametrize("case", PROJECTED)
def test_every_family_gives_our_probabilities_through_a_plain_pipeline(case: str, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(case)
    adapter = servable(backbone)
    expected = adapter.classifier(backbone).log_probabilities(TEXTS)
    adapter.export(tmp_path / "folded", backbone, form="sequence-classification")
    folded = _pipeline_of(tmp_path / "folded")
    np.testing.assert_allclose(_logs(folded, adapter), expected, atol=1e-4)
    np.testing.assert_allclose(_logs(folded, adapter, batch_size=len(TEXTS)), expected, atol=1e-4)  # padded

    adapter.export(tmp_path / "lora", backbone, form="lora-sequence-classification")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lora")
    config = copy.deepcopy(backbone.model.config)
    config.id2label, config.pad_token_id = (
        dict(enumerate(as_classification(adapter.task, "a test").labels)),
        tokenizer.pad_token_id,
    )
    base = AutoModelForSequenceClassification.from_config(config)
    base.load_state_dict(
        {name: w for name, w in backbone.model.state_dict().items() if name in base.state_dict()}, strict=False
    )
    model = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    classify = pipeline("text-classification", model, tokenizer=tokenizer, device="cpu")
    np.testing.assert_allclose(_logs(classify, adapter, batch_size=len(TEXTS)), expected, atol=1e-4)


def test_the_label_words_are_the_head_without_a_readout(backbone: Backbone, tmp_path: Path) -> None:
    adapter = replace(servable(backbone), readout=None)
    adapter.export(tmp_path / "out", backbone, form="sequence-classification")
    expected = adapter.classifier(backbone).log_probabilities(TEXTS)
    np.testing.assert_allclose(_logs(_pipeline_of(tmp_path / "out"), adapter), expected, atol=1e-4)


def test_scalars_are_folded_where_the_family_stores_biases(backbone: Backbone, tmp_path: Path) -> None:
    adapter = replace(tiny.drawn_adapter(backbone, rank=4), readout=head(backbone.width, 2))
    adapter.export(tmp_path / "out", backbone, form="sequence-classification")
    expected = adapter.classifier(backbone).log_probabilities(TEXTS)
    np.testing.assert_allclose(_logs(_pipeline_of(tmp_path / "out"), adapter), expected, atol=1e-4)


def test_a_readout_of_the_raw_model_is_a_head_on_the_raw_model(tmp_path: Path) -> None:
    for case in ("qwen3", "olmo2"):  # a family that normalises behind its projections has a head, too
        backbone = tiny.family_backbone(case)
        drawn = servable(backbone)
        identity = Coefficients.identity(drawn.coefficients.form)
        adapter = replace(drawn, coefficients=identity)
        adapter.export(tmp_path / case, backbone, form="sequence-classification")
        expected = adapter.classifier(backbone).log_probabilities(TEXTS)
        np.testing.assert_allclose(_logs(_pipeline_of(tmp_path / case), adapter), expected, atol=1e-4)


@pytest.mark.parametrize("case", LAYER_NORM)
def test_an_intercept_goes_into_the_constant_direction_of_a_layer_norm(case: str, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(case)
    adapter = replace(servable(backbone), readout=head(backbone.width, 2, intercept=1.5))
    without = replace(adapter, readout=head(backbone.width, 2))
    expected = adapter.classifier(backbone).log_probabilities(TEXTS)
    assert np.abs(expected - without.classifier(backbone).log_probabilities(TEXTS)).max() > 0.1
    adapter.export(tmp_path / "out", backbone, form="sequence-classification")
    np.testing.assert_allclose(_logs(_pipeline_of(tmp_path / "out"), adapter), expected, atol=1e-3)


def test_an_intercept_behind_another_norm_is_refused_with_the_preset_that_has_none(backbone: Backbone, tmp_path: Path) -> None:
    adapter = replace(servable(backbone), readout=head(backbone.width, 2, intercept=1.5))
    with pytest.raises(AdapterError, match=r"an intercept.*preset servable"):
        adapter.export(tmp_path / "out", backbone, form="sequence-classification")
    shared = head(backbone.width, 2).weights.copy()
    shared[:, -1] = 3.0  # the same for all labels: it changes no probability
    same = replace(adapter, readout=Readout(shared))
    same.export(tmp_path / "out", backbone, form="sequence-classification")
    expected = same.classifier(backbone).log_probabilities(TEXTS)
    np.testing.assert_allclose(_logs(_pipeline_of(tmp_path / "out"), same), expected, atol=1e-4)


def test_a_layer_norm_whose_biases_nearly_cancel_gives_no_constant_direction(tmp_path: Path) -> None:
    backbone = tiny.family_backbone("opt-post-norm")  # drawn so: the constant is 0.03, and rounding would show
    adapter = replace(servable(backbone), readout=head(backbone.width, 2, intercept=1.5))
    with pytest.raises(AdapterError, match="an intercept"):
        adapter.export(tmp_path / "out", backbone, form="sequence-classification")


def test_a_readout_of_the_texts_mean_state_is_refused_with_the_preset_that_has_none(backbone: Backbone, tmp_path: Path) -> None:
    adapter = replace(servable(backbone), readout=head(backbone.width, 2, pooled_layers=(2,)))
    with pytest.raises(AdapterError, match=r"mean states at layers \(2,\).*preset servable"):
        adapter.export(tmp_path / "out", backbone, form="sequence-classification")
    assert not (tmp_path / "out").exists()


def test_label_words_of_several_tokens_and_capped_logits_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    several = tiny.drawn_adapter(backbone, tiny.MANY_TOKENS, rank=4)
    with pytest.raises(BackboneError, match="several tokens"):
        several.export(tmp_path / "out", backbone, form="sequence-classification")
    capped = tiny.family_backbone("gemma2")
    with pytest.raises(BackboneError, match="caps its logits"):
        Head.of(capped, tiny.TASK, None)


def test_the_configuration_is_what_classifiers_expect(backbone: Backbone, tmp_path: Path) -> None:
    servable(backbone).export(tmp_path / "out", backbone, form="sequence-classification", dtype="bfloat16")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert config.id2label == {0: "good", 1: "bad"}
    assert config.label2id == {"good": 0, "bad": 1}
    assert config.problem_type == "single_label_classification"
    assert config.pad_token_id is not None
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.score.weight.dtype == torch.bfloat16
    assert model.score.bias is None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.padding_side == "right"
    assert backbone.tokenizer.pad_token_id == tokenizer.pad_token_id


def test_a_tokenizer_that_ends_every_prompt_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.backend_tokenizer.post_processor = _ending(tokenizer)
    ends = replace(backbone, tokenizer=tokenizer)
    with pytest.raises(BackboneError, match="behind every prompt"):
        servable(backbone).export(tmp_path / "out", ends, form="sequence-classification")


def _ending(tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", tokenizer.pad_token_id)])


@pytest.mark.parametrize("form", ["sequence-classification", "lora-sequence-classification"])
def test_the_command_writes_a_classifier_and_its_card_runs(
    form: str, backbone: Backbone, llama_folder: Path, tmp_path: Path
) -> None:
    adapter = servable(backbone, source=str(llama_folder))
    adapter.save(tmp_path / "adapter")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--as", form])
    assert done.exit_code == 0, done.output
    assert "the readout is not in it" not in " ".join(done.output.split())
    ours = adapter.classifier(backbone).classify(TEXTS)
    for text, prediction in zip(TEXTS, ours, strict=True):
        (printed,) = ast.literal_eval(run_card(tmp_path / "out", text))
        assert printed["label"] == prediction.label
        assert printed["score"] == pytest.approx(prediction.probabilities[prediction.label], abs=1e-4)
    bare = _pipeline_of(tmp_path / "out")(list(TEXTS)) if form == "sequence-classification" else None
    assert bare is None or any(
        abs(item["score"] - max(prediction.probabilities.values())) > 1e-3 for item, prediction in zip(bare, ours, strict=True)
    ), "without the prompt the classifier means nothing, which the card says"
