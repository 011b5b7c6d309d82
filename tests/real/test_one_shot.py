"""One message of each client, of the real model and real sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ifedicl import Backbone, ModelSettings, federate, simulate
from ifedicl.demo.fetch import demo_model, demo_places
from ifedicl.demo.story import TASK
from ifedicl.settings import changed, load_preset

pytestmark = pytest.mark.real


@pytest.mark.parametrize("privacy", [None, {"mode": "secure", "min_examples": 4}], ids=["open", "secure"])
def test_a_readout_of_the_real_model_takes_one_message_of_100_kb(
    real_backbone: Backbone, privacy: dict[str, Any] | None
) -> None:
    pools = {name: place.pool for name, place in demo_places(pool=12, test=3, seed=0).items()}
    method = changed(load_preset("one-shot"), {"holdout": {"selection": 0.3}, "privacy": privacy}, "test")
    model = ModelSettings(source=str(demo_model()), dtype="float32", device="cpu")
    state = federate(simulate(real_backbone, TASK, pools), model, TASK, method).outcome.state
    sums = [item for item in state.traffic if item.step == "statistics"]
    assert len(sums) == len(pools)
    assert all(item.failure is None and item.bytes_up < 101_000 for item in sums)
    assert state.readout is None or np.isfinite(state.readout.weights).all()
