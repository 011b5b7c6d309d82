"""Runs on this machine: clients of one process, a federation of them, and a whole run from a config to an adapter."""

from ifedicl.federation.driver import Federated, RunOptions
from ifedicl.runs.client_data import client_examples, simulated_clients
from ifedicl.runs.local_run import Cache, RunResult, run
from ifedicl.runs.simulated import federate, simulate, zero_shot_adapter

__all__ = [
    "Cache",
    "Federated",
    "RunOptions",
    "RunResult",
    "client_examples",
    "federate",
    "run",
    "simulate",
    "simulated_clients",
    "zero_shot_adapter",
]
