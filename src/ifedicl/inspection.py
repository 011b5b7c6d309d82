"""What a file is and what a run would send, told before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import PENALTIES, TEMPERATURES, Readout, ReadoutSums, feature_count, hidden_count
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES, ContextVectors
from ifedicl.data import Role, split_roles
from ifedicl.errors import DataError
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextReply,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    GradientReply,
    GradientRequest,
    Reply,
    Request,
    StatisticsReply,
    StatisticsRequest,
    StepRequest,
    UpdateReply,
    UpdateRequest,
    VectorsReply,
    VectorsRequest,
    encode,
)
from ifedicl.federation.secure import packages_of
from ifedicl.ledger.entries import Head
from ifedicl.metrics import Comparison, Tally
from ifedicl.rows import columns_of, rows_of
from ifedicl.settings import Method, RunSettings, load_settings
from ifedicl.settings.describe import mode_of
from ifedicl.task import SHOWN_LABEL


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
        "bytes_per_client": expected_bytes(settings, backbone.layers, backbone.width, backbone.fingerprint, tuple(clients)),
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


def expected_bytes(settings: RunSettings, layers: int, width: int, fingerprint: str, clients: Sequence[str]) -> dict[str, int]:
    """Bytes of each step for one client, from encoding one of each message with the shapes that this run has."""
    steps = _steps(settings, layers, width, fingerprint)
    if settings.privacy is not None and settings.sums_only:
        with packages_of(settings.privacy):
            from ifedicl.federation.secure.sizes import expected_traffic

        sizes = {name: expected_traffic(*step, clients, settings.privacy) for name, step in steps.items()}
        return {f"{name}_sum_{way}": size for name, both in sizes.items() for way, size in both.items()}
    # Every message but the context's request tells how far the client's ledger has come.
    head, messages = Head(100, "0" * 64), dict[str, Request | Reply]()
    for name, (request, reply) in steps.items():
        told = request if isinstance(request, ContextRequest) else replace(request, head=head)
        messages |= {f"{name}_request_down": told, f"{name}_reply_up": replace(reply, head=head)}
    return {name: len(encode(message)) for name, message in messages.items()}


def _steps(settings: RunSettings, layers: int, width: int, fingerprint: str) -> dict[str, tuple[StepRequest, Reply]]:
    """One request and reply of each step of a run, with the shapes that it has and made-up numbers."""
    injected = settings.injection.active_layers(layers)
    context_id, coefficients = "0" * 16, Coefficients.identity(Form(len(injected), settings.rank))
    classes = len(settings.task.labels)
    vectors = ContextVectors.zeros(settings.groups(classes), len(injected), width)
    method, task, wire = settings.method, settings.task, settings.vectors.wire_dtype
    mean = np.zeros((len(injected), len(WRITES), width), dtype=np.float32)
    basis = np.zeros((len(injected), len(WRITES), method.rank, width), dtype=np.float32) if method.rank else None
    context = Context(mean, basis, injected.start)
    tally = Tally(100, 50, 123.456789)
    steps: dict[str, tuple[StepRequest, Reply]] = {
        "vectors": (
            VectorsRequest(task, method, fingerprint, ""),
            VectorsReply(vectors, "0" * 40, True, settings.model.dtype, wire),
        ),
        "context": (ContextRequest(task, method, fingerprint, context, context_id), ContextReply()),
        **_round(method, context_id, coefficients),
        "evaluate": (EvaluateRequest(context_id, Role.SELECTION, coefficients), EvaluateReply((tally,))),
    }
    steps |= _readout(method, layers, width, classes, context_id, coefficients)
    if settings.holdout.gate > 0:
        compared = Comparison(tally, tally, 12.3456789, 10, (50,) * classes, (50,) * classes)
        steps["compare"] = CompareRequest(context_id, coefficients, None), CompareReply(compared)
    return steps


def _round(method: Method, context_id: str, coefficients: Coefficients) -> dict[str, tuple[StepRequest, Reply]]:
    """One round, evaluations apart."""
    if method.takes_gradients:
        sums = GradientSum(coefficients.arrays, 100, 0.123456789)
        return {"gradient": (GradientRequest(context_id, 10, coefficients), GradientReply(sums))}
    return {"update": (UpdateRequest(context_id, 10, 0, 10, coefficients), UpdateReply(coefficients, 100, 0.123456789))}


def _readout(
    method: Method, layers: int, width: int, classes: int, context_id: str, coefficients: Coefficients
) -> dict[str, tuple[StepRequest, Reply]]:
    """What a readout adds, once."""
    if method.readout is None:
        return {}
    layer = method.pooled_layer(layers)
    hidden = hidden_count(width, layer)
    size = feature_count(min(hidden, method.readout.most_features), classes)
    sums = ReadoutSums(np.zeros((size, size)), np.zeros((size, classes)), 100)
    weights = np.zeros((classes, feature_count(hidden, classes)), dtype=np.float32)
    readouts = tuple(Readout(weights, layer) for _ in PENALTIES)
    trial = EvaluateRequest(context_id, Role.SELECTION, coefficients, readouts, TEMPERATURES)
    tallies = (Tally(100, 50, 123.456789),) * len(trial.candidates)
    return {
        "statistics": (StatisticsRequest(context_id, coefficients), StatisticsReply(sums)),
        "readouts": (trial, EvaluateReply(tallies)),
    }


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
