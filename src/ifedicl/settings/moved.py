"""Settings that have moved or are gone: what to do where a file still names them."""

from __future__ import annotations

from collections.abc import Mapping

_ONE_WEIGHTING = 'Remove the line, and write weighting = "uniform" or "examples" before the sections: it holds for both steps.'
_DRIVEN = "Move the line to [coordination]."
_ALWAYS = "Remove the line"

REMEDIES: Mapping[str, str] = {
    "rounds.deadline_seconds": _DRIVEN,
    "rounds.min_clients": _DRIVEN,
    "rounds.patience": _DRIVEN,
    "rounds.weighting": _ONE_WEIGHTING,
    "vectors.weighting": _ONE_WEIGHTING,
    "vectors.refresh_every": f"{_ALWAYS}; ifedicl run --more-rounds takes in examples that were added.",
    "injection.to_depth": f"{_ALWAYS}: all layers above injection.from_depth are injected.",
    "injection.writes": f"{_ALWAYS}: both writes of a layer are injected.",
    "injection.activation_scale": f"{_ALWAYS}: β starts at 1.",
    "calibration.optimizer": f"{_ALWAYS}: the optimizer is AdamW.",
    "calibration.warmup_steps": f"{_ALWAYS}: the rate begins at its full value.",
    "calibration.noise": f"{_ALWAYS}: no noise is added to the writes.",
    "server.schedule": f"{_ALWAYS}: the rate falls to 0 as half a cosine.",
    "subspace.source": f"{_ALWAYS}: directions come from the means of classes.",
    "subspace.parts": f"{_ALWAYS}: directions come from the means of classes.",
    "readout.most_features": f"{_ALWAYS}: states of more than 2048 numbers are projected.",
    "robust.updates": "Write robust.rule: it holds for coefficients and vectors.",
    "robust.vectors": f"{_ALWAYS}: robust.rule holds for coefficients and vectors.",
    "robust.bound": f"{_ALWAYS}: changes that are longer than the median one are shortened to it.",
    "privacy.min_clients": "Write privacy.min_survivors.",
    "privacy.drop_out": "Write privacy.dropout.",
    "privacy.bits": f"{_ALWAYS}: the width of each number is fixed.",
    "privacy.largest_update": f"{_ALWAYS}: the longest update that leaves a client is fixed.",
    "sums.min_clients": "Write sums.min_survivors.",
    "sums.drop_out": "Write sums.dropout.",
}
"""By the full name of a setting of an earlier version: of a config file, or of a ``client.toml``."""
