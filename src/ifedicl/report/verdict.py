"""The answer of a report in sentences: is the adapter better, on which labels, by which parts, and who saw what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.federation.coordinator import Outcome
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.metrics import paired_p
from ifedicl.report.facts import Report, percent
from ifedicl.settings import method_of
from ifedicl.settings.describe import mode_of

_LEVEL = 0.05
_NAMED = 3


@dataclass(frozen=True)
class LabelFigures:
    """Right answers on the test texts of one label.

    Attributes:
        examples: test texts of this label.
        right: of these, how many the adapter labels right.
        raw: how many the raw model labels right; None if it was not measured.
    """

    label: str
    examples: int
    right: int
    raw: int | None

    @property
    def change(self) -> float | None:
        """Recall of the adapter minus that of the raw model; None where one of them is unknown."""
        return None if self.raw is None or not self.examples else (self.right - self.raw) / self.examples


def adapter_and_raw(report: Report) -> tuple[AnyEvaluation, AnyEvaluation | None] | None:
    """The last row's figures and the first row's; None without test text."""
    if not report.rows:
        return None
    return report.rows[-1].evaluation, report.rows[0].evaluation if len(report.rows) > 1 else None


def by_label(adapter: AnyEvaluation, raw: AnyEvaluation | None) -> list[LabelFigures]:
    """The figures of each label, in the task's order."""
    rights = [None] * len(adapter.labels) if raw is None else [right for _, right in raw.by_label]
    return [
        LabelFigures(label, examples, right, by_raw)
        for label, (examples, right), by_raw in zip(adapter.labels, adapter.by_label, rights, strict=True)
    ]


def compare(subject: str, evaluation: AnyEvaluation, other: str, hits: npt.NDArray[np.float64]) -> str:
    """A sentence: is the subject better than the other on the same test texts, by a paired test at 5%?

    Args:
        subject: named first in the sentence.
        evaluation: of the subject.
        other: the name of what it is compared with.
        hits: ``(N,)`` fractions, by test text, of the other's right answers.
    """
    difference, p = float(evaluation.hits.mean() - hits.mean()), paired_p(evaluation.hits, hits)
    verb = "does NOT beat" if p >= _LEVEL else "beats" if difference > 0 else "is WORSE than"
    return f"{subject} {verb} {other}: {100 * difference:+.1f} points on {len(hits)} test texts, paired p = {p:.4f}."


def answer_of(report: Report) -> list[str]:
    """The answer first: the paired tests, or the best that is known without test text."""
    both = adapter_and_raw(report)
    if both is not None:
        adapter, raw = both
        against = "" if raw is None else f"; the raw model labels {percent(raw.accuracy)} right"
        own = f"The federation labels {percent(adapter.accuracy)} of {adapter.examples} test texts right{against}."
        return [*report.verdicts, own]
    why = "There is no test text (data.test)"
    held_out = report.outcome.held_out
    if report.outcome.gate is not None:
        return [f"{why}; the gate below is the only comparison on text that chose nothing."]
    if held_out is None:
        return [f"{why}, and no held-out figures: nothing says how good this adapter is."]
    raw_tally, about = report.outcome.state.zero_shot, "about " if method_of(report.adapter.provenance).promises_noise else ""
    against = "" if raw_tally is None else f" against {about}{percent(raw_tally.accuracy)} of the raw model"
    return [
        f"{about}{percent(held_out.accuracy)} of the held-out examples are labelled right{against}.".capitalize(),
        f"{why}; these examples also chose the round, so the figure is a little too high.",
    ]


def details_of(report: Report) -> list[str]:
    """What a reader of the answer asks next: labels that fell, the gate, the readout, and who saw what."""
    outcome = report.outcome
    chosen = [*round_sentences(outcome), *gate_sentences(outcome), *readout_sentences(report)]
    return [*label_sentences(report), *chosen, mode_sentence(report)]


def label_sentences(report: Report) -> list[str]:
    """On which labels the adapter's recall is below the raw model's; empty if that was not measured."""
    both = adapter_and_raw(report)
    rows = [] if both is None else [row for row in by_label(*both) if row.change is not None]
    fallen = sorted((row for row in rows if (row.change or 0) < 0), key=lambda row: row.change or 0)
    if not rows:
        return []
    if not fallen:
        return ["No label lost: each is recognised at least as often as by the raw model."]
    named = "; ".join(_fall(row) for row in fallen[:_NAMED])
    more = f"; and {len(fallen) - _NAMED} more" if len(fallen) > _NAMED else ""
    return [f"Recognised less often than by the raw model: {named}{more}."]


def _fall(row: LabelFigures) -> str:
    return f"{row.label} ({row.right} of {row.examples} instead of {row.raw})"


def round_sentences(outcome: Outcome) -> list[str]:
    """Why no round is used; empty if one is, or if there were none."""
    if outcome.chosen_round or not outcome.state.history:
        return []
    return ["Rounds: NOT USED; none was better than the raw model by enough evidence on held-out examples."]


def gate_sentences(outcome: Outcome) -> list[str]:
    """The gate's decision, as a sentence; empty without a gate."""
    gate = outcome.gate
    if gate is None:
        return []
    decision = "open, the adapter is used" if gate.is_open else "SHUT, the raw model is used"
    if gate.is_better and not gate.is_open:
        decision = f"{decision}, since the adapter's answers are no better than chance"
    return [f"Gate: {gate.sentence} of the raw model: {decision}."]


def readout_sentences(report: Report) -> list[str]:
    """Whether the readout labels, or why it does not; empty if the settings have none."""
    if method_of(report.adapter.provenance).readout is None:
        return []
    if report.outcome.readout is not None:
        return ["Readout: used, it scores the labels."]
    if report.outcome.state.readout is not None:
        return ["Readout: fitted, but not used, since the gate is shut."]
    return ["Readout: REJECTED; the label words did as well on held-out examples, or too few clients allowed its sums."]


def mode_sentence(report: Report) -> str:
    """A sentence on who saw what."""
    return f"Privacy mode {mode_of(method_of(report.adapter.provenance))}."


def size_of(report: Report) -> str:
    """How many clients and rounds, in words."""
    clients, rounds = len(report.clients), report.outcome.state.round
    many: Sequence[str] = (
        f"{clients} client{'s' if clients != 1 else ''}",
        f"{rounds} round{'s' if rounds != 1 else ''}" if rounds else "no rounds: one message of each client",
    )
    return ", ".join(many)
