"""Models of the hub: faults named with a remedy, and neither code nor pickles asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ifedicl.backbone.load import load_backbone
from ifedicl.errors import (
    BackboneError,
    DownloadError,
)
from ifedicl.settings import ModelSettings
from tests.support.checkpoints import raising

# The hub


def answer() -> Any:
    """As much of a response as the hub's errors look at, whichever library it came from."""
    return SimpleNamespace(headers={}, request=None, status_code=500)


MISSING = {
    "no such id": RepositoryNotFoundError("404", response=answer()),
    "gated": GatedRepoError("403", response=answer()),
    "no such revision": RevisionNotFoundError("404", response=answer()),
    "no id at all": HFValidationError("bad id"),
}
CUT = {
    "no network": LocalEntryNotFoundError("offline"),
    "server": HfHubHTTPError("503", response=answer()),
    "interrupted": ConnectionResetError("connection reset by peer"),
    "timeout": TimeoutError("timed out"),
    "disk": OSError(28, "No space left on device"),
    "another library": RuntimeError("peer closed connection without sending complete message body"),
}


@pytest.mark.parametrize("error", MISSING.values(), ids=MISSING)
def test_a_model_that_the_hub_does_not_have_is_named_with_a_remedy(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(BackboneError, match=r"'owner/nothing' \(revision v9\).*Check the spelling.*hf auth login"):
        load_backbone(ModelSettings(source="owner/nothing", revision="v9", device="cpu"))


@pytest.mark.parametrize("error", CUT.values(), ids=CUT)
def test_a_download_that_is_cut_short_can_be_taken_up_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(DownloadError, match=r"owner/model: the download failed.*run the same command again"):
        load_backbone(ModelSettings(source="owner/model", device="cpu"))


def test_a_folder_that_does_not_exist_is_not_mistaken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no such folder"):
        load_backbone(ModelSettings(source=str(tmp_path / "nowhere"), device="cpu"))


def test_no_code_and_no_pickle_is_ever_asked_of_the_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(source: str, **options: Any) -> str:
        asked.update(options, source=source)
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_backbone(ModelSettings(source="owner/model", revision="v1", device="cpu", dtype="float32"))
    assert (asked["source"], asked["revision"], loaded.source) == ("owner/model", "v1", "owner/model")
    offered = [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja", "tokenizer.model", "generation_config.json",
        "pytorch_model.bin", "modeling_own.py", "model.pt", "training_args.bin", "model.onnx", "tokenizer.pkl",
    ]  # fmt: skip
    taken = list(huggingface_hub.utils.filter_repo_objects(offered, allow_patterns=asked["allow_patterns"]))
    assert taken[:10] == offered[:10]
    assert [name for name in taken[10:] if not name.startswith("tokenizer")] == []
