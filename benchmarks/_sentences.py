"""Six sentences of our own, with moods that a model may read from them."""

from __future__ import annotations

SENTENCES = (
    "The nurse called me back within minutes and explained everything kindly.",
    "The form has four pages and is printed on both sides.",
    "After three weeks of waiting the machine arrived broken.",
    "What a lovely, quiet room, and the bread is baked next door!",
    "Nobody picked up the phone, and the desk was closed.",
    "The train leaves at ten past nine from platform four.",
)
