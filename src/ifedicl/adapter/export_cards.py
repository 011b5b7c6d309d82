"""Model cards of exports, in Markdown: what the folder is, and a few lines of code that use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ifedicl import files
from ifedicl.adapter.card import card, front_matter, terms_text
from ifedicl.adapter.content import Content
from ifedicl.adapter.format import BESIDE
from ifedicl.backbone.licence import Terms


@dataclass(frozen=True)
class Usage:
    """``library`` and ``pipeline`` of a form's front matter, and the ``template`` of its card's section."""

    library: str
    pipeline: str
    template: str


CHECKPOINT = Usage("transformers", "text-generation", "card-checkpoint.md")
LORA = Usage("peft", "text-generation", "card-lora.md")
CLASSIFIER = Usage("transformers", "text-classification", "card-sequence-classification.md")
LORA_CLASSIFIER = Usage("peft", "text-classification", "card-lora-sequence-classification.md")
_BIAS = (
    "The projections of this family have biases, so `B` has one, too (`lora_bias`): `peft` applies it, vLLM and llama.cpp do "
    "not."
)


def export_card(content: Content, terms: Terms, dtype: str, usage: Usage, prompt: str, *, has_lora_bias: bool) -> str:
    """The card of an export.

    Args:
        content: the adapter.
        terms: of the base model.
        dtype: of the stored weights.
        usage: of its form.
        prompt: the whole prompt, with its chat turn, around ``{text}``.
        has_lora_bias: whether it is a LoRA with biases.
    """
    task = content.task
    section = files.template(
        usage.template,
        dtype=dtype,
        bias=_BIAS if has_lora_bias else "",
        prompt=repr(prompt),
        words=repr(dict(task.samples)),
        labels=repr(list(task.samples)),
        base=_arguments(content.model.source),
        special=repr(task.turn == "raw"),
    )
    about = card(content, f'Adapter.load("this/folder/{BESIDE}")')
    return front_matter(content, terms, usage.library, usage.pipeline) + about + "\n" + section + terms_text(terms)


def _arguments(source: str) -> str:
    """The arguments with which transformers loads a model."""
    file = Path(source).expanduser()
    return f"{str(file.parent)!r}, gguf_file={file.name!r}" if file.suffix == ".gguf" else repr(source)
