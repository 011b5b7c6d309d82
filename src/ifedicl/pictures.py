"""Figures as SVG, which need matplotlib.

Text stays text, equal figures give equal bytes, and on a page the colours follow its scheme, light or dark.
"""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET, ACCENT, RAW, PALE, UP, DOWN = "#1c2126", "#5b646d", "#0b6e75", "#8a6d1d", "#b4bcc4", "#1864ab", "#c2410c"
"""The light scheme's colours: of text, notes, the adapter, the raw model, what is beside the point, and of signs."""
VARIABLES = {INK: "ink", QUIET: "quiet", ACCENT: "accent", RAW: "raw", PALE: "pale", UP: "up", DOWN: "down", "#000000": "ink"}
"""The CSS variable that replaces each colour on a page; matplotlib draws frames and ticks in black."""
_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")


def can_draw() -> bool:
    """Whether matplotlib is installed (the extra ``pictures``)."""
    return find_spec("matplotlib") is not None


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches; nothing in it overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """A figure as one ``<svg>`` element of a page; without the variables of :data:`VARIABLES` it is light."""
    text = _drawn(figure, transparent=True)

    def variable(match: re.Match[str]) -> str:
        kind, colour = match.groups()
        return f"{kind}: var(--{VARIABLES[colour]}, {colour})" if colour in VARIABLES else match[0]

    return _COLOUR.sub(variable, text[text.index("<svg") :])


def svg_file(figure: Figure) -> str:
    """A figure as a file of its own, on white paper: it does not know on what page it will lie."""
    return _drawn(figure, transparent=False)


def _drawn(figure: Figure, *, transparent: bool) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # A fixed salt gives equal figures equal element ids.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ifedicl", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=transparent)
    return buffer.getvalue()
