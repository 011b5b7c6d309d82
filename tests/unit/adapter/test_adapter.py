"""An adapter is whole or absent, belongs to one model, and does what its numbers say."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import ifedicl
from ifedicl.adapter import FORMAT_VERSION, Adapter
from ifedicl.backbone.hooks import injected
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.errors import AdapterError, DataError, FingerprintError
from ifedicl.runs import zero_shot_adapter
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.adapters import contents, resigned

FILES = {"adapter.json", "adapter.safetensors", "README.md"}
TEXTS = [example.text for example in tiny.examples(9)]


def test_what_is_saved_is_loaded_again_bit_for_bit(adapter: Adapter, saved: Path) -> None:
    loaded = Adapter.load(saved)
    assert loaded.context.vectors.dtype == loaded.coefficients.scales.dtype == np.float32
    np.testing.assert_array_equal(loaded.context.vectors, adapter.context.vectors)
    np.testing.assert_array_equal(loaded.coefficients.scales, adapter.coefficients.scales)
    for name in ("task", "model", "fingerprint", "provenance"):
        assert getattr(loaded, name) == getattr(adapter, name), name


def test_arrays_come_back_however_they_lie_in_memory(adapter: Adapter, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(adapter.context.vectors.shape[-1] + 3, 2)).astype(np.float32).T
    scales = np.asfortranarray(adapter.coefficients.scales)
    assert not weights.flags.c_contiguous
    replace(adapter, readout=Readout(weights), coefficients=Coefficients(scales)).save(tmp_path / "strided")
    loaded = Adapter.load(tmp_path / "strided")
    assert loaded.readout is not None
    np.testing.assert_array_equal(loaded.readout.weights, weights)
    np.testing.assert_array_equal(loaded.coefficients.scales, adapter.coefficients.scales)


def test_saving_twice_gives_the_same_bytes(adapter: Adapter, saved: Path, tmp_path: Path) -> None:
    Adapter.load(saved).save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved)


def test_the_folder_holds_json_safetensors_and_a_card_and_no_pickle(saved: Path) -> None:
    assert set(contents(saved)) == FILES
    for name, data in contents(saved).items():
        assert not data.startswith((b"\x80", b"PK")), f"{name} looks like a pickle or a torch archive"
    assert json.loads((saved / "adapter.json").read_text())["format_version"] == FORMAT_VERSION


def test_the_folder_can_be_entered_by_others(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o755


def test_an_adapter_takes_four_bytes_a_number_and_a_kilobyte_of_header(adapter: Adapter, saved: Path) -> None:
    numbers = adapter.context.vectors.size + adapter.coefficients.scales.size
    size = (saved / "adapter.safetensors").stat().st_size
    assert 4 * numbers < size < 4 * numbers + 300
    # 8B of parameters (L=32, d=4096), as in the paper: about a megabyte in float32
    assert 4 * (32 * 2 * 4096 + 32 * 2 * 2) < 1_100_000


def test_the_card_names_labels_model_and_how_to_load_it(saved: Path, backbone: Backbone) -> None:
    card = (saved / "README.md").read_text()
    for part in (
        *tiny.TASK.labels,
        Path(backbone.source).name,
        backbone.fingerprint[:16],
        "Adapter.load",
        "chosen_round",
        "licence",
    ):
        assert part in card, part


def test_probabilities_are_those_of_an_injected_forward_pass(adapter: Adapter, backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    on = adapter.context.on(backbone.device), torch.from_numpy(adapter.coefficients.scales)
    with injected(backbone, *on, np.ones((backbone.layers, 2), dtype=np.bool_)), torch.inference_mode():
        expected = [scorer.label_scores(scorer.encoder.prompts([text]).tokens)[0].softmax(-1).numpy() for text in TEXTS]
    predictions = adapter.classifier(backbone).classify(TEXTS)
    for prediction, row in zip(predictions, expected, strict=True):
        assert list(prediction.probabilities) == list(tiny.TASK.labels)
        np.testing.assert_allclose(list(prediction.probabilities.values()), row, atol=1e-5)
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert prediction.label == tiny.TASK.labels[int(row.argmax())]


def test_classify_loads_the_model_that_the_adapter_names(adapter: Adapter, saved: Path, backbone: Backbone) -> None:
    assert Adapter.load(saved).classify(TEXTS[:2]) == adapter.classifier(backbone).classify(TEXTS[:2])


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources of the models that adapters load, as they load them."""
    sources: list[str] = []

    def load(settings: ModelSettings) -> Backbone:
        sources.append(settings.source)
        return load_backbone(settings)

    monkeypatch.setattr("ifedicl.backbone.load.load_backbone", load)
    return sources


def test_classify_loads_the_model_once_and_again_only_after_release(saved: Path, loads: list[str]) -> None:
    adapter = Adapter.load(saved)
    first = adapter.classify(TEXTS[:2])
    assert adapter.classify(TEXTS[:2]) == first
    assert len(loads) == 1
    adapter.release()
    adapter.release()  # nothing is kept, and that is no fault
    assert adapter.classify(TEXTS[:2]) == first
    assert len(loads) == 2


def test_release_frees_the_model(saved: Path) -> None:
    adapter = Adapter.load(saved)
    adapter.classify(TEXTS[:1])
    model = weakref.ref(adapter._classifier.backbone.model)
    adapter.release()
    gc.collect()
    assert model() is None


def test_a_changed_copy_and_a_pickled_one_keep_no_model(saved: Path, loads: list[str], tmp_path: Path) -> None:
    adapter = Adapter.load(saved)
    adapter.classify(TEXTS[:1])
    moved = adapter.with_model_source(str(tmp_path / "elsewhere"))
    assert "_classifier" not in vars(moved)
    assert len(pickle.dumps(adapter)) < 100_000
    again = pickle.loads(pickle.dumps(adapter))  # noqa: S301 - our own bytes
    assert again.classify(TEXTS[:1]) == adapter.classify(TEXTS[:1])
    assert len(loads) == 2


def test_evaluate_counts_hits_and_averages_the_loss(adapter: Adapter, backbone: Backbone) -> None:
    examples, classifier = tiny.examples(9), adapter.classifier(backbone)
    predictions = classifier.classify([example.text for example in examples])
    evaluation = classifier.evaluate(examples)
    hits = [prediction.label == example.label for prediction, example in zip(predictions, examples, strict=True)]
    assert evaluation.accuracy == pytest.approx(sum(hits) / len(hits))
    own = [np.log(prediction.probabilities[example.label]) for prediction, example in zip(predictions, examples, strict=True)]
    assert evaluation.loss == pytest.approx(-float(np.mean(own)), rel=1e-5)
    assert evaluation.confusion.sum() == len(examples)


def test_progress_adds_up_to_the_number_of_texts(adapter: Adapter, backbone: Backbone) -> None:
    done: list[int] = []
    adapter.classifier(backbone).classify(TEXTS, on_progress=done.append)
    assert sum(done) == len(TEXTS)


def test_the_identity_adapter_is_the_raw_model_exactly(backbone: Backbone) -> None:
    model = ModelSettings(source=backbone.source, device="cpu", dtype="float32")
    identity = replace(
        zero_shot_adapter(backbone, model, tiny.TASK), context=Context(np.ones((backbone.layers, 2, backbone.width), "f4"))
    )
    scorer = Scorer(backbone, tiny.TASK)
    raw = scorer.log_probabilities(scorer.encoder.prompts(TEXTS))
    np.testing.assert_array_equal(identity.classifier(backbone).log_probabilities(TEXTS), raw)


def test_the_model_is_raw_again_after_classifying(adapter: Adapter, backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    before = scorer.log_probabilities(scorer.encoder.prompts(TEXTS))
    changed = adapter.classifier(backbone).log_probabilities(TEXTS)
    np.testing.assert_array_equal(scorer.log_probabilities(scorer.encoder.prompts(TEXTS)), before)
    assert np.abs(changed - before).max() > 1e-3


def test_an_empty_text_is_refused_and_the_model_is_raw_again(adapter: Adapter, backbone: Backbone) -> None:
    with pytest.raises(DataError, match="number 2"):
        adapter.classifier(backbone).classify(["fine", ""])
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_no_texts_give_no_predictions(adapter: Adapter, backbone: Backbone) -> None:
    assert adapter.classifier(backbone).classify([]) == []


def test_another_model_is_refused_by_its_fingerprint(adapter: Adapter, backbone: Backbone) -> None:
    with pytest.raises(FingerprintError, match=r"0000.*calibrate an adapter for this one"):
        replace(adapter, fingerprint="0" * 64).classifier(backbone)


def test_another_model_behind_the_same_name_is_refused(adapter: Adapter, tmp_path: Path, llama_folder: Path) -> None:
    other = shutil.copytree(llama_folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FingerprintError):
        replace(adapter, model=ModelSettings(source=str(other), device="cpu", dtype="float32")).classify(["a text"])


def test_the_version_that_wrote_an_adapter_stands_in_its_header(saved: Path) -> None:
    assert json.loads((saved / "adapter.json").read_text())["ifedicl_version"] == ifedicl.__version__
    resigned(saved, format_version=4, ifedicl_version="9.1")
    with pytest.raises(AdapterError, match=r"version 4; .* \(ifedicl 9\.1 wrote the adapter\)"):
        Adapter.load(saved)


def test_a_single_string_is_no_list_of_texts(adapter: Adapter, backbone: Backbone) -> None:
    with pytest.raises(DataError, match="received a single string; allowed: a list"):
        adapter.classifier(backbone).classify("smoke")
