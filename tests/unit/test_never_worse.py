"""The adapter's expected loss is not above the raw model's, on random tiny tasks: shuffled labels, tiny pools, rare labels.

Each task is drawn at random, and so are its fresh examples, on which nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.blend import mixes
from ifedicl.core.readout import Readout
from ifedicl.federation.coordinator import Outcome
from ifedicl.kinds.classify import Example
from ifedicl.metrics import Tally
from tests.support import tiny
from tests.support.local_runs import run_real

FRESH = 80
TASKS = 50
KINDS = ("shuffled", "tiny", "imbalanced", "learnable", "shuffled and imbalanced")
TOLERANCE = 0.02
"""Nats, of the mean over the tasks of one kind: what half of a prior on readouts may cost where nothing can be learnt."""
ONE_SHOT = partial(tiny.method, weighting="examples", rounds={"rounds": 0}, readout={}, calibration={})
ROUNDS = partial(tiny.method, rounds={"rounds": 3}, readout={})


@dataclass(frozen=True)
class _Task:
    """A random task: labels by the words of a text, by chance, or both."""

    kind: str
    seed: int

    def examples(self, count: int, part: int) -> tuple[Example, ...]:
        """Fresh examples of the task; ``part`` numbers them."""
        rule = np.random.default_rng([self.seed, 1]).permutation(len(tiny.SENTENCES)) % 2
        draw = np.random.default_rng([self.seed, 2, part])
        rare = "imbalanced" in self.kind
        rows = []
        for number in range(count):
            sentence = int(draw.integers(len(tiny.SENTENCES)))
            label = int(draw.random() < 0.1) if rare else int(rule[sentence])
            if rare and "shuffled" not in self.kind:  # the rare label has sentences of its own
                sentence = int(draw.choice(np.flatnonzero(rule == label)))
            if self.kind == "shuffled":
                label = int(draw.integers(2))
            rows.append(Example(f"{tiny.SENTENCES[sentence]} {part} {number}", tiny.TASK.labels[label]))
        return tuple(rows)

    @property
    def hands(self) -> Mapping[str, tuple[Example, ...]]:
        """Three clients' examples."""
        size = 3 if self.kind == "tiny" else int(np.random.default_rng([self.seed, 3]).integers(4, 14))
        return {name: self.examples(size, part) for part, name in enumerate(("a", "b", "c"))}


def _excess(backbone: Backbone, task: _Task, outcome: Outcome) -> float:
    """The mean loss of the outcome minus the raw model's, on fresh examples."""
    scorer = Scorer(backbone, tiny.TASK)
    encoded = scorer.encoded(task.examples(FRESH, 99))
    raw = Tally.of(scorer.log_probabilities(encoded.prompts), encoded.labels)
    with applied(backbone, outcome.context, outcome.coefficients):
        ours = Tally.of(scorer.log_probabilities(encoded.prompts, readout=outcome.readout), encoded.labels)
    return ours.loss - raw.loss


def _means(backbone: Backbone, method: Any, tasks: int) -> dict[str, float]:
    """The mean excess over the tasks of each kind."""
    excess: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(tasks):
        task = _Task(KINDS[seed % len(KINDS)], seed)
        excess[task.kind].append(_excess(backbone, task, run_real(backbone, method(seed=seed), task.hands)))
    return {kind: float(np.mean(values)) for kind, values in excess.items()}


@pytest.mark.parametrize(
    "method", [pytest.param(ONE_SHOT, id="one shot"), pytest.param(ROUNDS, id="rounds", marks=pytest.mark.soak)]
)
def test_the_expected_loss_is_not_above_zero_shot(backbone: Backbone, method: Any) -> None:
    means = _means(backbone, method, TASKS)
    assert max(means.values()) <= TOLERANCE, means
    assert float(np.mean(list(means.values()))) < 0, means


def test_the_mix_with_the_lowest_held_out_loss_would_be_worse(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the prior, the tasks above tell the two apart."""

    def best(readouts: Sequence[Readout], losses: Sequence[float], added: Sequence[float]) -> Readout | None:
        return [None, *mixes(readouts, added=added)][int(np.argmin(losses))]

    monkeypatch.setattr("ifedicl.federation.selection.blended", best)
    assert max(_means(backbone, ONE_SHOT, TASKS // 2).values()) > 10 * TOLERANCE
