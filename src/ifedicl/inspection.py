"""What a file is and what a run would send, told before anything is sent."""

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
from ifedicl.federation.assignment import Assignment
from ifedicl.federation.messages import ContextRequest, DealRequest, Envelope, MaskRequest, Reply, Request, RevealRequest
from ifedicl.federation.sample_exchange import SampleCounts, sample_exchange
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.entries import Head
from ifedicl.rows import columns_of, rows_of
from ifedicl.settings import Method, RunSettings, load_settings
from ifedicl.settings.describe import mode_of
from ifedicl.task import SHOWN_LABEL

_HEAD = Head(100, "0" * 64)
_WITHOUT_HEAD = (ContextRequest, DealRequest, MaskRequest, RevealRequest)
"""The context is one for all clients, and of a secure sum the first request alone says how far the client's ledger has come."""


def inspect_path(path: Path) -> dict[str, Any]:
    """Facts about an adapter folder, a config file or a data file, as JSON.

    Raises:
        IfediclError: as reading it raises.
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
    """What a run of this config would do, and every byte that would cross, from messages of the true shapes.

    The model is loaded, since its shape decides the bytes.
    """
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
    """What an owner on its own machine allows, or does not, in its ``client.toml``."""
    return {
        "allow.tasks": settings.task.digest,
        "allow.models": fingerprint,
        "policy": "write one with `ifedicl policy init --config CONFIG`; `ifedicl policy check client.toml --config CONFIG` "
        "tells what it lets out. `ifedicl run` plays all clients on this machine, without policies; each keeps a ledger",
    }


def what_leaves(method: Method) -> list[str]:
    """In words, all that a client of this run sends; of sums, what goes into them."""
    masked = (
        "of all that follows, sums over clients only: its own numbers leave masked, with fresh public keys, sealed shares and "
        "one share of each other client. Readable of itself are the numbers' layout, its dtype, and a code where it stays out"
    )
    return [
        *([masked] if method.sums_only else []),
        *(_noisily(method) if method.promises_noise else _plainly(method)),
        "with every reply: how many entries its ledger has, and the digest of the last",
        "when something fails or is refused: one code of a fixed list, never a text",
    ]


def _noisily(method: Method) -> list[str]:
    """Where noise hides each example."""
    return [
        "once: vectors of public text, the same from every client; a sealed note to itself of how far it has come",
        f"each of {method.rounds.rounds} rounds, with its share of noise: the clipped gradients of the training examples "
        "that it draws, summed",
    ]


def _plainly(method: Method) -> list[str]:
    """Where nothing is changed of it."""
    number = "and their number"
    if method.classes_apart:
        number = "by class, and the number of each"
    readout = (
        ["once, after the rounds: sums of products of hidden states and labels over its training examples"]
        if method.readout
        else []
    )
    moved = (
        "each round: the gradient of the loss summed over the training examples that it draws, their number, their summed loss"
        if method.takes_gradients
        else "each round: its coefficients, its number of training examples, its mean training loss"
    )
    compared = (
        "once, at the end: on the gate examples, how many the adapter and the raw model get right, sums of their losses and of "
        "squared differences, on how many they disagree, how many are of each label and how often each is answered"
    )
    return [
        f"once, and of added examples alone with --more-rounds: the mean of what {_written(method)} write at one "
        f"token over its training examples, {number}; a keyed digest of which examples they were; the dtype it computes in",
        moved,
        "each evaluation: number of held-out examples, how many were right, the sum of their losses",
        *readout,
        *([compared] if method.holdout.gate > 0 else []),
    ]


def _written(method: Method) -> str:
    """Whose writes are sent."""
    lowest = method.injection.from_depth
    return "the model's layers" if lowest == 0 else f"the model's layers above {lowest:g} of its depth"


def expected_bytes(settings: RunSettings, model: ModelShape, clients: Sequence[str]) -> dict[str, int]:
    """Bytes of each step for one client, from encoding one of each message with the shapes that this run has."""
    method = settings.method
    counts = SampleCounts(np.full(method.groups(len(settings.task.labels)), 50), selection=100, gate=100)
    steps = sample_exchange(Assignment(settings.task, method, model), counts)
    if method.privacy is not None and method.sums_only:
        with named_missing_packages(method.privacy):
            from ifedicl.federation.secure.sample_sum import sample_sum

        sums = {name: sample_sum(*step, clients, method.privacy) for name, step in steps.items()}
        sizes = {f"{name}_sum_down": sum(map(_size, requests)) for name, (requests, _) in sums.items()}
        return sizes | {f"{name}_sum_up": sum(map(_size, replies)) for name, (_, replies) in sums.items()}
    sizes = {f"{name}_request_down": _size(request) for name, (request, _) in steps.items()}
    return sizes | {f"{name}_reply_up": _size(reply) for name, (_, reply) in steps.items()}


def _size(message: Request | Reply) -> int:
    return Envelope.of(message, None if isinstance(message, _WITHOUT_HEAD) else _HEAD).size


def inspect_data(path: Path) -> dict[str, Any]:
    """Rows, labels and lengths of a data file; no text is shown."""
    rows = [row for _, row in rows_of(path)]
    if not rows:
        raise DataError(f"{path}: no rows; give a file with at least one labelled text")
    columns = columns_of(rows[0])
    facts: dict[str, Any] = {"kind": "data", "rows": len(rows), "columns": columns}
    if missing := [name for name in ("text", "label") if name not in columns]:
        facts["note"] = (
            f"no column named {' or '.join(missing)}; name yours with text_column and label_column in a config, or check "
            "that the first line is a header"
        )
    if "label" in columns:
        facts["labels"] = dict(Counter(str(row.get("label"))[:SHOWN_LABEL] for row in rows).most_common())
    if "text" in columns:
        words = sorted(len(str(row.get("text", "")).split()) for row in rows)
        facts["words"] = {"median": words[len(words) // 2], "most": words[-1]}
        facts["repeated_texts"] = len(rows) - len({str(row.get("text")) for row in rows})
    return facts
