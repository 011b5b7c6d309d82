"""An adapter of random numbers, and its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.settings import ModelSettings
from tests.support import tiny


@pytest.fixture
def adapter(backbone: Backbone) -> Adapter:
    """Random numbers, strong enough to change predictions."""
    draw = np.random.default_rng(7)
    shape = (backbone.layers, 2)
    return Adapter(
        task=tiny.TASK,
        context=Context(draw.normal(size=(*shape, backbone.width)).astype(np.float32)),
        coefficients=Coefficients(draw.normal(1.0, 0.5, size=(*shape, 2)).astype(np.float32)),
        model=ModelSettings(source=backbone.source, device="cpu", dtype="float32"),
        fingerprint=backbone.fingerprint,
        provenance={"rounds": 3, "chosen_round": 2, "clients": 3},
    )


@pytest.fixture
def saved(adapter: Adapter, tmp_path: Path) -> Path:
    adapter.save(tmp_path / "adapter")
    return tmp_path / "adapter"
