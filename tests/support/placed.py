"""Adapters of classifications on a model, whose rows share passes."""

from __future__ import annotations

from ifedicl.adapter.on_model import OnModel
from ifedicl.backbone.multi_adapter import Placed


def placed_of(classifier: OnModel) -> tuple[Placed, Placed]:
    """The adapter and the raw model with its task."""
    adapter, raw = classifier.placed()
    assert isinstance(adapter, Placed)
    assert isinstance(raw, Placed)
    return adapter, raw
