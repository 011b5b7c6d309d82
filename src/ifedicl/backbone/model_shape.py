"""Identity and size of a model, without its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Fingerprint (hex SHA-256 of stored weights and tokenizer), number of layers ``L`` and width ``d`` of a model."""

    fingerprint: str
    layers: int
    width: int
