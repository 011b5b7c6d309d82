"""The forms in which other programs take an adapter, by name. A new form is one function and one line of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ifedicl import files
from ifedicl.adapter import card
from ifedicl.adapter.content import Content
from ifedicl.adapter.export_cards import (
    CHECKPOINT,
    CLASSIFIER,
    GGUF_LORA,
    LORA,
    LORA_CLASSIFIER,
    Usage,
    export_card,
)
from ifedicl.adapter.format import BESIDE, CARD, HEADER, write_files
from ifedicl.backbone.classification import Head, export_classifier, right_padded
from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.export import export_folded
from ifedicl.backbone.gguf_lora import export_gguf_lora
from ifedicl.backbone.licence import terms_of
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lora_export import export_lora, has_bias
from ifedicl.backbone.prompts import PromptEncoder
from ifedicl.backbone.quiet import quiet_transformers
from ifedicl.backbone.turn import Turn
from ifedicl.errors import BackboneError, InputError, TaskError
from ifedicl.kinds.any_task import TEXT_FIELD
from ifedicl.kinds.classify import as_classification

_PROBE = "It was 5 o'clock!"


@dataclass(frozen=True)
class _Export:
    """What a form is written from."""

    content: Content
    backbone: Backbone
    folder: Path
    dtype: str

    @property
    def head(self) -> Head:
        """The classification head. The folder's tokenizer must make the prompts that it was fitted on."""
        content, tokenizer = self.content, self.backbone.tokenizer
        task = as_classification(content.task, "a classification head")
        head = Head.of(self.backbone, task, content.readout)
        whole = tokenizer(
            Turn(tokenizer, content.task, content.model_name).prompt(_PROBE), add_special_tokens=self.adds_special
        )
        (ours,) = Encoder(self.backbone, task).prompts([_PROBE]).tokens
        if tuple(whole["input_ids"]) != ours:
            raise BackboneError(
                f"export: the tokenizer of {content.model_name} adds tokens behind every prompt, where a classification head "
                "reads; allowed: one that adds none. Use the adapter with the model: Adapter.load(folder).classify(texts)"
            )
        return head

    @property
    def adds_special(self) -> bool:
        """Whether the tokenizer adds its special tokens to a prompt; a chat turn has its own."""
        return self.content.task.turn == "raw"


def _checkpoint(export: _Export) -> None:
    export_folded(export.backbone, export.content.context, export.content.coefficients, export.folder, dtype=export.dtype)


def _lora(export: _Export, head: Head | None = None) -> None:
    content = export.content
    export_lora(
        export.backbone,
        content.context,
        content.coefficients,
        export.folder,
        dtype=export.dtype,
        base=content.model.source,
        revision=content.model.revision,
        head=None if head is None else head.weights,
    )


def _gguf_lora(export: _Export) -> None:
    export_gguf_lora(export.backbone, export.content.context, export.content.coefficients, export.folder, dtype=export.dtype)


def _classifier(export: _Export) -> None:
    content = export.content
    export_classifier(
        export.backbone,
        content.context,
        content.coefficients,
        as_classification(content.task, "a classification head"),
        export.head,
        export.folder,
        dtype=export.dtype,
    )


def _lora_classifier(export: _Export) -> None:
    _lora(export, export.head)
    with quiet_transformers():
        right_padded(export.backbone).save_pretrained(export.folder)


FORMS: Mapping[str, tuple[Callable[[_Export], None], Usage]] = MappingProxyType(
    {
        "checkpoint": (_checkpoint, CHECKPOINT),
        "lora": (_lora, LORA),
        "gguf-lora": (_gguf_lora, GGUF_LORA),
        "sequence-classification": (_classifier, CLASSIFIER),
        "lora-sequence-classification": (_lora_classifier, LORA_CLASSIFIER),
    }
)
"""What writes each form, and how its card says to use it."""


def export(content: Content, folder: Path, backbone: Backbone, *, dtype: str, form: str) -> None:
    """As :meth:`ifedicl.adapter.adapter.Adapter.export`, with the adapter's own ``backbone``."""
    if form not in FORMS:
        raise InputError(f"form: received {form!r}; allowed: {', '.join(FORMS)}. Choose one of these")
    if not content.task.samples:
        raise TaskError(
            f"task.kind: received {content.task.kind!r}, whose answers other programs do not compare; allowed for export: "
            "other kinds. Use the adapter itself: Adapter.on_model, ifedicl classify"
        )
    write, usage = FORMS[form]
    terms = terms_of(content.model)
    prompt = Turn(backbone.tokenizer, content.task, content.model_name).prompt(TEXT_FIELD)
    encoder = PromptEncoder(backbone, content.task)
    tokens = {
        name: encoder.ending(answer.removeprefix(content.task.separator)) for name, answer in content.task.samples.items()
    }
    with files.new_folder(folder, mark=f"{BESIDE}/{HEADER}") as temporary:
        write(_Export(content, backbone, temporary, dtype))
        words = export_card(content, terms, dtype, usage, prompt, tokens, has_lora_bias=has_bias(temporary))
        files.write_text(temporary / CARD, words)
        terms.copy_files(temporary)
        write_files(content, temporary / BESIDE, card.card(content))
