"""Model cards of exports, in Markdown: what the folder is, and a few lines of code that use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ifedicl import files
from ifedicl.adapter.card import card, front_matter, terms_text
from ifedicl.adapter.content import Content
from ifedicl.adapter.format import BESIDE
from ifedicl.backbone.licence import Terms
from ifedicl.kinds.any_task import TEXT_FIELD, AnyTask
from ifedicl.kinds.extraction import ExtractTask


@dataclass(frozen=True)
class Usage:
    """``library`` and ``pipeline`` of a form's front matter, and the ``template`` of its card's section."""

    library: str
    pipeline: str
    template: str


@dataclass(frozen=True)
class PlainUse:
    """How a plain language model answers.

    Attributes:
        how: in words.
        template: of its code.
        values: in the template.
        request: what a request to llama.cpp's server says beside the prompt.
    """

    how: str
    template: str
    values: Mapping[str, str]
    request: Mapping[str, object]


CHECKPOINT = Usage("transformers", "text-generation", "card-checkpoint.md")
LORA = Usage("peft", "text-generation", "card-lora.md")
GGUF_LORA = Usage("llama.cpp", "text-generation", "card-gguf-lora.md")
CLASSIFIER = Usage("transformers", "text-classification", "card-sequence-classification.md")
LORA_CLASSIFIER = Usage("peft", "text-classification", "card-lora-sequence-classification.md")
_BIAS = (
    "The projections of this family have biases, so `B` has one, too (`lora_bias`): `peft` applies it, vLLM and llama.cpp do "
    "not."
)
_MOST_TOKENS = 64
"""More than any label word has; the grammar ends the answer."""


def _scored(task: AnyTask) -> PlainUse:
    return PlainUse(
        "Compare the probabilities of the answers behind the prompt, or let a server choose among them (a grammar, a "
        "structured choice). Among all words the answers may be rare: a list of the most probable tokens need not hold them.",
        "use-scores.txt",
        {"words": repr(dict(task.samples)), "labels": repr(list(task.samples))},
        {"n_predict": _MOST_TOKENS, "grammar": "root ::= " + " | ".join(map(_literal, task.samples.values()))},
    )


def _written(task: ExtractTask) -> PlainUse:
    return PlainUse(
        "The model writes the answer behind the prompt, greedily. It ends at a line break or at an end token.",
        "use-writing.txt",
        {"most": str(task.most_answer_tokens + 1)},
        {"n_predict": task.most_answer_tokens + 1, "stop": ["\n"]},
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
    request = {"prompt": prompt.replace(TEXT_FIELD, "a text"), "temperature": 0, **use.request}
    section = files.template(
        usage.template,
        how=use.how,
        use=files.template(use.template, **use.values),
        dtype=dtype,
        bias=_BIAS if has_lora_bias else "",
        prompt=repr(prompt),
        base=_arguments(content.model.source),
        special=repr(task.turn == "raw"),
        file=_gguf_file(content.model.source),
        request=shlex.quote(json.dumps(request, ensure_ascii=False)),
        **use.values,
    )
    about = card(content, f'Adapter.load("this/folder/{BESIDE}")')
    return front_matter(content, terms, usage.library, usage.pipeline) + about + "\n" + section + terms_text(terms)


def _arguments(source: str) -> str:
    """The arguments with which transformers loads a model."""
    file = Path(source).expanduser()
    return f"{str(file.parent)!r}, gguf_file={file.name!r}" if file.suffix == ".gguf" else repr(source)


def _gguf_file(source: str) -> str:
    """The base model's GGUF file, as a word of a shell."""
    return shlex.quote(source if source.endswith(".gguf") else f"{Path(source).name}.gguf")


def _literal(word: str) -> str:
    """A word as a literal of a llama.cpp grammar, whose escapes are those of JSON."""
    return json.dumps(word, ensure_ascii=False)
