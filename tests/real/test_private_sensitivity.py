"""The sensitivity that the noise is planned for, on the real model and real sentences."""

from __future__ import annotations

import pytest

from ifedicl import Backbone
from ifedicl.demo.fetch import demo_places
from ifedicl.demo.story import TASK
from tests.support.neighbours import PrivateOwner, try_neighbours
from tests.support.private import private_method

pytestmark = pytest.mark.real


@pytest.mark.soak
def test_neighbouring_sums_of_the_real_model_differ_by_no_more_than_the_sensitivity(
    real_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = demo_places(pool=40, test=3, seed=0)
    own, public = places["shop reviews"].pool[:24], [example.text for example in places["tweets"].pool[:8]]
    method = private_method(injection={"from_depth": 0.9}, subspace={"rank": 4})
    owner = PrivateOwner.of(real_backbone, TASK, method, own, public)
    try_neighbours(owner, monkeypatch, draws=10_000, fresh=2_500, seed="real", largest=20)
