"""Settings of earlier versions that were moved or removed, and the remedy for a file that has them."""

from __future__ import annotations

from collections.abc import Mapping

_WEIGHTING = 'Remove the line, and write weighting = "uniform" or "examples" before the sections: it applies to both steps.'
_COORDINATION = "Move the line to [coordination]."
_REMOVE = "Remove the line"

REMEDIES: Mapping[str, str] = {
    "rounds.deadline_seconds": _COORDINATION,
    "rounds.min_clients": _COORDINATION,
    "rounds.patience": _COORDINATION,
    "rounds.weighting": _WEIGHTING,
    "vectors.weighting": _WEIGHTING,
    "vectors.refresh_every": f"{_REMOVE}; ifedicl run --more-rounds takes in examples that were added.",
    "injection.to_depth": f"{_REMOVE}: all layers above injection.from_depth are injected.",
    "injection.writes": f"{_REMOVE}: both writes of a layer are injected.",
    "injection.activation_scale": f"{_REMOVE}: β starts at 1.",
    "calibration.optimizer": f"{_REMOVE}: the optimizer is AdamW.",
    "calibration.warmup_steps": f"{_REMOVE}: there is no warm-up.",
    "calibration.noise": f"{_REMOVE}: no noise is added to the writes.",
    "server.schedule": f"{_REMOVE}: the rate falls to 0 along half a cosine.",
    "server.momentum": f"{_REMOVE}: it is 0.9.",
    "subspace.source": f"{_REMOVE}: directions come from class means.",
    "subspace.parts": f"{_REMOVE}: directions come from class means.",
    "readout.pooled_depth": "Write readout.pooled_depths = [0.5], or leave it out for several depths; 0.0 is now [].",
    "readout.most_features": f"{_REMOVE}: hidden states wider than 2048 are projected.",
    "robust.updates": "Write robust.rule: it holds for coefficients and vectors.",
    "robust.vectors": f"{_REMOVE}: robust.rule holds for coefficients and vectors.",
    "privacy.noise.colluders": "Move the line to [privacy]: it holds for sums without noise, too.",
    "robust.bound": f"{_REMOVE}: changes that are longer than the median one are shortened to it.",
    "privacy.min_clients": "Write privacy.min_survivors.",
    "privacy.drop_out": "Write privacy.dropout.",
    "privacy.bits": f"{_REMOVE}: the width of each number is fixed.",
    "privacy.largest_update": f"{_REMOVE}: the longest update that leaves a client is fixed.",
    "sums.min_clients": "Write sums.min_survivors.",
    "sums.drop_out": "Write sums.dropout.",
}
"""By the full name of the earlier setting, in a config file or a ``client.toml``."""
