"""What a finished run leaves: the adapter, and the figures of its exchanges and rounds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.adapter import Adapter
from ifedicl.federation.coordinator import Outcome
from ifedicl.settings import Method, ModelSettings
from ifedicl.task import Task


def adapter_of(outcome: Outcome, task: Task, method: Method, model: ModelSettings, fingerprint: str, clients: int) -> Adapter:
    """The adapter that a run ended with.

    Args:
        outcome: of the run.
        task: what was asked.
        method: the settings.
        model: how the model was named.
        fingerprint: of the model.
        clients: how many took part.
    """
    return Adapter(
        task=task,
        context=outcome.context,
        readout=outcome.readout,
        coefficients=outcome.coefficients,
        model=model,
        fingerprint=fingerprint,
        provenance=_provenance(outcome, method, clients),
    )


def write_metrics(outcome: Outcome, path: Path) -> None:
    """One JSON object a line: every exchange, then every round.

    Raises:
        StorageError: it cannot be written.
    """
    lines = [{"event": "exchange", **asdict(item)} for item in outcome.state.traffic]
    lines += [
        {"event": "round", **asdict(record), "held_out": record.held_out and asdict(record.held_out), "worst": record.worst}
        for record in outcome.state.history
    ]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _provenance(outcome: Outcome, method: Method, clients: int) -> dict[str, Any]:
    state = outcome.state
    return {
        "method": method.model_dump(mode="json"),
        "rounds": state.round,
        "chosen_round": outcome.chosen_round,
        "clients": clients,
        "examples_vectorised": sum(vectors.examples for vectors in state.client_vectors.values()),
        "dtypes": sorted(set(state.dtypes.values())),
        "gate": None if outcome.gate is None else {"open": outcome.gate.is_open},
    }
