"""What tokenizers add at the ends of a prompt: each token once at its beginning, none between prompt and label word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.load import Backbone
from ifedicl.errors import TaskError
from ifedicl.kinds.classify import Task
from tests.support import tiny

TEXTS = ["warm soup", "a <stop> sign", *tiny.SENTENCES[:2]]
CHAT = "{{ bos_token }}{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}Answer:"


def tokenizer(form: str, *, chat: str | None = None) -> PreTrainedTokenizerFast:
    """One that adds tokens as ``form`` says, in which ``$A`` is the prompt."""
    made = tiny.tokenizer()
    made.add_special_tokens({"bos_token": "<go>", "eos_token": "<stop>"})
    special = [(name, int(made.convert_tokens_to_ids(name))) for name in ("<go>", "<stop>", "<pad>")]
    made.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=special)
    made.chat_template = chat
    return made


def encoder(backbone: Backbone, made: Any, **task: Any) -> Encoder:
    return Encoder(replace(backbone, tokenizer=made), Task.model_validate({**tiny.TASK.model_dump(), **task}))


@pytest.mark.parametrize("task", [{}, {"template": "{text}"}, {"label_words": ("good food", "bad")}], ids=str)
@pytest.mark.parametrize(
    ("form", "open_form"),
    [("$A <stop>", "$A"), ("<go> $A <stop>", "<go> $A"), ("<pad> <go> $A <stop> <pad>", "<pad> <go> $A")],
)
def test_an_end_that_the_tokenizer_adds_does_not_stand_between_prompt_and_label_word(
    backbone: Backbone, form: str, open_form: str, task: dict[str, Any]
) -> None:
    closed, open_ = encoder(backbone, tokenizer(form), **task), encoder(backbone, tokenizer(open_form), **task)
    assert closed.prompts(TEXTS) == open_.prompts(TEXTS)
    assert closed.tree == open_.tree


def test_labels_behind_such_a_prompt_have_the_probabilities_of_the_open_one(backbone: Backbone) -> None:
    adapter = tiny.drawn_adapter(backbone)
    closed, open_ = (
        adapter.classifier(replace(backbone, tokenizer=tokenizer(form))).log_probabilities(TEXTS[:1] + TEXTS[2:])
        for form in ("$A <pad>", "$A")
    )
    np.testing.assert_array_equal(closed, open_)


@pytest.mark.parametrize("padding", ["<stop>", None])
def test_a_padding_token_that_is_the_end_token_or_none_changes_no_label(backbone: Backbone, padding: str | None) -> None:
    made = tokenizer("$A")
    made.pad_token = padding
    texts = [TEXTS[0], " ".join(tiny.SENTENCES[:3]), "x"]
    classifier = tiny.drawn_adapter(backbone).classifier(replace(backbone, tokenizer=made))
    alone = np.concatenate([classifier.log_probabilities([text]) for text in texts])
    np.testing.assert_allclose(classifier.log_probabilities(texts), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("form", "begins"), [("<go> $A", "<go>"), ("<pad> <go> $A", "<pad><go>")])
def test_a_template_that_begins_with_what_the_tokenizer_adds_is_refused_by_name(
    backbone: Backbone, form: str, begins: str
) -> None:
    with pytest.raises(
        TaskError, match=f"task.template: it begins with {begins}, which the tokenizer of .* adds itself.*Remove"
    ):
        encoder(backbone, tokenizer(form), template=begins + tiny.TASK.template)


@pytest.mark.parametrize(
    ("form", "chat", "times"), [("$A", None, 1), ("<go> $A", CHAT, 1), ("<go> $A <stop>", CHAT, 1), ("$A", CHAT, 1)]
)
def test_a_beginning_that_only_one_of_both_writes_stands_there_once(
    backbone: Backbone, form: str, chat: str | None, times: int
) -> None:
    made = tokenizer(form, chat=chat)
    task = {"turn": "chat", "separator": ""} if chat else {"template": "<go>" + tiny.TASK.template}
    (prompt,) = encoder(backbone, made, **task).prompts(TEXTS[:1]).tokens
    assert prompt.count(made.bos_token_id) == times
    assert prompt[0] == made.bos_token_id
    assert made.eos_token_id not in prompt
