"""What a finished run leaves: the adapter, with how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ifedicl.adapter import Adapter
from ifedicl.federation.coordinator import Outcome
from ifedicl.metrics import Comparison
from ifedicl.settings import Method, ModelSettings
from ifedicl.task import Task


def adapter_of(
    outcome: Outcome,
    task: Task,
    method: Method,
    model: ModelSettings,
    fingerprint: str,
    clients: int,
    spent: Mapping[str, Any] = MappingProxyType({}),
) -> Adapter:
    """The adapter that a run ended with.

    Args:
        outcome: of the run.
        task: what was asked.
        method: the settings.
        model: how the model was named.
        fingerprint: of the model.
        clients: how many took part.
        spent: what is told of clients' privacy budgets.
    """
    return Adapter(
        task=task,
        context=outcome.context,
        readout=outcome.readout,
        coefficients=outcome.coefficients,
        model=model,
        fingerprint=fingerprint,
        provenance=_provenance(outcome, method, clients) | dict(spent),
    )


def _provenance(outcome: Outcome, method: Method, clients: int) -> dict[str, Any]:
    state = outcome.state
    return {
        "method": method.model_dump(mode="json"),
        "rounds": state.round,
        "chosen_round": outcome.chosen_round,
        "clients": clients,
        "examples_vectorised": sum(vectors.examples for vectors in state.client_vectors.values()),
        "dtypes": sorted(set(state.dtypes.values())),
        "gate": None if outcome.gate is None else _gate_facts(outcome.gate),
    }


def _gate_facts(gate: Comparison) -> dict[str, Any]:
    adapter, raw = gate.adapter, gate.zero_shot
    figures = {"examples": adapter.examples, "accuracy": adapter.accuracy, "zero_shot_accuracy": raw.accuracy}
    return {"open": gate.is_open} | (figures if adapter.examples else {})
