"""A tiny Llama of four layers."""

from __future__ import annotations

import pytest

from ifedicl.backbone.load import Backbone
from tests.support import tiny
from tests.support.span import LAYERS


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny Llama of four layers."""
    return tiny.load(tiny.save_model(tmp_path_factory.mktemp("four"), num_hidden_layers=LAYERS))
