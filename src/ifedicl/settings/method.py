"""What travels to the clients and decides the numbers."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

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


class Method(Section):
    """Everything that decides the numbers, as it travels to the clients."""

    seed: int = Field(default=0, ge=0, description="a whole number, 0 or more; the same seed gives the same adapter")
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

    @field_validator("subspace", "readout", "server", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        """``readout = false`` takes out what a preset brings."""
        return None if value is False else value

    @model_validator(mode="after")
    def _believes_no_claim(self) -> Self:
        if self.robust is None:
            return self
        believed = {
            'rounds.weighting "examples"': self.rounds.weighting == "examples",
            'vectors.weighting "examples"': self.vectors.weighting == "examples",
            'server.update "gradient"': self.takes_gradients,
            "[readout]": self.readout is not None,
            "rounds.client_fraction below 1": self.rounds.client_fraction < 1,
            "a privacy.mode that shows sums only": self.sums_only,
        }
        if wrong := [name for name, stands in believed.items() if stands]:
            raise ValueError(
                f"[robust] does not go with {', '.join(wrong)}: there, one client's own sums or numbers of examples decide, or "
                "a drawn few can be liars in the majority. Leave out the one or the other; what a preset brings goes with "
                "readout = false, for instance"
            )
        return self

    privacy: PrivacySettings | None = Field(default=None, description="[privacy] chooses a mode; without it, it is open")

    @model_validator(mode="after")
    def _needs_sums_only(self) -> Self:
        if self.privacy is None or not self.sums_only:
            return self
        contradictions = {
            'vectors.weighting must be "examples", as a sum counts every example alike': self.vectors.weighting != "examples",
            'rounds.weighting must be "examples", as a sum counts every example alike': self.rounds.weighting != "examples",
            "rounds.client_fraction must be 1, since sums over different clients can be subtracted": self.rounds.client_fraction
            < 1,
            "rounds.min_clients must be 1; privacy.min_clients takes its place": self.rounds.min_clients > 1,
        }
        if self.robust is not None:
            contradictions = {"[robust] must be left out, as it compares single clients": True, **contradictions}
        if wrong := [text for text, is_so in contradictions.items() if is_so]:
            raise ValueError(f'privacy.mode "{self.privacy.mode}" shows the coordinator sums only: {"; ".join(wrong)}')
        return self

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        noise = None if self.privacy is None else self.privacy.noise
        if noise is not None and (wrong := noise.contradictions(self, self.privacy.min_clients if self.privacy else 0)):
            raise ValueError(f'privacy.mode "private" would guarantee nothing: {"; ".join(wrong)}')
        return self

    @model_validator(mode="after")
    def _draws_once(self) -> Self:
        if self.takes_gradients and (self.rounds.client_fraction < 1 or self.calibration.noise > 0):
            raise ValueError(
                'server.update "gradient" draws examples, not clients, and must not depend on who holds them; '
                "leave rounds.client_fraction at 1 and calibration.noise at 0"
            )
        return self

    @model_validator(mode="after")
    def _chooses_its_readout(self) -> Self:
        if self.readout is not None and self.holdout.selection == 0:
            raise ValueError("[readout] is chosen on held-out examples; set holdout.selection above 0, for instance to 0.2")
        return self

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
        return self.vectors.weighting == "examples" and self.robust is None

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
