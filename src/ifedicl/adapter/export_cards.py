"""Model cards of exports, in Markdown: what the folder is, and a few lines of code that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ifedicl import files
from ifedicl.adapter.card import card, front_matter, terms_text
from ifedicl.adapter.content import Content
from ifedicl.adapter.format import BESIDE
from ifedicl.backbone.licence import Terms
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.extraction import ExtractTask


@dataclass(frozen=True)
class Usage:
    """``library`` and ``pipeline`` of a form's front matter, and the ``template`` of its card's section."""

    library: str
    pipeline: str
    template: str


@dataclass(frozen=True)
class PlainUse:
    """How a plain language model answers: in words, and the template of its code with the values in it."""

    how: str
    template: str
    values: Mapping[str, str]


CHECKPOINT = Usage("transformers", "text-generation", "card-checkpoint.md")
LORA = Usage("peft", "text-generation", "card-lora.md")
CLASSIFIER = Usage("transformers", "text-classification", "card-sequence-classification.md")
LORA_CLASSIFIER = Usage("peft", "text-classification", "card-lora-sequence-classification.md")
_BIAS = (
    "The projections of this family have biases, so `B` has one, too (`lora_bias`): `peft` applies it, vLLM and llama.cpp do "
    "not."
)


def _scored(task: AnyTask) -> PlainUse:
    return PlainUse(
        "Compare the probabilities of the answers behind the prompt, or let a server choose among them (a grammar, a "
        "structured choice). Among all words the answers may be rare: a list of the most probable tokens need not hold them.",
        "use-scores.txt",
        {"words": repr(dict(task.samples)), "labels": repr(list(task.samples))},
    )


def _written(task: ExtractTask) -> PlainUse:
    return PlainUse(
        "The model writes the answer behind the prompt, greedily. It ends at a line break or at an end token.",
        "use-writing.txt",
        {"most": str(task.most_answer_tokens + 1)},
    )


_PLAIN_USES: Mapping[type[AnyTask], Callable[..., PlainUse]] = {ExtractTask: _written}
"""How a plain model answers tasks of kinds whose answers are not scored."""


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
    use = _PLAIN_USES.get(type(task), _scored)(task)
    section = files.template(
        usage.template,
        how=use.how,
        use=files.template(use.template, **use.values),
        dtype=dtype,
        bias=_BIAS if has_lora_bias else "",
        prompt=repr(prompt),
        base=_arguments(content.model.source),
        special=repr(task.turn == "raw"),
        **use.values,
    )
    about = card(content, f'Adapter.load("this/folder/{BESIDE}")')
    return front_matter(content, terms, usage.library, usage.pipeline) + about + "\n" + section + terms_text(terms)


def _arguments(source: str) -> str:
    """The arguments with which transformers loads a model."""
    file = Path(source).expanduser()
    return f"{str(file.parent)!r}, gguf_file={file.name!r}" if file.suffix == ".gguf" else repr(source)
