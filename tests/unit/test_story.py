"""What the demo says left a client."""

from __future__ import annotations

import pytest

from ifedicl.demo.story import what_left
from ifedicl.federation.state import Traffic
from ifedicl.settings import Method, changed, load_preset

TRAFFIC = (
    Traffic("a", "vectors", 0, 10, 2048, 1.0),
    Traffic("b", "vectors", 0, 10, 4096, 1.0),
    Traffic("a", "update", 0, 10, 512, 1.0),
    Traffic("b", "update", 0, 10, 512, 1.0),
    Traffic("b", "update", 1, 10, 1024, 1.0),
)
DEMO = load_preset("demo")


def test_bytes_are_those_of_a_mean_client_by_request() -> None:
    assert what_left(TRAFFIC, DEMO)[-1].endswith(": vectors 3.0 KB, update 1.0 KB")


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (DEMO, {"coefficients": 1, "gradient": 0, "gate examples": 1, "hidden states": 2}),
        (changed(DEMO, {"holdout": {"gate": 0.0}}, "test"), {"gate examples": 0}),
        (changed(DEMO, {"server": {"update": "gradient"}}, "test"), {"coefficients": 0, "gradient": 1}),
        (changed(DEMO, {"readout": None}, "test"), {"hidden states": 0}),
    ],
    ids=["demo", "no gate", "gradients", "no readout"],
)
def test_words_name_what_this_method_sends_and_nothing_that_it_does_not(method: Method, counts: dict[str, int]) -> None:
    words = what_left(TRAFFIC, method)[:-1]
    assert {phrase: sum(phrase in line for line in words) for phrase in counts} == counts
