"""Pictures as SVG that stands within a page: text stays text, and equal pictures are equal bytes."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.figure import Figure

INK, ACCENT, PALE = "#1f2a37", "#0f766e", "#9aa5b1"


def svg(figure: Figure) -> str:
    """A figure as one ``<svg>`` element."""
    buffer = io.StringIO()
    # A fixed salt keeps the names of equal pictures' parts equal.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ifedicl", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
