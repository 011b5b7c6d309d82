"""The pictures of a report. Each is narrow enough for a phone; titles and keys stand in its caption, never over the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import ACTIVATION, CONTEXT
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.federation.coordinator import Outcome
from ifedicl.pictures import ACCENT, DOWN, INK, PALE, QUIET, RAW, UP, blank, svg
from ifedicl.report.facts import Figures, Report
from ifedicl.report.rich_tables import MOST_LABELS
from ifedicl.report.verdict import LabelFigures, adapter_and_raw, by_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 4.8  # inches


@dataclass(frozen=True)
class Picture:
    """A picture with its caption: a title, and a key to what is drawn."""

    title: str
    key: str
    svg: str


def pictures_of(report: Report) -> list[Picture]:
    """Of accuracy, labels, rounds and coefficients: those that this run has."""
    return [
        *([_accuracy(report.rows)] if report.rows else []),
        *_labels(report),
        *_confidence(report),
        *rounds_pictures(report.outcome),
        *(coefficient_pictures(report.adapter) if report.adapter.coefficients.count else []),
    ]


def _accuracy(rows: Sequence[Figures]) -> Picture:
    figure = blank(_WIDTH, 0.36 * len(rows) + 0.7)
    axes = _plain_axes(figure.subplots())
    for place, row in enumerate(reversed(rows)):
        low, high = row.evaluation.interval
        accuracy = row.evaluation.accuracy
        colour = ACCENT if row is rows[-1] else RAW if row is rows[0] else PALE
        axes.barh(place, accuracy, color=colour, height=0.62)
        axes.errorbar(accuracy, place, xerr=[[accuracy - low], [high - accuracy]], color=INK, capsize=3, linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    _percent_axis(axes)
    return Picture("Accuracy on everyone's test text", "with its 95% interval", svg(figure))


def _labels(report: Report) -> list[Picture]:
    both = adapter_and_raw(report)
    rows: list[LabelFigures] = [] if both is None else [row for row in by_label(*both) if row.change is not None]
    if not 0 < len(rows) <= MOST_LABELS:
        return []
    figure = blank(_WIDTH, 0.36 * len(rows) + 0.7)
    axes = _plain_axes(figure.subplots())
    for place, row in enumerate(reversed(rows)):
        raw, right = (row.raw or 0) / row.examples, row.right / row.examples
        axes.plot(
            [raw, right], [place, place], color=UP if right >= raw else DOWN, linewidth=3, solid_capstyle="round", zorder=1
        )
        axes.scatter([raw], [place], color=RAW, s=64, marker="s", zorder=2)
        axes.scatter([right], [place], color=ACCENT, s=26, zorder=3)
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _percent_axis(axes)
    key = "from the raw model (square) to the adapter (disc); blue: better, orange: worse"
    return [Picture("Right answers by label", key, svg(figure))]


def _confidence(report: Report) -> list[Picture]:
    """How often answers of each confidence are right, of the raw model and of the adapter; on the diagonal both are equal."""
    if not report.rows:
        return []
    figure = blank(_WIDTH, 2.8)
    axes = _plain_axes(figure.subplots())
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
    errors = []
    for row, colour, marker in [(row, RAW, "s") for row in report.rows[:-1][:1]] + [(report.rows[-1], ACCENT, "o")]:
        bins = row.evaluation.confidence.bins
        axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], color=colour, linewidth=1)
        sizes = [12 + 90 * each.examples / row.evaluation.examples for each in bins]
        axes.scatter([each.confidence for each in bins], [each.accuracy for each in bins], s=sizes, color=colour, marker=marker)
        errors.append(f"{row.name}: calibration error {100 * row.evaluation.confidence.calibration_error:.1f}%")
    axes.set_xlabel("confidence")
    axes.set_ylabel("right")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:.0f}%")
    _percent_axis(axes)
    key = f"right answers by confidence; larger marks are more texts; dotted: as sure as right; {'; '.join(errors)}"
    return [Picture("How far a probability can be trusted", key, svg(figure))]


def rounds_pictures(outcome: Outcome) -> list[Picture]:
    """Held-out loss and accuracy by round. Noisy counts come without losses, and then there is no picture of them."""
    from matplotlib.ticker import MaxNLocator

    records = [(record.round, record.held_out) for record in outcome.state.history if record.held_out is not None]
    if not records:
        return []
    raw = outcome.state.zero_shot
    key = f"round by round; {'dashed: zero-shot; ' if raw is not None else ''}dotted: the chosen round, {outcome.chosen_round}"
    names = ("loss", "accuracy") if any(held_out.loss_sum for _, held_out in records) else ("accuracy",)
    pictures = []
    for name in names:
        figure = blank(_WIDTH, 2.4)
        axes = _plain_axes(figure.subplots())
        points = [getattr(held_out, name) for _, held_out in records]
        axes.plot([number for number, _ in records], points, color=ACCENT, marker="o", markersize=4)
        if raw is not None:
            axes.axhline(getattr(raw, name), color=RAW, linestyle="--")
        axes.axvline(outcome.chosen_round, color=QUIET, linewidth=1, linestyle=":")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name == "accuracy":
            axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:.0f}%")
        pictures.append(Picture(f"Held-out {name} of all clients", key, svg(figure)))
    return pictures


def coefficient_pictures(adapter: Adapter) -> list[Picture]:
    """λ, β - 1 and, with a subspace, the norm of Γ, by layer and write; layers are numbered as the model's."""
    scales, core = adapter.coefficients.scales, adapter.coefficients.core  # (L, 2, 2), (L, 2, r, r)
    shown = [
        ("λ, how much context is added", "by layer; blue above 0, orange below", scales[..., CONTEXT]),
        ("β - 1, how much each write is stretched", "by layer; blue above 0, orange below", scales[..., ACTIVATION] - 1),
    ]
    if core is not None:
        shown.append(("‖Γ‖, how far it moves within the context subspace", "by layer", np.linalg.norm(core, axis=(2, 3))))
    return [_heat_map(title, key, values, adapter.context.layers.start) for title, key, values in shown]


def _heat_map(title: str, key: str, values: Array32, first: int) -> Picture:
    """``(L, 2)`` numbers, with the colours of the page of ``ifedicl serve``: the sign by colour, the strength by opacity."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    most = float(np.abs(values).max()) or 1.0
    figure = blank(_WIDTH, 1.1)
    axes = _plain_axes(figure.subplots())
    for (layer, write), value in np.ndenumerate(values):
        strength = 0.04 + 0.96 * abs(float(value)) / most
        corner = first + layer - 0.5, write - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=DOWN if value < 0 else UP, alpha=strength, linewidth=0))
    axes.set_xlim(first - 0.5, first + len(values) - 0.5)
    axes.set_ylim(len(WRITES) - 0.5, -0.5)
    axes.set_yticks(range(len(WRITES)), WRITES)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Picture(title, f"{key}; strongest ±{most:.3g}", svg(figure))


def _plain_axes(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _percent_axis(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{100 * value:.0f}%")
