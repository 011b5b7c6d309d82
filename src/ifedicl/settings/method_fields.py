"""The fields of a method, and what follows from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ifedicl.settings.sections import (
    CalibrationSettings,
    HoldoutSettings,
    InjectionSettings,
    PrivacySettings,
    ReadoutSettings,
    RobustSettings,
    RoundSettings,
    ServerSettings,
    SubspaceSettings,
    VectorSettings,
)
from ifedicl.settings.validation import Section


class MethodFields(Section):
    """The sections of a method, not yet checked against each other: that is :class:`ifedicl.settings.Method`'s work."""

    seed: int = Field(default=0, ge=0, description="a whole number, 0 or more; the same seed gives the same adapter")
    weighting: Literal["uniform", "examples"] = Field(
        default="uniform",
        description='of vectors and coefficients: "uniform": every client counts alike (paper Eq. 3 and 7); "examples": by its '
        "number of examples",
    )
    holdout: HoldoutSettings = Field(default_factory=HoldoutSettings)
    vectors: VectorSettings = Field(default_factory=VectorSettings)
    injection: InjectionSettings = Field(default_factory=InjectionSettings)
    calibration: CalibrationSettings = Field(default_factory=CalibrationSettings)
    rounds: RoundSettings = Field(default_factory=RoundSettings)
    subspace: SubspaceSettings | None = Field(default=None, description="[subspace] makes a subspace; without it scalars only")
    readout: ReadoutSettings | None = Field(default=None, description="[readout] makes one; without it label words are read")
    server: ServerSettings | None = Field(default=None, description="[server] gives it an optimizer; without it it averages")
    robust: RobustSettings | None = Field(
        default=None, description="[robust] guards against lying clients; without it all are believed"
    )
    privacy: PrivacySettings | None = Field(default=None, description="[privacy] chooses a mode; without it, it is open")

    @field_validator("subspace", "readout", "server", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        """``readout = false`` takes out what a preset brings."""
        return None if value is False else value

    @property
    def rank(self) -> int:
        """Of the subspace; 0 without one."""
        return 0 if self.subspace is None else self.subspace.rank

    def pooled_layer(self, layers: int) -> int | None:
        """Which layer of so many the readout meets the text at, 1 to ``layers``; None where it does not.

        Never one below the lowest that is injected: what enters those need not be kept.
        """
        if self.readout is None or self.readout.pooled_depth == 0:
            return None
        return max(1, round(self.readout.pooled_depth * layers), self.injection.active_layers(layers).start)

    @property
    def promises_noise(self) -> bool:
        """Whether noise hides each example in the sums."""
        return self.privacy is not None and self.privacy.noise is not None

    @property
    def sums_only(self) -> bool:
        """Whether the coordinator sees sums over clients, and no single client's replies."""
        return self.privacy is not None and self.privacy.is_secure

    @property
    def vectors_add_up(self) -> bool:
        """Whether the sum of all clients' context vectors is all that the coordinator needs to keep of them."""
        return self.weighting == "examples" and self.robust is None

    @property
    def takes_gradients(self) -> bool:
        """Whether clients send gradient sums, and take no steps of their own."""
        return self.server is not None and self.server.update == "gradient"

    @property
    def classes_apart(self) -> bool:
        """Whether clients send context vectors by class."""
        return self.vectors.balance == "class" or self.subspace is not None

    def groups(self, classes: int) -> int:
        """How many sums of writes a client sends, of a task with so many classes."""
        return classes if self.classes_apart else 1
