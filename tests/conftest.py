"""What all tests share."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_socket import disable_socket, enable_socket

# torch and the package take seconds to import. The process that only hands tests to workers need not wait for them: fixtures
# import them.
if TYPE_CHECKING:
    from ifedicl.backbone.load import Backbone

# Tests change the cache folder; matplotlib's list of fonts takes seconds to make and need not be made again for that.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))


def pytest_collection_finish() -> None:
    """What is imported stays for good.

    Python need not look through its million objects at each full collection. Nor must pytest hang its handlers on each of
    torch's sixty loggers, six times a test: messages that go on to the root logger reach the same handlers.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True
    gc.collect()
    gc.freeze()


def _is_quick(request: pytest.FixtureRequest) -> bool:
    """Whether the test is one of tiny models within one process."""
    return bool({"unit", "attacks"} & set(request.path.parts))


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Unit tests reach nothing outside of their process."""
    if _is_quick(request):
        disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture(scope="session")
def _all_threads() -> int:
    """As many as torch takes by itself."""
    import torch

    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest, _all_threads: int) -> None:
    """Tiny models have no work for two threads, and on a busy machine they only wait for each other."""
    import torch

    torch.set_num_threads(1 if _is_quick(request) else _all_threads)


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests leave the user's cache alone."""
    if _is_quick(request):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``fsync`` is for power cuts, which no unit test makes; every line of a ledger would wait for it."""
    if _is_quick(request):
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures: to draw them takes longer than the run of a tiny model that they show."""
    monkeypatch.setattr("ifedicl.report.can_draw", lambda: False)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama as a checkpoint folder."""
    from tests.support import tiny

    return tiny.save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def backbone(llama_folder: Path) -> Backbone:
    """The tiny Llama, loaded."""
    from tests.support import tiny

    return tiny.load(llama_folder)
