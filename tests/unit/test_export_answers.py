"""An adapter that writes is exported as a checkpoint and as a LoRA; plain libraries write the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.errors import TaskError
from ifedicl.kinds.passages import Passage
from tests.support.exports import TEXTS, run_card, servable
from tests.support.passages import TASK

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it


@pytest.fixture
def writer(backbone: Backbone, llama_folder: Path) -> Adapter:
    """An adapter of Γ alone that writes something else than the raw model."""
    adapter = replace(servable(backbone, source=str(llama_folder)), task=TASK, readout=None)
    raw = replace(adapter, coefficients=adapter.coefficients.identity(adapter.coefficients.form))
    ours, theirs = ([answer.value for answer in one.on_model(backbone).answers(asked())] for one in (adapter, raw))
    assert ours != theirs
    return adapter


def asked() -> list[Passage]:
    return [Passage(text) for text in TEXTS]


@pytest.mark.parametrize("form", ["checkpoint", "lora"])
def test_the_cards_code_writes_what_the_adapter_writes(writer: Adapter, backbone: Backbone, tmp_path: Path, form: str) -> None:
    writer.export(tmp_path / "out", backbone, form=form)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The model writes the answer behind the prompt" in card
    assert "label words" not in card
    for example, answer in zip(asked(), writer.on_model(backbone).answers(asked()), strict=True):
        assert run_card(tmp_path / "out", example.text).removesuffix("\n") == answer.value
    again = Adapter.load(tmp_path / "out" / "ifedicl").on_model(backbone).answers(asked())
    assert [answer.value for answer in again] == [answer.value for answer in writer.on_model(backbone).answers(asked())]


@pytest.mark.parametrize("form", ["sequence-classification", "lora-sequence-classification"])
def test_an_answer_of_text_has_no_classification_head(writer: Adapter, backbone: Backbone, tmp_path: Path, form: str) -> None:
    with pytest.raises(TaskError, match="received 'extract'; allowed for a classification head: 'classify'"):
        writer.export(tmp_path / "out", backbone, form=form)
    assert not (tmp_path / "out").exists()
