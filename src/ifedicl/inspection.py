"""Shows what a file contains and what a run would send, before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.adapter.format import HEADER, adapter_folder
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.source import check_source
from ifedicl.data import split_roles
from ifedicl.errors import DataError
from ifedicl.federation.expected_steps import expected_steps, step_sizes
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.sample_exchange import Exchange, SampleCounts, sample_exchange
from ifedicl.kinds.any_task import SHOWN_TEXT
from ifedicl.kinds.row_cells import COLUMN_REMEDY
from ifedicl.kinds.with_labels import SHOWN_LABEL
from ifedicl.rows import columns_of, holds_rows, rows_of
from ifedicl.settings import RunSettings, load_settings
from ifedicl.settings.describe import mode_of, what_leaves


def inspect_path(path: Path, *, text: str = "text", label: str = "label") -> dict[str, Any]:
    """Facts about an adapter folder, a config file, or a file or folder of data, as JSON.

    Args:
        path: of the folder or file.
        text: the column of a data file that holds the text.
        label: the column that holds the label.

    Raises:
        IfediclError: it cannot be read.
    """
    if path.is_dir() and not ((path / HEADER).is_file() or RunFolder(path).has_begun) and holds_rows(path):
        return inspect_data(path, text, label)
    if path.is_dir():
        return inspect_adapter(path)
    if path.suffix == ".toml":
        return inspect_config(path)
    return inspect_data(path, text, label)


def inspect_adapter(path: Path) -> dict[str, Any]:
    """An adapter's task, model, size and provenance."""
    adapter = Adapter.load(path)
    layers, _, width = adapter.context.vectors.shape
    return {
        "kind": "adapter",
        "task": adapter.task.model_dump(mode="json"),
        "does": adapter.task.does,
        "asks": adapter.task.asks,
        "model": adapter.model.source,
        "fingerprint": adapter.fingerprint,
        "layers": layers,
        "first_layer": adapter.context.first_layer,
        "width": width,
        "rank": adapter.context.rank,
        "calibrated_coefficients": adapter.coefficients.count,
        "bytes": sum(file.stat().st_size for file in adapter_folder(path).iterdir()),
        "provenance": dict(adapter.provenance),
    }


def inspect_config(path: Path) -> dict[str, Any]:
    """What a run of this config would do, and the bytes of each message. They depend on the model, so it is loaded."""
    settings = load_settings(path)
    check_source(settings.model)
    data = runs.RunData.read(settings)
    clients = data.clients

    from ifedicl.backbone.load import load_backbone  # torch takes seconds to import, and a wrong file is found first
    from ifedicl.backbone.scorers import scorer_of
    from ifedicl.runs.expected_memory import expected_memory
    from ifedicl.runs.expected_time import expected_time

    holdout = settings.holdout
    backbone = load_backbone(settings.model)
    scorer = scorer_of(backbone, settings.task)
    shown = scorer.encoder.prompts([SHOWN_TEXT]).tokens[0]
    manifest, samples = _samples(settings, backbone.shape)
    steps = expected_steps(manifest, step_sizes(manifest, samples, tuple(clients)))
    return {
        "kind": "config",
        "model": settings.model.source,
        "fingerprint": backbone.fingerprint,
        "dtype": backbone.dtype,
        "quantisation": backbone.quantisation,
        "clients": {
            name: {
                role.value: len(rows)
                for role, rows in split_roles(
                    examples, selection=holdout.selection, gate=holdout.gate, seed=settings.seed
                ).items()
            }
            for name, examples in clients.items()
        },
        "labels": {name: settings.task.summary_of(examples) for name, examples in clients.items()},
        "prompt": backbone.tokenizer.decode(list(shown)),
        "task": settings.task.facts,
        "asks": settings.task.asks,
        "bytes_per_client": expected_bytes(settings, backbone.shape, tuple(clients)),
        "steps": [asdict(step) | {"what": step.what, "when": step.when} for step in steps],
        "bytes_in_all": {
            "down": sum(step.times * step.bytes_down for step in steps),
            "up": sum(step.times * step.bytes_up for step in steps),
        },
        "memory": expected_memory(settings, backbone, clients),
        "seconds": expected_time(settings, backbone, data, steps),
        "mode": mode_of(settings.method),
        "leaves_a_client": what_leaves(settings.method, type(settings.task)),
        "for_each_owner": for_owners(settings, backbone.fingerprint),
    }


def for_owners(settings: RunSettings, fingerprint: str) -> dict[str, str]:
    """What an owner must allow in its ``client.toml`` for this run."""
    return {
        "allow.tasks": settings.task.digest,
        "allow.models": fingerprint,
        "policy": "write one with `ifedicl policy init --config CONFIG`; `ifedicl policy check client.toml --config CONFIG` "
        "shows what it allows. `ifedicl run` runs all clients on this machine, without policies; each has a ledger",
    }


def expected_bytes(settings: RunSettings, model: ModelShape, clients: Sequence[str]) -> dict[str, int]:
    """Bytes of each step for one client, from one encoded sample of each message in the shapes of this run."""
    manifest, samples = _samples(settings, model)
    sizes = step_sizes(manifest, samples, clients)
    kinds = ("sum", "sum") if settings.method.sums_only else ("request", "reply")
    down = {f"{step}_{kinds[0]}_down": size for step, (size, _) in sizes.items()}
    return down | {f"{step}_{kinds[1]}_up": size for step, (_, size) in sizes.items()}


def _samples(settings: RunSettings, model: ModelShape) -> tuple[Manifest, dict[str, Exchange]]:
    counts = SampleCounts(np.full(settings.method.groups(settings.task.classes), 50), selection=100, gate=100)
    manifest = Manifest.of(settings.task, settings.method, model)
    return manifest, sample_exchange(manifest, counts)


def inspect_data(path: Path, text: str = "text", label: str = "label") -> dict[str, Any]:
    """Rows, labels and lengths of a data file or folder, without texts."""
    rows = [row for _, row in rows_of(path, (text, label))]
    if not rows:
        raise DataError(f"{path}: no rows. Give a file with at least one labelled text")
    columns = columns_of(rows[0])
    facts: dict[str, Any] = {"kind": "data", "rows": len(rows), "columns": columns}
    if missing := [name for name in (text, label) if name not in columns]:
        facts["note"] = f"no column named {' or '.join(missing)}. {COLUMN_REMEDY}; or check that the first line is a header"
    if label in columns:
        cells = [row.get(label) for row in rows]
        names = [name for cell in cells for name in (cell if isinstance(cell, list) else [cell])]
        facts["labels"] = dict(Counter(str(name)[:SHOWN_LABEL] for name in names).most_common())
    if text in columns:
        words = sorted(len(str(row.get(text, "")).split()) for row in rows)
        facts["words"] = {"median": words[len(words) // 2], "most": words[-1]}
        facts["repeated_texts"] = len(rows) - len({str(row.get(text)) for row in rows})
    return facts
