"""Model cards of exports, in Markdown: what the folder is, and a few lines of code that use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ifedicl import files
from ifedicl.adapter.card import card, front_matter, terms_text
from ifedicl.adapter.content import Content
from ifedicl.adapter.format import BESIDE
from ifedicl.backbone.licence import Terms
from ifedicl.kinds.any_task import TEXT_FIELD, AnyTask
from ifedicl.kinds.extraction import ExtractTask

Tokens: TypeAlias = Mapping[str, tuple[int, ...]]
"""The tokens of answers, by their names; none where a tokenizer joins an answer with some prompts."""


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
_RAISED = 100.0
"""Added to the logits of label words, so that no other token is chosen."""


def _scored(task: AnyTask, tokens: Tokens) -> PlainUse:
    single = {label: of_word[0] for label, of_word in tokens.items() if len(of_word) == 1}
    how = (
        "Compare the probabilities of the answers behind the prompt. Among all words they may be rare: a list of the most "
        "probable tokens need not hold them. "
    )
    if len(single) == len(task.samples):
        how += (
            f"For a server: the answers are the tokens {single}, and nothing else may be chosen (vLLM: `allowed_token_ids`, "
            "llama.cpp: `logit_bias`; one token is asked for). A grammar or a structured choice is not the same: it also "
            "allows tokens that only begin an answer."
        )
        request: dict[str, object] = {"n_predict": 1, "logit_bias": [[token, _RAISED] for token in single.values()]}
    else:
        how += (
            "A server can be held to them by a grammar or a structured choice, but goes token by token, and tokens that only "
            "begin an answer count: its choice can differ."
        )
        literals = (json.dumps(word, ensure_ascii=False) for word in task.samples.values())  # the grammar's escapes are JSON's
        request = {"n_predict": _MOST_TOKENS, "grammar": "root ::= " + " | ".join(literals)}
    values = {"words": repr(dict(task.samples)), "labels": repr(list(task.samples))}
    return PlainUse(how, "use-scores.txt", values, request)


def _written(task: ExtractTask, _tokens: Tokens) -> PlainUse:
    return PlainUse(
        "The model writes the answer behind the prompt, greedily. It ends at a line break or at an end token.",
        "use-writing.txt",
        {"most": str(task.most_answer_tokens + 1)},
        {"n_predict": task.most_answer_tokens + 1, "stop": ["\n"]},
    )


_PLAIN_USES: Mapping[type[AnyTask], Callable[..., PlainUse]] = {ExtractTask: _written}
"""How a plain model answers tasks of kinds whose answers are not scored."""


def export_card(
    content: Content, terms: Terms, dtype: str, usage: Usage, prompt: str, tokens: Tokens, *, has_lora_bias: bool
) -> str:
    """The card of an export.

    Args:
        content: the adapter.
        terms: of the base model.
        dtype: of the stored weights.
        usage: of its form.
        prompt: the whole prompt, with its chat turn, around ``{text}``.
        tokens: of the answers by name, behind the prompt.
        has_lora_bias: whether it is a LoRA with biases.
    """
    task = content.task
    use = _PLAIN_USES.get(type(task), _scored)(task, tokens)
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
