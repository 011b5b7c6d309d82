"""Answers of text: the loss is that of transformers on the same tokens, and what is written is what plain passes write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ifedicl.adapter import Adapter
from ifedicl.backbone.answer_scoring import AnswerScorer
from ifedicl.backbone.answer_tokens import AnswerEnds
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import LABELS, WORDS
from ifedicl.backbone.prompts import Tokens
from ifedicl.errors import DataError, InputError, TaskError
from ifedicl.kinds.passages import EXACT, LOG, SURE, TEXT, Passage
from tests.support import tiny
from tests.support.passages import TASK, passages

FAMILIES = ("llama", "gpt2", "opt", "bloom", "gemma2", "gemma3-with-vision", "falcon-rw-alibi", "mistral-sliding")


def drawn(backbone: Backbone, rank: int = 4) -> Adapter:
    """An adapter of random numbers for an extraction."""
    return replace(tiny.drawn_adapter(backbone, rank=rank), task=TASK)


@torch.no_grad()
def plain_passes(backbone: Backbone, prompt: Tokens, ends: AnswerEnds, most: int) -> tuple[list[int], float]:
    """Greedy tokens and their mean log-probability, with the whole sequence run again for each: no cache, no padding."""
    tokens, logs = list(prompt), list[float]()
    while len(logs) < most and not (logs and ends.ends_at(tokens[-1])):
        step = backbone.logits(backbone.hidden_states(torch.tensor([tokens])))[0, -1].log_softmax(dim=-1)
        tokens.append(int(step.argmax()))
        logs.append(float(step.max()))
    return tokens[len(prompt) :], float(np.mean(logs))


@torch.no_grad()
def losses_of_transformers(backbone: Backbone, prompts: Sequence[Tokens], answers: Sequence[Tokens], end: int) -> list[float]:
    """The model's own loss of each sequence, with all but the answer and the end left out of it."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([[*prompt, *answer, end]])
        targets = torch.tensor([[*[-100] * len(prompt), *answer, end]])
        found.append(float(backbone.model(input_ids=tokens, labels=targets).loss))
    return found


@pytest.mark.parametrize("loss", [LABELS, WORDS], ids=["labels", "vocabulary"])
def test_the_loss_is_that_of_transformers_on_the_same_tokens(backbone: Backbone, loss: Any) -> None:
    scorer, adapter = AnswerScorer(backbone, TASK), drawn(backbone)
    examples = scorer.encoded(passages(5))
    prompts, labels = examples.prompts.tokens, examples.labels
    answers, end = [wanted.tokens for wanted in labels], scorer.ends.token
    assert len({len(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)}) > 1
    with applied(backbone, adapter.context, adapter.coefficients):
        expected = losses_of_transformers(backbone, prompts, answers, end)
        ours = scorer.losses(loss, prompts, labels).tolist()
        read = scorer.reading(examples).logs
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(-read[:, LOG], expected, rtol=1e-5)
    assert not np.allclose(expected, losses_of_transformers(backbone, prompts, answers, end), rtol=1e-2)


@pytest.mark.parametrize("case", FAMILIES)
def test_what_is_written_in_a_batch_with_a_cache_is_what_plain_passes_write(case: str) -> None:
    backbone = tiny.family_backbone(case)
    scorer, adapter = AnswerScorer(backbone, TASK), drawn(backbone)
    texts = ["the soup was warm and kind", "a cold room", "my shoes are wet and nobody answered the phone for an hour"]
    examples = scorer.encoded([Passage(text) for text in texts])
    with applied(backbone, adapter.context, adapter.coefficients):
        scores = scorer.scores(examples)
        expected = [
            plain_passes(backbone, prompt, scorer.ends, TASK.most_answer_tokens + 1) for prompt in examples.prompts.tokens
        ]
    assert [scorer.ends.text(tokens) for tokens, _ in expected] == scores[:, TEXT].tolist()
    np.testing.assert_allclose(scores[:, SURE].astype(float), [log for _, log in expected], rtol=1e-4, atol=1e-5)
    raw = scorer.scores(examples)
    assert np.abs((raw[:, SURE] - scores[:, SURE]).astype(float)).max() > 1e-3, "the injection shows"
    assert np.isnan(scores[:, LOG].astype(float)).all(), "nobody knows the answers"


def test_a_checkpoints_own_ways_of_writing_are_left_out(backbone: Backbone) -> None:
    scorer = AnswerScorer(backbone, TASK)
    examples, settings = scorer.encoded(passages(3)), backbone.model.generation_config
    expected = scorer.scores(examples)[:, TEXT].tolist()
    kept = settings.to_dict()
    try:
        settings.update(do_sample=True, repetition_penalty=9.0, temperature=3.0)
        assert scorer.scores(examples)[:, TEXT].tolist() == expected
        assert backbone.model.generation_config is settings
    finally:
        settings.update(**kept)


def test_one_pass_over_a_true_answer_says_whether_it_would_be_written(backbone: Backbone) -> None:
    scorer = AnswerScorer(backbone, TASK)
    texts = [own.text for own in passages(12)]
    encoded = scorer.encoded([Passage(text) for text in texts])
    written = [plain_passes(backbone, prompt, scorer.ends, 4)[0] for prompt in encoded.prompts.tokens]
    right = [replace(wanted, tokens=tuple(tokens)) for wanted, tokens in zip(encoded.labels, written, strict=True)]
    wrong = [replace(wanted, tokens=(*wanted.tokens[:-1], (wanted.tokens[-1] + 1) % tiny.VOCABULARY)) for wanted in right]
    ended = scorer.ends

    class Everywhere(AnswerEnds):
        """Ends at every token, so that the four tokens alone decide."""

        def adds_nothing(self, token: int) -> bool:
            del token
            return True

    scorer.ends = Everywhere(backbone)
    assert scorer.reading(replace(encoded, labels=tuple(right))).logs[:, EXACT].tolist() == [1.0] * 12
    assert scorer.reading(replace(encoded, labels=tuple(wrong))).logs[:, EXACT].tolist() == [0.0] * 12
    scorer.ends = ended
    whole = [(*prompt, *tokens) for prompt, tokens in zip(encoded.prompts.tokens, written, strict=True)]
    ends = [plain_passes(backbone, tokens, ended, 1)[0][0] for tokens in whole]
    expected = [float(ended.adds_nothing(token)) for token in ends]
    assert scorer.reading(replace(encoded, labels=tuple(right))).logs[:, EXACT].tolist() == expected


def test_an_answer_ends_at_the_end_token_or_at_a_line_break(backbone: Backbone) -> None:
    ends, tokenizer = AnswerEnds(backbone), backbone.tokenizer
    warm, line, end = tokenizer(" warm")["input_ids"], tokenizer("\n")["input_ids"], [ends.token]
    for stop in (line, end):
        assert ends.text([*warm, *stop, *warm]) == "warm"
        assert ends.length([*warm, *stop, *warm]) == len(warm) + 1
        assert ends.adds_nothing(stop[0])
    assert ends.length(warm) == len(warm)
    assert not any(map(ends.adds_nothing, warm))


def test_each_example_alone_gives_the_same_figures(backbone: Backbone) -> None:
    scorer = AnswerScorer(backbone, TASK)
    examples = scorer.encoded(passages(6))
    np.testing.assert_allclose(scorer.reading(examples, alone=True).logs, scorer.reading(examples).logs, rtol=1e-5)


def test_long_texts_are_cut_and_counted_and_the_answers_room_is_kept(backbone: Backbone) -> None:
    scorer = AnswerScorer(backbone, TASK)
    prompts = scorer.encoded([Passage("warm " * 200), Passage("warm")]).prompts
    assert prompts.truncated == 1
    assert max(map(len, prompts.tokens)) <= backbone.context_window - TASK.most_answer_tokens - 1


def test_answers_that_cannot_be_asked_for_are_refused_without_their_words(backbone: Backbone) -> None:
    scorer = AnswerScorer(backbone, TASK)
    with pytest.raises(DataError, match=r"text number 2 has \d+ tokens; allowed: task.most_answer_tokens, 16") as caught:
        scorer.encoded([passages(1)[0], Passage("a", "warm secret " * 9)])
    assert "secret" not in str(caught.value)
    joined = TASK.model_copy(update={"template": "Text: {text} at ho", "separator": ""})
    with pytest.raises(DataError, match="text number 1 has no tokens of its own behind the template"):
        AnswerScorer(backbone, joined).encoded([Passage("a", "me")])
    with pytest.raises(InputError, match="allowed: Passage"):
        scorer.encoded(tiny.examples(1))


def test_a_window_without_room_for_an_answer_is_refused(backbone: Backbone) -> None:
    with pytest.raises(TaskError, match="the longest answer 201, of a window of 128"):
        AnswerScorer(backbone, TASK.model_copy(update={"most_answer_tokens": 200}))


def test_a_model_without_an_end_token_is_refused(backbone: Backbone) -> None:
    kept = backbone.model.generation_config.eos_token_id
    backbone.model.generation_config.eos_token_id = None
    try:
        with pytest.raises(TaskError, match="it has no end token"):
            AnswerScorer(backbone, TASK)
    finally:
        backbone.model.generation_config.eos_token_id = kept
