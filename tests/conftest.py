"""What all tests share."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


TRACEBACK = "Traceback (most recent call last)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No traceback reaches a user in any test: not on an output, not in a log, not from a process that a test starts.

    A test in which a programming mistake is simulated has the mark ``mistake``: mistakes, and nothing else, may log theirs.
    """
    report = yield
    if report.passed and item.get_closest_marker("mistake") is None:
        shown = [name for name, text in report.sections if TRACEBACK in text and name.endswith(str(report.when))]
        if shown:
            report.outcome = "failed"
            report.longrepr = f"a traceback would reach a user, in: {', '.join(shown)}"
    return report


@pytest.fixture(autouse=True)
def _no_traceback_is_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As :func:`pytest_runtest_makereport`, for output that a test takes itself, and for processes."""
    if request.node.get_closest_marker("mistake") is not None:
        return

    def checked(take: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*arguments: Any, **options: Any) -> Any:
            both = take(*arguments, **options)
            for text in both:
                shown = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
                assert TRACEBACK not in shown, f"a traceback would reach a user: {shown}"
            return both

        return taken

    for owner, name in ((pytest.CaptureFixture, "readouterr"), (subprocess.Popen, "communicate")):
        monkeypatch.setattr(owner, name, checked(getattr(owner, name)))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures: to draw them takes longer than the run of a tiny model that they show."""
    monkeypatch.setattr("ifedicl.report.writing.can_draw", lambda: False)


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
