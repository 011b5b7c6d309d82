"""Secure sums over any engine: a layer around each client, and an engine around the engine that carries messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.engine import Engine
from ifedicl.settings import Method, PrivacySettings


@contextmanager
def named_missing_packages(privacy: PrivacySettings) -> Iterator[None]:
    """Around an import of this room's modules: turns a missing package into an error with its remedy.

    Raises:
        ConfigError: a package that the mode needs is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = f"The package {error.name} is not installed: pip install 'ifedicl[privacy]'"
        fault = Fault("privacy.mode", privacy.mode, "a mode whose packages are installed", remedy)
        raise ConfigError("settings", [fault]) from error


def summing_engine(engine: Engine, method: Method) -> Engine:
    """The engine in the method's privacy mode: as it is, or one that shows the coordinator only sums over all clients.

    Raises:
        ConfigError: a package that the mode needs is not installed.
    """
    if method.privacy is None or not method.sums_only:
        return engine
    with named_missing_packages(method.privacy):
        from ifedicl.federation.secure.sum_engine import SecureEngine
    return SecureEngine(engine, method.privacy, method.calibration)
