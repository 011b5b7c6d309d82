"""Runs on this machine: clients of one process, a federation of them, and a whole run from a config to an adapter.

Each name is loaded when it is first used: commands read a run's data before they import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ifedicl.federation.driver import Federated, RunOptions
    from ifedicl.runs.client_data import RunData, client_examples, simulated_clients
    from ifedicl.runs.local_run import Cache, RunResult, forget, run
    from ifedicl.runs.simulated import federate, simulate, zero_shot_adapter

_MODULES = {
    "ifedicl.federation.driver": ("Federated", "RunOptions"),
    "ifedicl.runs.client_data": ("RunData", "client_examples", "simulated_clients"),
    "ifedicl.runs.local_run": ("Cache", "RunResult", "forget", "run"),
    "ifedicl.runs.simulated": ("federate", "simulate", "zero_shot_adapter"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Cache",
    "Federated",
    "RunData",
    "RunOptions",
    "RunResult",
    "client_examples",
    "federate",
    "forget",
    "run",
    "simulate",
    "simulated_clients",
    "zero_shot_adapter",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
