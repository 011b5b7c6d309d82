"""An adapter is whole or absent, belongs to one model, and does what its numbers say."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import ifedicl
from ifedicl import files
from ifedicl.adapter import FORMAT_VERSION, Adapter
from ifedicl.backbone.hooks import injected
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.errors import AdapterError, DataError, FingerprintError, StorageError
from ifedicl.runs import zero_shot_adapter
from ifedicl.settings import ModelSettings
from tests.support import tiny

FILES = {"adapter.json", "adapter.safetensors", "README.md"}
TEXTS = [example.text for example in tiny.examples(9)]


@pytest.fixture
def adapter(backbone: Backbone) -> Adapter:
    """Random numbers, strong enough to change predictions."""
    draw = np.random.default_rng(7)
    shape = (backbone.layers, 2)
    return Adapter(
        task=tiny.TASK,
        context=Context(draw.normal(size=(*shape, backbone.width)).astype(np.float32)),
        coefficients=Coefficients(draw.normal(1.0, 0.5, size=(*shape, 2)).astype(np.float32)),
        model=ModelSettings(source=backbone.source, device="cpu", dtype="float32"),
        fingerprint=backbone.fingerprint,
        provenance={"rounds": 3, "chosen_round": 2, "clients": 3},
    )


@pytest.fixture
def saved(adapter: Adapter, tmp_path: Path) -> Path:
    adapter.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def resigned(folder: Path, tensors: dict[str, Any] | None = None, **header: Any) -> None:
    """Change header fields or tensors and make the checksum fit again."""
    if tensors is not None:
        save_file(tensors, folder / "adapter.safetensors")
    digest = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    values = {**json.loads((folder / "adapter.json").read_text()), "tensors_sha256": digest, **header}
    (folder / "adapter.json").write_text(json.dumps(values))


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

    monkeypatch.setattr("ifedicl.adapter.adapter.load_backbone", load)
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
    model = weakref.ref(adapter._kept.backbone.model)
    adapter.release()
    gc.collect()
    assert model() is None


def test_a_changed_copy_and_a_pickled_one_keep_no_model(saved: Path, loads: list[str], tmp_path: Path) -> None:
    adapter = Adapter.load(saved)
    adapter.classify(TEXTS[:1])
    moved = adapter.with_model_source(str(tmp_path / "elsewhere"))
    assert "_kept" not in vars(moved)
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
    resigned(saved, format_version=3, ifedicl_version="9.1")
    with pytest.raises(AdapterError, match=r"version 3; .* \(ifedicl 9\.1 wrote the adapter\)"):
        Adapter.load(saved)


def test_an_absent_folder_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"nowhere is not an adapter.*RUN/adapter"):
        Adapter.load(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(AdapterError, match="file"):
        Adapter.load(tmp_path / "file")


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named_with_a_remedy(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(AdapterError, match=rf"{name} is missing\. Give the folder"):
        Adapter.load(saved)


def test_tensors_cut_short_anywhere_are_refused_with_a_remedy(saved: Path) -> None:
    whole = (saved / "adapter.safetensors").read_bytes()
    for length in (0, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        (saved / "adapter.safetensors").write_bytes(whole[:length])
        with pytest.raises(AdapterError, match=r"torn.*copy the adapter again"):
            Adapter.load(saved)


def test_one_changed_byte_of_the_tensors_is_noticed(saved: Path) -> None:
    data = bytearray((saved / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "adapter.safetensors").write_bytes(data)
    with pytest.raises(AdapterError, match="torn or not the one written"):
        Adapter.load(saved)


def test_a_header_cut_short_anywhere_is_refused(saved: Path) -> None:
    whole = (saved / "adapter.json").read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        (saved / "adapter.json").write_bytes(whole[:length])
        with pytest.raises(AdapterError, match="copy the adapter again"):
            Adapter.load(saved)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"adapter"'])
def test_a_header_that_is_no_object_is_refused(saved: Path, text: str) -> None:
    (saved / "adapter.json").write_text(text)
    with pytest.raises(AdapterError, match="version None"):
        Adapter.load(saved)


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_format_version_is_refused_with_the_one_that_is_read(saved: Path, version: object) -> None:
    resigned(saved, format_version=version)
    with pytest.raises(AdapterError, match=rf"version {version!r}; this ifedicl reads 1 and 2\. Update ifedicl"):
        Adapter.load(saved)


@pytest.mark.parametrize("field", ["task", "model", "fingerprint", "provenance"])
def test_a_header_without_a_field_is_refused(saved: Path, field: str) -> None:
    values = json.loads((saved / "adapter.json").read_text())
    del values[field]
    (saved / "adapter.json").write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="do not fit each other"):
        Adapter.load(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", 7),
        ("model", "a name"),
        ("fingerprint", 7),
        ("fingerprint", ["a"]),
        ("provenance", ["rounds"]),
        ("provenance", "text"),
        ("readout", 7),
        ("readout", {"pooled_layer": "2"}),
        ("readout", [1]),
    ],
)
def test_a_header_with_a_field_of_another_type_is_refused(saved: Path, field: str, value: object) -> None:
    header: dict[str, Any] = {field: value}
    resigned(saved, **header)
    with pytest.raises(AdapterError, match=rf"do not fit each other \((?s:.*){field}"):
        Adapter.load(saved)


@pytest.mark.parametrize("first_layer", ["1", 1.5, [1], -1, None, True])
def test_a_first_layer_that_is_no_number_of_a_layer_is_refused(saved: Path, first_layer: object) -> None:
    resigned(saved, format_version=2, first_layer=first_layer)
    with pytest.raises(AdapterError, match=r"do not fit each other \((?s:.*)first_layer"):
        Adapter.load(saved)


def test_a_header_nested_too_deep_to_be_read_is_refused(saved: Path) -> None:
    (saved / "adapter.json").write_text("[" * 100_000)
    with pytest.raises(AdapterError, match="copy the adapter again"):
        Adapter.load(saved)


def test_tensors_under_other_names_are_refused(saved: Path) -> None:
    resigned(saved, {"weights": np.zeros(3, dtype=np.float32)})
    with pytest.raises(AdapterError, match="do not fit each other"):
        Adapter.load(saved)


@pytest.mark.parametrize(
    "change",
    [lambda v: v[:2], lambda v: v[0], lambda v: v[..., None], lambda v: v.astype(np.int64)],
    ids=["a layer short", "no layers", "an axis too many", "whole numbers"],
)
def test_vectors_that_do_not_fit_the_coefficients_are_refused(saved: Path, change: Callable[[Any], Any]) -> None:
    tensors = load_file(saved / "adapter.safetensors")
    resigned(saved, {**tensors, "vectors.mean": np.ascontiguousarray(change(tensors["vectors.mean"]))})
    with pytest.raises(AdapterError):
        Adapter.load(saved)


def _no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_permission(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def fail_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, except that call number ``call`` finds the disk full."""
    calls = [0]

    def function(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return _no_space() if calls[0] == call else real(*args, **kwargs)

    return function


def test_files_have_the_permissions_that_the_umask_gives_and_private_ones_are_for_their_owner(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode
    files.write_bytes(tmp_path / "private", b"", private=True)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", [1, 2, 3], ids=["tensors", "header", "card"])
def test_a_full_disk_is_named_and_the_older_adapter_stays_whole(
    adapter: Adapter, saved: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    before = contents(saved)
    newer = replace(adapter, context=Context(adapter.context.vectors + 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_at(call, os.fsync))
        with pytest.raises(StorageError, match=r"disk is full.*Free some space"):
            newer.save(saved)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"], "something was left behind"
    newer.save(saved)
    np.testing.assert_array_equal(Adapter.load(saved).context.vectors, newer.context.vectors)


def test_an_adapter_is_replaced_without_leaving_anything_behind(adapter: Adapter, saved: Path) -> None:
    replace(adapter, context=Context(adapter.context.vectors + 1)).save(saved)
    np.testing.assert_array_equal(Adapter.load(saved).context.vectors, adapter.context.vectors + 1)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_the_older_adapter_comes_back_when_the_new_one_cannot_take_its_name(
    adapter: Adapter, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Three files, then the older folder moves aside, then the new one takes its name.
        patch.setattr(os, "replace", fail_at(5, os.replace))
        with pytest.raises(StorageError):
            replace(adapter, context=Context(adapter.context.vectors + 1)).save(saved)
    np.testing.assert_array_equal(Adapter.load(saved).context.vectors, adapter.context.vectors)


@pytest.mark.parametrize(("module", "function"), [(tempfile, "mkdtemp"), (os, "open")], ids=["folder", "file"])
def test_an_unwritable_place_is_named_and_the_older_adapter_stays_whole(
    adapter: Adapter, saved: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    before = contents(saved)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, _no_permission)
        with pytest.raises(StorageError, match=r"no permission.*Choose a folder of your own"):
            replace(adapter, context=Context(adapter.context.vectors + 1)).save(saved)
    assert contents(saved) == before


def test_a_parent_that_is_a_file_is_named(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        adapter.save(tmp_path / "file" / "adapter")


def test_somebody_elses_folder_is_left_alone(adapter: Adapter, tmp_path: Path) -> None:
    folder, file = tmp_path / "thesis", tmp_path / "note"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("a note")
    for place in (folder, file):
        with pytest.raises(StorageError, match="something else stands there"):
            adapter.save(place)
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert file.read_text() == "a note"
    (tmp_path / "empty").mkdir()
    adapter.save(tmp_path / "empty")
    adapter.save(tmp_path / "empty")
    assert Adapter.load(tmp_path / "empty").fingerprint == adapter.fingerprint


def test_a_single_string_is_no_list_of_texts(adapter: Adapter, backbone: Backbone) -> None:
    with pytest.raises(DataError, match="give a list"):
        adapter.classifier(backbone).classify("smoke")
