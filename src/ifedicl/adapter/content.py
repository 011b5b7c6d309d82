"""The fields of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.kinds.any_task import AnyTask
from ifedicl.settings import ModelSettings


@dataclass(frozen=True)
class Content:
    """The fields of an :class:`~ifedicl.Adapter`, which documents them."""

    task: AnyTask
    context: Context
    coefficients: Coefficients
    model: ModelSettings
    fingerprint: str
    readout: Readout | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model's hub id or the last part of its path."""
        return Path(self.model.source).name if Path(self.model.source).is_absolute() else self.model.source
