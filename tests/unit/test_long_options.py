"""Choices that are long: what is encoded of them, and how much runs in one pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.option_scoring import OptionScorer
from ifedicl.backbone.prompts import PromptEncoder, Tokens
from ifedicl.errors import DataError
from ifedicl.kinds.choices import Choice
from tests.support import choices

LETTERS = choices.TASK.model_copy(update={"answer_by": "letter"})


def test_options_that_leave_no_room_are_encoded_a_few_times_only(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, read, encoded = OptionScorer(backbone, LETTERS), list[int](), PromptEncoder._encoded

    def counted(self: PromptEncoder, texts: Any, word: str | None = None) -> list[Tokens]:
        read.append(max(map(len, texts)))
        return encoded(self, texts, word)

    monkeypatch.setattr(PromptEncoder, "_encoded", counted)
    with pytest.raises(DataError, match="text number 1: what it brings along leaves no room"):
        scorer.encoded([Choice("we laughed " * 100, ("soup " * 200,) * 4)])
    assert sum(size > 4_000 for size in read) == 2


def test_a_text_of_which_nothing_fits_is_refused_and_not_answered_without_it(backbone: Backbone) -> None:
    encoder = PromptEncoder(backbone, choices.TASK)
    (empty,), faces = encoder._encoded([""]), "\U0001f600" * 50  # of four tokens each
    with pytest.raises(DataError, match="text number 1: what it brings along leaves no room for it"):
        encoder.prompts([faces], behind=[backbone.context_window - len(empty)])
    some = encoder.prompts([faces], behind=[backbone.context_window - len(empty) - 4])
    assert some.truncated == 1
    assert some.tokens[0] != empty


@pytest.mark.parametrize("pooled", [None, (2,)])
def test_one_question_with_options_as_long_as_the_window_takes_several_passes(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, pooled: tuple[int, ...] | None
) -> None:
    asked = Choice("a cold room", tuple(f"{'soup ' * (7 + 3 * place)}{place}" for place in range(7)))
    flat = OptionScorer(replace(backbone, branch_limit=0), choices.TASK)
    encoded, run, passes = flat.encoded([asked, choices.choices(1)[0]]), Backbone.hidden_states, list[int]()

    def counted(self: Backbone, tokens: Any, *given: Any, **named: Any) -> Any:
        passes.append(tokens.numel())
        return run(self, tokens, *given, **named)

    monkeypatch.setattr(Backbone, "hidden_states", counted)
    whole = flat._read(encoded, pooled)
    assert len(passes) == 2
    flat.budget = replace(flat.budget, tokens=64, remembered=160)
    begun = list[int]()
    parts = flat.shared(lambda: begun.append(1))._read(encoded, pooled)
    assert max(passes[2:]) <= 160 < max(passes[:2])
    assert len(begun) == len(passes[2:]) > 2
    assert parts.states == pytest.approx(whole.states, abs=1e-4)
    assert parts.logs == pytest.approx(whole.logs, abs=1e-4)
