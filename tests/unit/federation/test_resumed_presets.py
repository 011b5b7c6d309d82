"""Presets that inject upper layers only: stopped anywhere and resumed by new clients, they end bit for bit the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.federation.events import Event
from ifedicl.settings import Method
from ifedicl.settings.presets import changed, load_preset, presets
from tests.support.local_runs import assert_same_result, run_real
from tests.support.stopping import StopError, stop_behind

UPPER = tuple(name for name in presets() if load_preset(name).injection.from_depth > 0)


def _short(preset: str) -> Method:
    """The preset, in four rounds at most."""
    method = load_preset(preset)
    return changed(method, {"rounds": {"rounds": min(method.rounds.rounds, 4)}}, "test")


def test_there_are_such_presets() -> None:
    assert {"subspace", "fast"} <= set(UPPER)


@pytest.mark.parametrize("preset", UPPER)
@pytest.mark.parametrize("moments", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_a_run_stopped_at_any_moment_and_resumed_ends_bit_for_bit_the_same(
    backbone: Backbone, tmp_path: Path, preset: str, moments: int
) -> None:
    events: list[Event] = []
    method = _short(preset)
    whole = run_real(backbone, method, observer=events.append)
    assert not whole.state.coefficients.is_identity
    for moment in np.linspace(1, len(events) - 1, moments, dtype=int):
        file = tmp_path / f"stopped-{moment}"
        with pytest.raises(StopError):
            run_real(backbone, method, checkpoint=file, observer=stop_behind(int(moment)))
        resumed = run_real(backbone, method, checkpoint=file, resume=file.exists())
        assert_same_result(whole, resumed)
        assert (whole.readout is None) == (resumed.readout is None)
        if whole.readout is not None and resumed.readout is not None:
            np.testing.assert_array_equal(whole.readout.weights, resumed.readout.weights)
