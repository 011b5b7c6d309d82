"""Writes answers behind prompts: greedy, by transformers' own ``generate``. Injections around it are in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ifedicl.backbone.answer_tokens import AnswerEnds
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive
from ifedicl.backbone.prompts import Tokens
from ifedicl.backbone.quiet import quiet_transformers
from ifedicl.core.transfer import to_device, to_host


@dataclass(frozen=True)
class Written:
    """One answer: its text, and the mean ``log P`` of its tokens and of its end."""

    text: str
    log: float


@torch.inference_mode()
def write(
    backbone: Backbone, prompts: Sequence[Tokens], ends: AnswerEnds, most: int, on_step: Callable[[], None]
) -> list[Written]:
    """Answer prompts in one batch.

    An injection changes a write in the same way at every token, so its hooks need not know which step is run: the first, with
    whole prompts, or a later one, whose earlier tokens are in the cache. Prompts are padded at their left.

    Args:
        backbone: the model.
        prompts: encoded prompts.
        ends: where answers end.
        most: tokens of an answer, its end included.
        on_step: called before each step; what it raises ends the work.
    """
    width, count = max(map(len, prompts)), len(prompts)
    tokens, mask = np.full((count, width), ends.token, dtype=np.int64), np.zeros((count, width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    config = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(ends.tokens),
        pad_token_id=ends.token,
    )
    sure, stop = _Sureness(on_step), _LineBreaks(ends, count)
    with exclusive(backbone), quiet_transformers(), _only(backbone.model, config):
        whole = backbone.model.generate(
            input_ids=to_device(tokens, backbone.device),
            attention_mask=to_device(mask, backbone.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([sure]),
            stopping_criteria=StoppingCriteriaList([stop]),
        )
    written, logs = to_host(whole[:, width:], torch.stack(sure.steps, dim=1))
    answers = []
    for row, its in zip(written, logs, strict=True):
        own = row[: ends.length(row.tolist())].tolist()
        answers.append(Written(ends.text(own), float(its[: len(own)].astype(np.float64).mean())))
    return answers


@dataclass
class _Sureness:
    """Notes the highest log-probability of each step: that of the token which is written. It changes nothing."""

    on_step: Callable[[], None]
    steps: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        self.on_step()
        self.steps.append(scores.float().log_softmax(dim=-1).amax(dim=-1))
        return scores


class _LineBreaks:
    """Ends rows at a token with a line break; ``generate`` itself ends them at an end token."""

    def __init__(self, ends: AnswerEnds, rows: int) -> None:
        self._ends = ends
        self._done = np.zeros(rows, dtype=np.bool_)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        del scores
        (last,) = to_host(input_ids[:, -1])
        self._done |= np.array([self._ends.ends_at(int(token)) for token in last])
        return to_device(self._done.copy(), input_ids.device)


@contextmanager
def _only(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Leave out the settings that a checkpoint brings along, such as penalties and sampling: ``generate`` would merge them."""
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept
