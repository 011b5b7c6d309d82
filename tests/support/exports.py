"""Adapters that can be exported in every form, and what plain libraries make of the exports."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.core.readout import Readout
from ifedicl.core.vectors import Array32
from ifedicl.kinds.classify import Task
from tests.support import tiny

TEXTS = ("we laughed all day", "the soup was cold", "nobody came, and then it rained for an hour", "so kind")
POST_NORM = ("gemma2", "gemma3_text", "gemma3-with-vision", "olmo2")
"""Cases whose writes are no projections."""
PROJECTED = sorted(set(tiny.FAMILY_CASES) - set(POST_NORM))


def servable(backbone: Backbone, *, task: Task = tiny.TASK, rank: int = 5, source: str = "tiny", seed: int = 3) -> Adapter:
    """An adapter of Γ alone, and a readout of the last hidden state without an intercept."""
    adapter = tiny.drawn_adapter(backbone, task, rank=rank, source=source, seed=seed)
    return replace(adapter, coefficients=adapter.coefficients.core_alone, readout=head(backbone.width, len(task.labels)))


def head(width: int, classes: int, *, intercept: float = 0.0, pooled_layers: tuple[int, ...] = ()) -> Readout:
    """A random readout of ``width`` hidden numbers, ``classes`` label words and an intercept."""
    draws = np.random.default_rng(7)
    weights = draws.normal(size=(classes, width * (1 + len(pooled_layers)) + classes + 1)) * 0.3
    weights[:, -1] = intercept * np.arange(classes)
    return Readout(weights.astype(np.float32), pooled_layers)


@torch.no_grad()
def label_logs(model: Any, backbone: Backbone, task: Task = tiny.TASK) -> Array32:
    """``(N, C)`` log-probabilities among the label words of :data:`TEXTS` by a plain causal model; words of one token."""
    rows = []
    for text in TEXTS:
        prompt = task.prompt(text)
        ids = torch.tensor([backbone.tokenizer(prompt)["input_ids"]])
        words = [backbone.tokenizer(prompt + task.separator + word)["input_ids"][-1] for word in task.label_words]
        rows.append(model(input_ids=ids).logits[0, -1, words].float().log_softmax(dim=-1))
    return torch.stack(rows).numpy()


def run_card(folder: Path, text: str, base: Path | None = None) -> str:
    """What the code of the card's last block prints for a text."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[-1]
    code = code.replace("this/folder", str(folder)).replace('"a text"', repr(text))
    assert str(folder) in code
    assert repr(text) in code
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {})  # noqa: S102 - what the card tells people to run
    return printed.getvalue().strip()
