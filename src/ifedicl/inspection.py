"""Shows what a file contains and what a run would send, before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.data import split_roles
from ifedicl.errors import DataError
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import Envelope, Reply, Request, RequestMessage
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.entries import Head
from ifedicl.rows import columns_of, rows_of
from ifedicl.settings import RunSettings, load_settings
from ifedicl.settings.describe import mode_of, what_leaves
from ifedicl.task import SHOWN_LABEL

_HEAD = Head(100, "0" * 64)


def inspect_path(path: Path) -> dict[str, Any]:
    """Facts about an adapter folder, a config file or a data file, as JSON.

    Raises:
        IfediclError: it cannot be read.
    """
    if path.is_dir():
        return inspect_adapter(path)
    if path.suffix == ".toml":
        return inspect_config(path)
    return inspect_data(path)


def inspect_adapter(path: Path) -> dict[str, Any]:
    """An adapter's task, model, size and provenance."""
    adapter = Adapter.load(path)
    layers, _, width = adapter.context.vectors.shape
    return {
        "kind": "adapter",
        "task": adapter.task.model_dump(mode="json"),
        "model": adapter.model.source,
        "fingerprint": adapter.fingerprint,
        "layers": layers,
        "first_layer": adapter.context.first_layer,
        "width": width,
        "rank": adapter.context.rank,
        "calibrated_coefficients": adapter.coefficients.count,
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
        "provenance": dict(adapter.provenance),
    }


def inspect_config(path: Path) -> dict[str, Any]:
    """What a run of this config would do, and the bytes of each message. They depend on the model, so it is loaded."""
    settings = load_settings(path)
    clients = runs.client_examples(settings)
    holdout = settings.holdout
    backbone = load_backbone(settings.model)
    return {
        "kind": "config",
        "model": settings.model.source,
        "fingerprint": backbone.fingerprint,
        "dtype": backbone.dtype,
        "clients": {
            name: {
                role.value: len(rows)
                for role, rows in split_roles(
                    examples, selection=holdout.selection, gate=holdout.gate, seed=settings.seed
                ).items()
            }
            for name, examples in clients.items()
        },
        "bytes_per_client": expected_bytes(settings, backbone.shape, tuple(clients)),
        "mode": mode_of(settings.method),
        "leaves_a_client": what_leaves(settings.method),
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
    method = settings.method
    counts = SampleCounts(np.full(method.groups(len(settings.task.labels)), 50), selection=100, gate=100)
    steps = sample_exchange(Manifest.of(settings.task, method, model), counts)
    if method.privacy is not None and method.sums_only:
        with named_missing_packages(method.privacy):
            from ifedicl.federation.secure.sample_sum import sample_sum

        sums = {name: sample_sum(*step, clients, method) for name, step in steps.items()}
        sizes = {f"{name}_sum_down": sum(map(_size, requests)) for name, (requests, _) in sums.items()}
        return sizes | {f"{name}_sum_up": sum(map(_size, replies)) for name, (_, replies) in sums.items()}
    sizes = {f"{name}_request_down": _size(request) for name, (request, _) in steps.items()}
    return sizes | {f"{name}_reply_up": _size(reply) for name, (_, reply) in steps.items()}


def _size(message: Request | Reply) -> int:
    is_bare = isinstance(message, RequestMessage) and not message.carries_head
    return Envelope.of(message, None if is_bare else _HEAD).size


def inspect_data(path: Path) -> dict[str, Any]:
    """Rows, labels and lengths of a data file, without texts."""
    rows = [row for _, row in rows_of(path, ("text", "label"))]
    if not rows:
        raise DataError(f"{path}: no rows. Give a file with at least one labelled text")
    columns = columns_of(rows[0])
    facts: dict[str, Any] = {"kind": "data", "rows": len(rows), "columns": columns}
    if missing := [name for name in ("text", "label") if name not in columns]:
        facts["note"] = (
            f"no column named {' or '.join(missing)}; name the columns with text_column and label_column in a config, or "
            "check that the first line is a header"
        )
    if "label" in columns:
        facts["labels"] = dict(Counter(str(row.get("label"))[:SHOWN_LABEL] for row in rows).most_common())
    if "text" in columns:
        words = sorted(len(str(row.get("text", "")).split()) for row in rows)
        facts["words"] = {"median": words[len(words) // 2], "most": words[-1]}
        facts["repeated_texts"] = len(rows) - len({str(row.get("text")) for row in rows})
    return facts
