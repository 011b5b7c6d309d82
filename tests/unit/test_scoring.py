"""Scores against plain transformers, one sequence at a time, with the whole vocabulary."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors
from torch import Tensor

from ifedicl.backbone.encoding import Encoder, LabelTree
from ifedicl.backbone.layout import right_padded
from ifedicl.backbone.load import Backbone, Prefix
from ifedicl.backbone.losses import LABELS, WORDS
from ifedicl.backbone.passes import PassBudget, length_batches
from ifedicl.backbone.prompts import Prompts, Tokens
from ifedicl.backbone.scoring import Scorer
from ifedicl.errors import DataError, TaskError
from ifedicl.kinds.classify import Task
from tests.support import tiny

TEXTS = (*tiny.SENTENCES, "ok", "the phone, the fan and the bread on the table were warm again and again")


def _naive(backbone: Backbone, prompt: Tokens, word: Tokens, words: Sequence[Tokens] = ()) -> Tensor:
    """``log P(word | prompt)``: all logits of one sequence; none of ``words`` goes on from it."""
    logits = backbone.model(torch.tensor([[*prompt, *word]])).logits[0].float().log_softmax(dim=-1)
    goes_on = {other[len(word)] for other in words if len(other) > len(word) and other[: len(word)] == word}
    ends = torch.log(1 - sum((logits[-1, token].exp() for token in goes_on), torch.zeros(())))
    return sum((logits[len(prompt) - 1 + step, token] for step, token in enumerate(word)), ends)


def _naive_scores(scorer: Scorer, prompts: Sequence[Tokens]) -> Tensor:
    words = scorer.encoder.tree.words
    return torch.stack([torch.stack([_naive(scorer.backbone, prompt, word, words) for word in words]) for prompt in prompts])


@pytest.fixture
def no_gradient() -> Any:
    with torch.no_grad():
        yield


# --- against transformers itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(tiny.FAMILY_CASES))
@torch.no_grad()
def test_right_padded_logits_equal_masked_runs_of_transformers(case: str) -> None:
    backbone = tiny.family_backbone(case)
    rows: list[Tokens] = [(5, 17, 3, 99, 250, 42, 8, 31, 77, 12), (9, 4, 200, 61), (120,)]
    ours = backbone.hidden_states(right_padded(rows, backbone.device))
    ours = backbone.logits(ours[torch.arange(len(rows)), [len(row) - 1 for row in rows]])
    width = max(map(len, rows))
    for side in ("left", "right"):
        ids, mask = torch.full((len(rows), width), 7), torch.zeros((len(rows), width), dtype=torch.int64)
        for number, row in enumerate(rows):
            place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        extra = {}
        if "position_ids" in inspect.signature(backbone.model.forward).parameters:
            extra["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = backbone.model(input_ids=ids, attention_mask=mask, **extra).logits
        read = [width - 1 if side == "left" else len(row) - 1 for row in rows]
        theirs = logits[torch.arange(len(rows)), read].float()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5, msg=partial("{}-padded: {}".format, side))
    assert ours.std() > 0.1


@torch.no_grad()
def test_the_soft_cap_of_gemma2_bends_the_scores() -> None:
    backbone = tiny.family_backbone("gemma2")  # capped at 2
    states = backbone.hidden_states(torch.tensor([[5, 17, 3]]))[0, -1] * 10
    raw = torch.nn.functional.linear(states, backbone.model.lm_head.weight)
    assert raw.abs().max() > 2
    torch.testing.assert_close(backbone.logits(states), 2 * torch.tanh(raw / 2))
    words = torch.tensor([11, 300, 4])
    torch.testing.assert_close(backbone.logits(states, words), backbone.logits(states)[words])


@pytest.mark.parametrize("case", ["gptj", "phi"])
@torch.no_grad()
def test_the_bias_of_the_lm_head_counts(case: str) -> None:
    backbone = tiny.family_backbone(case)
    bias = backbone.model.lm_head.bias
    assert bias.abs().max() > 0.05
    words = torch.tensor([11, 300, 4])
    torch.testing.assert_close(backbone.logits(torch.zeros(2, 32)), bias.expand(2, -1))
    torch.testing.assert_close(backbone.logits(torch.zeros(2, 32), words), bias[words].expand(2, -1))


# --- labels of one token -----------------------------------------------------------------------------------------------


def test_batched_scores_equal_single_scores(backbone: Backbone, no_gradient: None) -> None:
    for task in (tiny.TASK, tiny.MANY_TOKENS):
        scorer = Scorer(backbone, task)
        prompts = scorer.encoder.prompts(TEXTS).tokens
        assert len(set(map(len, prompts))) > 3, "prompts alike in length would prove nothing about padding"
        single = torch.cat([scorer.label_scores([prompt]) for prompt in prompts])
        torch.testing.assert_close(scorer.label_scores(prompts), single, rtol=1e-4, atol=1e-5)


def test_the_short_way_for_one_token_labels_equals_the_full_softmax(backbone: Backbone, no_gradient: None) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    assert scorer.encoder.tree.is_flat
    prompts = scorer.encoder.prompts(TEXTS)
    expected = _naive_scores(scorer, prompts.tokens).log_softmax(dim=-1)
    ours = scorer.log_probabilities(prompts)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(ours).sum(axis=1), 1.0, rtol=1e-5)


def test_log_probabilities_keep_the_order_of_the_prompts_whatever_the_batches(backbone: Backbone) -> None:
    for task in (tiny.TASK, tiny.MANY_TOKENS):
        scorer = Scorer(backbone, task)
        prompts = scorer.encoder.prompts(TEXTS)
        whole = scorer.log_probabilities(prompts)
        scorer.budget = PassBudget(tokens=30, overhead=0, remembered=480)
        done: list[int] = []
        small = scorer.log_probabilities(prompts, on_progress=done.append)
        np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5)
        assert np.ptp(whole, axis=0).min() > 1e-3, "rows alike would hide a mix-up"
        assert sum(done) == len(TEXTS)
        assert len(done) > 3


def test_a_long_beginning_that_all_prompts_share_is_run_once_and_changes_no_score(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = "Text: the soup was warm and kind\nMood: good\n\n" * 2
    runs: list[int] = []

    def counted(self: Backbone, tokens: Any) -> Prefix:
        runs.append(len(tokens))
        return run(self, tokens)

    run = Backbone.prefix
    monkeypatch.setattr(Backbone, "prefix", counted)
    for task in (tiny.TASK, tiny.MANY_TOKENS):
        scorer = Scorer(backbone, task.model_copy(update={"template": beginning + task.template}))
        prompts = scorer.encoder.prompts(TEXTS)
        together = scorer.log_probabilities(prompts)
        assert len(runs) == 1
        assert runs.pop() >= 32
        alone = [scorer.log_probabilities(Prompts((tokens,), 0))[0] for tokens in prompts.tokens]
        assert runs == []
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_equal_prompts_keep_a_token_of_their_own_behind_the_shared_beginning(backbone: Backbone) -> None:
    scorer = Scorer(backbone, tiny.TASK.model_copy(update={"template": "Text: we laughed all the way home\n" * 6 + "{text}"}))
    twice = scorer.log_probabilities(scorer.encoder.prompts([TEXTS[0], TEXTS[0]]))
    once = scorer.log_probabilities(scorer.encoder.prompts(TEXTS[:1]))
    np.testing.assert_allclose(twice, np.repeat(once, 2, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remembered", [100, 1_000])
def test_rows_of_a_pass_hold_no_more_keys_and_values_than_the_budget_remembers(backbone: Backbone, remembered: int) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    scorer.budget = PassBudget(tokens=100, overhead=1_000, remembered=remembered)
    batches = scorer.batches([(1, 2)] * 30, Prefix(98, None))
    assert max(map(len, batches)) == remembered // 100


def test_features_are_the_states_that_predict_the_label_word(backbone: Backbone, no_gradient: None) -> None:
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoder.prompts(TEXTS)
    first = torch.tensor([word[0] for word in scorer.encoder.tree.words])
    from_features = backbone.logits(torch.from_numpy(scorer.features(prompts)), first)
    torch.testing.assert_close(from_features, scorer.label_scores(prompts.tokens), rtol=1e-4, atol=1e-5)


# --- labels of several tokens ------------------------------------------------------------------------------------------


def test_tree_scores_equal_one_run_per_label_with_the_whole_vocabulary(backbone: Backbone, no_gradient: None) -> None:
    scorer = Scorer(backbone, tiny.MANY_TOKENS)
    words = scorer.encoder.tree.words
    assert not scorer.encoder.tree.is_flat
    assert words[1][: len(words[0])] == words[0], "one label word is to be the beginning of another"
    prompts = scorer.encoder.prompts(TEXTS[:4]).tokens
    torch.testing.assert_close(scorer.label_scores(prompts), _naive_scores(scorer, prompts), rtol=1e-4, atol=1e-5)


def test_normalised_scores_are_means_over_the_tokens_of_each_word(backbone: Backbone, no_gradient: None) -> None:
    scorer = Scorer(backbone, tiny.MANY_TOKENS.model_copy(update={"normalise_length": True}))
    prompts = scorer.encoder.prompts(TEXTS[:3]).tokens
    lengths = torch.tensor([len(word) for word in scorer.encoder.tree.words])
    assert len(set(lengths.tolist())) > 1
    torch.testing.assert_close(scorer.label_scores(prompts), _naive_scores(scorer, prompts) / lengths, rtol=1e-4, atol=1e-5)
    labels = [2, 0, 1]
    expected = -_naive_scores(scorer, prompts)[range(3), labels] / lengths[labels]
    torch.testing.assert_close(scorer.losses(WORDS, prompts, labels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_word_losses_equal_naive_ones(backbone: Backbone, no_gradient: None, task: Task) -> None:
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts(TEXTS).tokens
    labels = [number % len(task.labels) for number in range(len(prompts))]
    expected = -_naive_scores(scorer, prompts)[range(len(prompts)), labels]
    torch.testing.assert_close(scorer.losses(WORDS, prompts, labels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_label_losses_equal_naive_ones(backbone: Backbone, no_gradient: None, task: Task) -> None:
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts(TEXTS).tokens
    labels = [number % len(task.labels) for number in range(len(prompts))]
    expected = -_naive_scores(scorer, prompts).log_softmax(dim=-1)[range(len(prompts)), labels]
    torch.testing.assert_close(scorer.losses(LABELS, prompts, labels), expected, rtol=1e-4, atol=1e-5)


words_of_tokens = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6, unique=True)


@settings(deadline=None, max_examples=50)
@given(words_of_tokens)
def test_every_token_of_every_word_is_read_at_a_node_on_some_path(words: list[Tokens]) -> None:
    tree = LabelTree.of(words)
    assert set(tree.nodes) == {word[:step] for word in words for step in range(len(word))}
    assert len(tree.nodes) == len(set(tree.nodes))
    for node in tree.nodes:
        assert any(path[: len(node)] == node for path in tree.paths)
    for path in tree.paths:
        assert sum(other[: len(path)] == path for other in tree.paths) == 1, "a path within another is run in vain"
    assert tree.is_flat == all(len(word) == 1 for word in words)


# --- batches -----------------------------------------------------------------------------------------------------------


def _cost(groups: Sequence[Sequence[int]], lengths: Sequence[int], overhead: int) -> int:
    return sum(len(group) * max(lengths[position] for position in group) + overhead for group in groups)


def _cuts(order: Sequence[int]) -> Any:
    """Every way to cut a sequence into consecutive groups."""
    for places in itertools.product([False, True], repeat=max(0, len(order) - 1)):
        groups = [[order[0]]]
        for position, cut in zip(order[1:], places, strict=True):
            groups = [*groups, [position]] if cut else [*groups[:-1], [*groups[-1], position]]
        yield groups


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200), st.integers(0, 100))
def test_batches_hold_every_position_once_within_the_budget(lengths: list[int], tokens: int, overhead: int) -> None:
    batches = length_batches(lengths, PassBudget(tokens, overhead, 16 * tokens))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= tokens
    flat = [lengths[position] for batch in batches for position in batch]
    assert flat == sorted(flat, reverse=True)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(60, 200), st.integers(0, 100))
def test_no_other_batches_of_sorted_prompts_cost_less(lengths: list[int], tokens: int, overhead: int) -> None:
    ours = _cost(length_batches(lengths, PassBudget(tokens, overhead, 16 * tokens)), lengths, overhead)
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    allowed = (groups for groups in _cuts(order) if all(len(group) * lengths[group[0]] <= tokens for group in groups))
    assert ours == min(_cost(groups, lengths, overhead) for groups in allowed)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(2, 40), st.integers(1, 200))
def test_prompts_of_equal_lengths_take_as_few_passes_as_the_budget_allows(length: int, count: int, tokens: int) -> None:
    batches = length_batches([length] * count, PassBudget(tokens, overhead=1, remembered=16 * tokens))
    assert len(batches) == -(-count // max(1, tokens // length))


# --- prompts and label words -------------------------------------------------------------------------------------------


def test_long_prompts_lose_text_and_never_the_template(backbone: Backbone) -> None:
    small = replace(backbone, context_window=40)
    scorer = Scorer(small, tiny.MANY_TOKENS)
    text = " ".join(tiny.SENTENCES)
    prompts = scorer.encoder.prompts([text, "short", text + " more"])
    assert prompts.truncated == 2
    room = max(map(len, scorer.encoder.tree.words))
    cut = backbone.tokenizer.decode(prompts.tokens[0])
    kept = cut.removeprefix("Text: ").removesuffix("\nPlace:")
    assert cut == f"Text: {kept}\nPlace:"
    assert kept
    assert text.startswith(kept)
    assert len(prompts.tokens[0]) + room <= 40
    longer = backbone.tokenizer(f"Text: {text[: len(kept) + 1]}\nPlace:")["input_ids"]
    assert len(longer) + room > 40, "one more character would have fitted"
    assert backbone.tokenizer.decode(prompts.tokens[1]) == "Text: short\nPlace:"
    assert scorer.losses(WORDS, prompts.tokens, [0, 1, 1]).isfinite().all()
    assert np.isfinite(scorer.log_probabilities(prompts)).all()


def test_a_prompt_that_just_fits_is_left_whole(backbone: Backbone) -> None:
    text = tiny.SENTENCES[1]
    tokens = tuple(backbone.tokenizer(tiny.TASK.prompt(text))["input_ids"])
    fits = Encoder(replace(backbone, context_window=len(tokens) + 1), tiny.TASK).prompts([text])
    assert fits.tokens == (tokens,)
    assert fits.truncated == 0
    assert Encoder(replace(backbone, context_window=len(tokens)), tiny.TASK).prompts([text]).truncated == 1


def test_label_tokens_come_from_prompt_and_word_together(backbone: Backbone) -> None:
    spaced = Encoder(backbone, tiny.TASK).tree.words
    alone = [tuple(backbone.tokenizer(word)["input_ids"]) for word in tiny.TASK.label_words]
    for word, tokens, lone in zip(tiny.TASK.label_words, spaced, alone, strict=True):
        whole = tuple(backbone.tokenizer(tiny.TASK.prompt("home") + " " + word)["input_ids"])
        assert whole == Encoder(backbone, tiny.TASK).prompts(["home"]).tokens[0] + tokens
        assert tokens != lone, "the space belongs to the word's first token"
    bracket = Task(name="b", labels=("good", "bad"), template="{text} (", separator="")
    assert Encoder(backbone, bracket).tree.words == tuple(alone)


def _with_tokenizer(backbone: Backbone, *, normalizer: Any = None, template: str | None = None, bos: bool = False) -> Backbone:
    tokenizer = tiny.tokenizer()
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    if bos:
        post = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
        tokenizer.backend_tokenizer.post_processor = post
    tokenizer.chat_template = template
    return replace(backbone, tokenizer=tokenizer)


def test_two_label_words_with_the_same_tokens_are_an_error(backbone: Backbone) -> None:
    lower = _with_tokenizer(backbone, normalizer=normalizers.Lowercase())
    with pytest.raises(TaskError, match="'good' and 'Good' have the same tokens"):
        Encoder(lower, Task(name="t", labels=("good", "bad", "Good"), template="text: {text}\nmood:"))


def test_two_label_words_with_the_same_first_token_are_not(backbone: Backbone) -> None:
    tree = Encoder(backbone, tiny.MANY_TOKENS).tree
    assert tree.words[0][0] == tree.words[1][0]


def test_a_template_that_ends_in_a_space_is_an_error_where_the_space_belongs_to_the_word(backbone: Backbone) -> None:
    task = Task(name="t", labels=("good", "bad"), template="Text: {text}\nMood: ", separator="")
    with pytest.raises(TaskError, match=r"task\.label_words: 'good' has no separate tokens") as caught:
        Encoder(backbone, task)
    assert "End the template without a space" in str(caught.value)


def test_a_label_word_that_vanishes_in_the_tokenizer_is_an_error(backbone: Backbone) -> None:
    blind = _with_tokenizer(backbone, normalizer=normalizers.Replace("x", ""))
    with pytest.raises(TaskError, match=r"task\.label_words: 'x' has no separate tokens"):
        Encoder(blind, Task(name="t", labels=("good", "x"), template="{text}:", separator=""))


def test_a_text_without_tokens_is_an_error_that_names_its_number(backbone: Backbone) -> None:
    blind = _with_tokenizer(backbone, normalizer=normalizers.Replace("\u200b", ""))
    with pytest.raises(DataError, match="text number 2 has no tokens") as caught:
        Encoder(blind, tiny.TASK).prompts(["secret", "\u200b\u200b"])
    assert "secret" not in str(caught.value)


def test_a_template_that_fills_the_window_is_an_error(backbone: Backbone) -> None:
    with pytest.raises(TaskError, match="of a window of 8; nothing is left for text") as caught:
        Encoder(replace(backbone, context_window=8), tiny.TASK)
    assert "Shorten task.template" in str(caught.value)


# --- chat turns --------------------------------------------------------------------------------------------------------

CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[model]{% endif %}"


def test_a_chat_turn_wraps_the_prompt_in_the_models_own_template(backbone: Backbone) -> None:
    task = tiny.TASK.model_copy(update={"turn": "chat", "separator": ""})
    chat = _with_tokenizer(backbone, template=CHAT, bos=True)
    encoder = Encoder(chat, task)
    (tokens,) = encoder.prompts(["home"]).tokens
    assert chat.tokenizer.decode(tokens) == "[user]Text: home\nMood:[model]", "special tokens are the turn's own affair"
    word = encoder.tree.words[0]
    assert chat.tokenizer.decode(word) == "good"


def test_a_raw_prompt_has_the_tokenizers_own_start_once(backbone: Backbone) -> None:
    start = _with_tokenizer(backbone, bos=True)
    encoder = Encoder(start, tiny.TASK)
    plain = Encoder(backbone, tiny.TASK)
    assert encoder.prompts(["home"]).tokens[0] == (0, *plain.prompts(["home"]).tokens[0])
    assert encoder.tree.words == plain.tree.words


def test_a_chat_turn_needs_a_chat_template(backbone: Backbone) -> None:
    task = tiny.TASK.model_copy(update={"turn": "chat"})
    with pytest.raises(TaskError, match="has no chat template; use turn = 'raw'"):
        Encoder(backbone, task)
