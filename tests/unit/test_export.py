"""A folded checkpoint is read by plain transformers and says what the adapter says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from ifedicl.adapter import Adapter
from ifedicl.backbone.export import STORAGE
from ifedicl.backbone.families import FAMILIES
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.cli import app
from ifedicl.core.readout import Readout
from ifedicl.errors import BackboneError, ConfigError, DownloadError, StorageError
from tests.support import tiny

ROW = torch.tensor([[5, 17, 3, 99, 250, 42, 8, 31, 77, 12]])
STORED = [case for case, (family, _) in sorted(tiny.FAMILY_CASES.items()) if family in STORAGE and case != "mistral-sliding"]


@torch.no_grad()
def _logs(model: torch.nn.Module) -> torch.Tensor:
    logs: torch.Tensor = model(input_ids=ROW).logits.float().log_softmax(dim=-1)
    return logs


@pytest.mark.parametrize("case", STORED)
@pytest.mark.parametrize("rank", [0, 4])
def test_every_family_that_can_store_it_gives_the_same_log_probabilities(case: str, rank: int, tmp_path: Path) -> None:
    backbone = tiny.family_backbone(case)
    adapter, plain = tiny.drawn_adapter(backbone, rank=rank), _logs(backbone.model)
    with applied(backbone, adapter.context, adapter.coefficients):
        expected = _logs(backbone.model)
    adapter.export(tmp_path / "out", backbone)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(_logs(reloaded), expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(_logs(backbone.model), plain, rtol=0, atol=0)  # the model at hand is left as it was


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2"])
def test_a_model_whose_head_is_its_embedding_is_exported_as_one(family: str, tmp_path: Path) -> None:
    backbone = tiny.load(tiny.save_model(tmp_path / "model", family, tie_word_embeddings=True))
    adapter = tiny.drawn_adapter(backbone, rank=4, source=str(tmp_path / "model"))
    with applied(backbone, adapter.context, adapter.coefficients):
        expected = _logs(backbone.model)
    adapter.export(tmp_path / "out", backbone)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert reloaded.config.tie_word_embeddings
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight
    torch.testing.assert_close(reloaded.get_input_embeddings().weight, backbone.model.get_input_embeddings().weight)
    torch.testing.assert_close(_logs(reloaded), expected, rtol=1e-4, atol=1e-4)


def test_every_family_is_stored_or_refused_with_the_way_that_is_left(tmp_path: Path) -> None:
    refused = {family for family, _ in tiny.FAMILY_CASES.values()} - set(STORAGE)
    assert refused | set(STORAGE) == set(FAMILIES)
    for case, (family, _) in tiny.FAMILY_CASES.items():
        if family in refused or case == "mistral-sliding":
            backbone = tiny.family_backbone(case)
            with pytest.raises(BackboneError, match="with the model"):
                tiny.drawn_adapter(backbone, rank=0).export(tmp_path / case, backbone)
            assert not (tmp_path / case).exists()


def test_a_mistral_that_looks_back_everywhere_is_stored_as_a_llama(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "mistral", "mistral", sliding_window=None)
    backbone = tiny.load(folder)
    adapter = tiny.drawn_adapter(backbone, rank=4, source=str(folder))
    with applied(backbone, adapter.context, adapter.coefficients):
        expected = _logs(backbone.model)
    adapter.export(tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "llama"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(_logs(reloaded), expected, rtol=1e-4, atol=1e-4)


def test_the_folder_carries_card_licence_tokenizer_and_the_adapter_with_its_readout(
    backbone: Backbone, llama_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in llama_folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "LICENSE").write_text("of the base model")
    (base / "secret.txt").write_text("of somebody")
    readout = Readout(np.ones((2, backbone.width + 3), dtype=np.float32))
    adapter = replace(tiny.drawn_adapter(backbone, rank=0, source=str(base)), readout=readout)
    adapter.export(tmp_path / "out", backbone)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md", "ifedicl"} <= names
    assert "secret.txt" not in names
    assert "folded into the weights" in (tmp_path / "out" / "README.md").read_text()
    beside = Adapter.load(tmp_path / "out" / "ifedicl")
    assert beside.readout is not None
    adapter.export(tmp_path / "out", backbone)  # an earlier export may be replaced
    with pytest.raises(StorageError, match="it is something else"):
        adapter.export(base, backbone)


def test_the_command_writes_a_checkpoint(backbone: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    tiny.drawn_adapter(backbone, rank=4, source=str(llama_folder)).save(tmp_path / "adapter")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert "wrote" in done.output
    assert "shards" not in done.output  # no bars where nobody looks
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_the_licence_is_found_where_the_model_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.save_model(tmp_path / "base")
    (base / "LICENSE").write_text("of the base model")
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.drawn_adapter(tiny.load(base), rank=0, source="elsewhere").save(tmp_path / "adapter")
    for number, place in enumerate((str(base), "~/base")):
        out = tmp_path / f"out{number}"
        done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(out), "--model", place])
        assert done.exit_code == 0, done.output
        assert (out / "LICENSE").read_text() == "of the base model"


# Terms, and the hub


class FakeHub:
    """Records the requests, and refuses if it is set to."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    refusal: ClassVar[Exception | None] = None

    def create_repo(self, repo_id: str, **options: object) -> None:
        self.calls.append((repo_id, options))

    def upload_folder(self, **options: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        folder = Path(str(options["folder_path"]))
        self.calls.append((str(options["repo_id"]), {"files": {file.name for file in folder.iterdir()}}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    return FakeHub


@pytest.fixture
def licensed(llama_folder: Path, tmp_path: Path) -> Path:
    """A base model with a licence, and an adapter of it in ``adapter`` beside it."""
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    (base / "LICENSE.txt").write_text("its text")
    (base / "USE_POLICY.md").write_text("its policy")
    (base / "README.md").write_text("---\nlicense: llama3.2\n---\n\n# A model\n")
    tiny.drawn_adapter(tiny.load(base), source=str(base)).save(tmp_path / "adapter")
    return base


def test_the_card_carries_licence_naming_and_figures(licensed: Path, tmp_path: Path) -> None:
    gate = {"open": True, "examples": 40, "accuracy": 0.75, "zero_shot_accuracy": 0.5}
    adapter = replace(Adapter.load(tmp_path / "adapter"), provenance={"gate": gate, "rounds": 12})
    adapter.export(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    facts = metadata_load(tmp_path / "out" / "README.md")
    assert facts is not None
    assert facts["license"] == "llama3.2"
    assert "base_model" not in facts  # it lies in a folder here
    for words in (
        "Built with Llama",
        "`LICENSE.txt`, `USE_POLICY.md`",
        "75.0% of 40 held-out examples",
        '"rounds": 12',
        "limits:",
    ):
        assert words in card
    assert (tmp_path / "out" / "USE_POLICY.md").read_text() == "its policy"


def test_a_base_model_without_a_licence_is_said_to_have_none(backbone: Backbone, llama_folder: Path, tmp_path: Path) -> None:
    tiny.drawn_adapter(backbone, source=str(llama_folder)).export(tmp_path / "out", backbone)
    assert "not named there; look it up" in (tmp_path / "out" / "README.md").read_text()


def test_pushing_shows_the_terms_and_asks_first(licensed: Path, hub: type[FakeHub], tmp_path: Path) -> None:
    command = ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--hub", "us/Llama-moods"]
    done = CliRunner().invoke(app, command, input="n\n")
    assert done.exit_code == 0, done.output
    assert "Built with Llama" in done.output
    assert "nothing was pushed" in done.output
    assert hub.calls == []
    done = CliRunner().invoke(app, command, input="y\n")
    assert "pushed to us/Llama-moods" in done.output
    (made, options), (sent, content) = hub.calls
    assert (made, options) == ("us/Llama-moods", {"private": True, "exist_ok": True})
    assert sent == "us/Llama-moods"
    assert {"model.safetensors", "README.md", "LICENSE.txt", "USE_POLICY.md", "ifedicl"} <= content["files"]


def test_a_name_that_the_licence_forbids_is_refused_before_any_work(licensed: Path, hub: type[FakeHub], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--hub", "us/moods", "--yes"])
    assert isinstance(done.exception, ConfigError)
    assert "a name that begins with 'Llama'" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_refuses_leaves_the_checkpoint_and_says_what_to_do(
    licensed: Path, hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "refusal", OSError("401"))
    command = ["export", str(tmp_path / "adapter"), str(tmp_path / "out"), "--hub", "us/Llama-moods", "--yes", "--public"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, DownloadError)
    assert "hf auth login" in str(done.exception)
    assert hub.calls[0][1]["private"] is False
    assert (tmp_path / "out" / "model.safetensors").is_file()
