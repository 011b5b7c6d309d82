"""What is known of a model without its weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Identity and size of a model.

    Attributes:
        fingerprint: hex SHA-256 of stored weights and tokenizer: everyone must use the same model.
        layers: ``L``.
        width: ``d``.
    """

    fingerprint: str
    layers: int
    width: int
