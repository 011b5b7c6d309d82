"""Shows what a file contains and what a run would send, before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.families import writes_of
from ifedicl.backbone.layer_cache import MOST_BYTES
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.memory import RESERVE, ModelMemory
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.scoring import Scorer
from ifedicl.data import Example, split_roles
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

_SAMPLE = 64  # texts of each client
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
        "memory": expected_memory(settings, backbone, clients),
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

        sums = {name: sample_sum(*step, clients) for name, step in steps.items()}
        sizes = {f"{name}_sum_down": sum(map(_size, requests)) for name, (requests, _) in sums.items()}
        return sizes | {f"{name}_sum_up": sum(map(_size, replies)) for name, (_, replies) in sums.items()}
    sizes = {f"{name}_request_down": _size(request) for name, (request, _) in steps.items()}
    return sizes | {f"{name}_reply_up": _size(reply) for name, (_, reply) in steps.items()}


def expected_memory(settings: RunSettings, backbone: Backbone, clients: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    """Bytes that calibration needs on one machine, planned from the model's configuration and a sample of the texts.

    ``peak`` is the weights, one pass of a step, and the states that are kept for one client; ``gpu`` is that and what a GPU's
    driver and allocator take. ``model.max_pass_tokens`` bounds ``tokens_in_a_pass``.
    """
    config = backbone.model.config
    memory = ModelMemory.of(config, writes_of(config.model_type, settings.model.writes), backbone.model.dtype)
    scorer = Scorer(backbone, settings.task)
    sample = [example.text for examples in clients.values() for example in examples[:_SAMPLE]]
    lengths = [scorer.layout([prompt]).width(prompt) for prompt in scorer.encoder.prompts(sample).tokens]
    step = settings.calibration.batch_size * max(lengths)
    bound = scorer.budget.tokens if backbone.trained_tokens is None else min(scorer.budget.tokens, backbone.trained_tokens)
    in_a_pass = max(max(lengths), min(step, bound))
    kept = 0
    if settings.injection.active_layers(backbone.layers).start:
        most = max(map(len, clients.values()))
        kept = min(MOST_BYTES // memory.kept_token, most * sum(lengths) // len(lengths))
    peak = memory.peak(in_a_pass, kept)
    return {
        "weights": memory.weights,
        "token_of_a_step": memory.trained_token,
        "tokens_in_a_pass": in_a_pass,
        "kept_states_of_a_client": kept * memory.kept_token,
        "peak": peak,
        "gpu": peak + RESERVE,
    }


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
