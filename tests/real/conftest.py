"""What tests with real processes and the real model share: each is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifedicl import Backbone, ModelSettings, load_backbone
from ifedicl.backbone.source import fingerprint
from ifedicl.demo.fetch import demo_model, demo_texts
from tests.support import tiny
from tests.support.browsing import browser, runs, server, watched

__all__ = ["browser", "runs", "server", "watched"]  # fixtures of the tests of the page


def real_model() -> ModelSettings:
    """The demo's model, SmolLM2-135M, in float32."""
    return ModelSettings(source=str(demo_model()), dtype="float32", device="cpu")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Download and convert the model once, before several workers would each do so."""
    demo_texts()
    fingerprint(real_model())


LONGEST = ("test_flare.py", "test_real_model.py", "test_privacy.py")
"""Files that begin first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; workers take files in the order of collection, so the many short attacks come last."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model``, and with the adapters ``mood`` (a subspace) and ``place`` (label words of several tokens)."""
    root = tmp_path_factory.mktemp("served")
    backbone = tiny.load(tiny.save_model(root / "model"))
    for task, rank in ((tiny.TASK, 4), (tiny.MANY_TOKENS, 0)):
        tiny.drawn_adapter(backbone, task, rank=rank, source=str(root / "model")).save(root / task.name)
    return root


@pytest.fixture(scope="session")
def model() -> ModelSettings:
    """The demo's model, in float32."""
    return real_model()


@pytest.fixture(scope="session")
def real_backbone(model: ModelSettings) -> Backbone:
    """The demo's model, loaded."""
    return load_backbone(model)
