"""What the demo says left a client."""

from __future__ import annotations

from ifedicl.demo.story import what_left
from ifedicl.federation.state import Traffic
from ifedicl.inspection import what_leaves
from ifedicl.settings import load_preset


def test_what_left_is_told_in_words_and_in_bytes_of_one_client() -> None:
    traffic = [
        Traffic("a", "vectors", 0, 10, 2048, 1.0),
        Traffic("b", "vectors", 0, 10, 4096, 1.0),
        Traffic("a", "update", 0, 10, 512, 1.0),
        Traffic("b", "update", 0, 10, 512, 1.0),
    ]
    *words, sizes = what_left(traffic, load_preset("demo"))
    assert words == what_leaves(load_preset("demo"))
    assert any("gate examples" in line for line in words)
    assert sizes.endswith("vectors 3.0 KB, update 0.5 KB")
