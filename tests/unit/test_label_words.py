"""Label words of which one begins another: each can win, and none is the other's part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ifedicl.backbone.layout import Row
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.losses import WORDS
from ifedicl.backbone.scoring import Scorer
from ifedicl.kinds.classify import Task
from tests.support import tiny

RATED = Task(name="rated", labels=("5", "50", "500", "51", "7"), template="Text: {text}\nOf 500:")
DOUBLED = Task(name="mood", labels=("good", "good bad", "bad"), template="Text: {text}\nMood:")
TEXTS = tiny.SENTENCES


def _says(monkeypatch: pytest.MonkeyPatch, scorer: Scorer, said: tuple[int, ...]) -> None:
    """The model says these tokens behind every prompt with near certainty, then a full stop."""
    after = [*said, scorer.backbone.tokenizer(".")["input_ids"][0]]
    prompts = dict.fromkeys(scorer.encoder.prompts(TEXTS).tokens)
    longest = max(map(len, scorer.encoder.tree.words))

    def hidden(_backbone: object, rows: Sequence[Row], _prefix: object = None) -> Tensor:
        """States that hold the number of tokens which the row has said so far, or -1 where it has said others."""
        states = torch.full((len(rows), max(len(row.tokens) for row in rows), 1), -1.0)
        for number, row in enumerate(rows):
            tokens = row.tokens
            start = next(len(p) for p in prompts if tokens[: len(p)] == p)
            for step in range(min(longest, len(tokens) - start) + 1):
                if tuple(tokens[start : start + step]) == tuple(after[:step]):
                    states[number, start - 1 + step] = step
        return states

    def logits(_self: Backbone, states: Tensor, words: Tensor | None = None) -> Tensor:
        result = torch.zeros(*states.shape[:-1], tiny.VOCABULARY)
        for step, token in enumerate(after):
            result[..., token] += 12.0 * (states[..., 0] == step)
        return result if words is None else result[..., words]

    monkeypatch.setattr("ifedicl.backbone.base_scorer.states_of", hidden)
    monkeypatch.setattr(Backbone, "logits", logits)


@pytest.fixture
def by_paths(backbone: Backbone) -> Backbone:
    return replace(backbone, branch_limit=0)


@pytest.mark.parametrize("task", [RATED, DOUBLED], ids=["numbers", "words"])
def test_each_label_wins_where_the_model_says_its_word(by_paths: Backbone, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    scorer = Scorer(by_paths, task)
    words = scorer.encoder.tree.words
    assert words[1][: len(words[0])] == words[0], "the first word begins the second"
    for said, word in zip(task.labels, words, strict=True):
        with monkeypatch.context() as patch:
            _says(patch, scorer, word)
            logs = scorer.log_probabilities(scorer.encoder.prompts(TEXTS[:3]))
            assert [task.labels[best] for best in logs.argmax(axis=1)] == [said] * 3
            assert np.exp(logs.max(axis=1)).min() > 0.9


@pytest.mark.parametrize("task", [RATED, DOUBLED], ids=["numbers", "words"])
def test_the_words_and_all_else_are_together_certain(backbone: Backbone, task: Task) -> None:
    """No continuation of the prompt counts for two labels: the model's probabilities of all sum to less than 1."""
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts(TEXTS).tokens
    with torch.no_grad():
        words = torch.stack([-scorer.losses(WORDS, prompts, [label] * len(prompts)) for label in range(len(task.labels))], 1)
        torch.testing.assert_close(words, scorer.label_scores(prompts), rtol=1e-4, atol=1e-5)
    first = {word[0] for word in scorer.encoder.tree.words}
    starts = torch.stack([scorer.backbone.logits(scorer.states([Row(prompt)], None)[0, -1]) for prompt in prompts])
    assert (words.exp().sum(dim=1) <= starts.softmax(dim=-1)[:, sorted(first)].sum(dim=1) + 1e-5).all()
