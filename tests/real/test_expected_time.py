"""The expected time against a real small run, in processor seconds, which a busy machine changes least."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ifedicl import Backbone, ModelSettings, RunData, RunSettings, federate, load_preset, simulate
from ifedicl.demo.fetch import demo_places
from ifedicl.demo.story import TASK
from ifedicl.federation.expected_steps import expected_steps
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.runs.expected_time import expected_time
from ifedicl.settings import DataSettings


@pytest.mark.soak
@pytest.mark.parametrize("preset", ["demo", "fast"])
def test_a_small_run_takes_between_half_and_twice_the_expected_time(
    real_backbone: Backbone, model: ModelSettings, preset: str
) -> None:
    places = demo_places(pool=12, test=3, seed=0)
    data = RunData({name: place.pool for name, place in list(places.items())[:2]}, ())
    method = load_preset(preset)
    method = method.model_copy(update={"rounds": method.rounds.model_copy(update={"rounds": 2})})
    data_settings = DataSettings(clients={name: f"{name}.csv" for name in data.clients})
    settings = RunSettings(task=TASK, model=model, data=data_settings, **dict(method))
    manifest = Manifest.of(TASK, method, real_backbone.shape)
    counts = SampleCounts(np.full(method.groups(len(TASK.labels)), 5), selection=3, gate=3)
    steps = expected_steps(manifest, dict.fromkeys(sample_exchange(manifest, counts), (0, 0)))
    expected = expected_time(settings, real_backbone, data, steps, clock=time.process_time)
    begun = time.process_time()
    federate(simulate(real_backbone, TASK, data.clients), model, TASK, method)
    taken = time.process_time() - begun
    print(f"{preset}: expected {expected['simulation']:.1f} s of a processor, taken {taken:.1f}")
    assert taken / 2 < expected["simulation"] < taken * 2
