"""Figures as SVG within an HTML page: text stays text, and equal figures give equal bytes. They need matplotlib."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, PALE = "#1f2a37", "#0f766e", "#9aa5b1"


def can_draw() -> bool:
    """Whether matplotlib is installed (the extra ``pictures``)."""
    return find_spec("matplotlib") is not None


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def svg(figure: Figure) -> str:
    """A figure as one ``<svg>`` element."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # A fixed salt gives equal figures equal element ids.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ifedicl", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
