"""The plot of an audit: how well the attacks do against the number of examples behind a reply, with and without noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ifedicl.audit.suite import Row
from ifedicl.pictures import DOWN, INK, QUIET, blank, svg_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GUESS = 0.5
_STRONGEST, _WEAKEST = 0.9, 0.25


def plot(tables: Mapping[str, Sequence[Row]], limit: int) -> str:
    """An SVG file from the tables of :func:`ifedicl.audit.suite.run_attacks`; ``limit`` is the default ``least.examples``."""
    games = {
        level: _best(tables["membership"], level, lambda row: float(row["auc"])) for level in _levels(tables["membership"])
    }
    words = {
        level: _best(tables["words"], level, lambda row: max(0.0, float(row["recall"]) - float(row["baseline"])))
        for level in _levels(tables["words"])
    }
    most = max((value for curve in words.values() for value in curve.values()), default=0.0)
    figure = blank(8.4, 3.6)
    panels = figure.subplots(1, 2)
    panels[0].axhline(_GUESS, color=QUIET, linestyle="--", linewidth=1)
    _panel(panels[0], games, limit, "right in pairs (dashed: guessing)", (0.4, 1.03))
    _panel(panels[1], words, limit, "words that come back, beyond chance", (0.0, max(0.1, 1.1 * most)))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return svg_file(figure)


def _panel(
    axes: Axes, curves: Mapping[float | None, Mapping[int, float]], limit: int, name: str, ends: tuple[float, float]
) -> None:
    """A curve for each ε: the more noise, the paler."""
    noisy = [level for level in curves if level is not None]
    sizes = sorted({size for curve in curves.values() for size in curve})
    for level, curve in curves.items():
        fade = 1.0 if level is None else _WEAKEST + (_STRONGEST - _WEAKEST) * noisy.index(level) / max(1, len(noisy) - 1)
        label = "no noise" if level is None else f"ε = {level:g}"
        colour = DOWN if level is None else INK
        axes.plot(list(curve), list(curve.values()), color=colour, alpha=fade, marker="o", markersize=4, label=label)
    axes.axvline(limit, color=QUIET, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(ends)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:.0f}%")
    axes.set_xlabel(f"examples behind a reply (dotted: the default limit, {limit})")
    axes.set_ylabel(name)
    axes.spines[["top", "right"]].set_visible(False)


def _levels(rows: Sequence[Row]) -> list[float | None]:
    """No noise, then each ε from the smallest."""
    return [None, *sorted({float(row["epsilon"]) for row in rows if row["epsilon"] is not None})]


def _best(rows: Sequence[Row], level: float | None, figure: Callable[[Row], float]) -> dict[int, float]:
    """The most successful attack of an outsider for each number of examples, at this ε."""
    own = [row for row in rows if row["epsilon"] == level and row["attacker"] != "insider"]
    sizes = sorted({int(row["examples"]) for row in own})
    return {size: max(figure(row) for row in own if row["examples"] == size) for size in sizes}
