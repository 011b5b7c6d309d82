"""What travels to the clients and decides the numbers, and which of its settings contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

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

_DEPTHS = (0.2, 0.5, 0.8)
_DEPTHS_WITH_NOISE = (0.5,)
"""Each number of a sum gets the same noise, so more of them have less of the signal."""
MANY_LABELS = 32
"""For more labels than this a readout does not read their words."""


class Method(Section):
    """All settings that decide the numbers, checked against each other. It travels to the clients."""

    seed: int = Field(default=0, ge=0, description="a whole number, 0 or more; the same seed gives the same adapter")
    weighting: Literal["uniform", "examples"] = Field(
        default="uniform",
        description='weights of the clients\' vectors and coefficients: "uniform": all the same (paper Eq. 3 and 7); '
        '"examples": by number of examples',
    )
    holdout: HoldoutSettings = Field(default_factory=HoldoutSettings)
    vectors: VectorSettings = Field(default_factory=VectorSettings)
    injection: InjectionSettings = Field(default_factory=InjectionSettings)
    calibration: CalibrationSettings = Field(default_factory=CalibrationSettings)
    rounds: RoundSettings = Field(default_factory=RoundSettings)
    subspace: SubspaceSettings | None = Field(default=None, description="a section [subspace]; without it, scalars only")
    readout: ReadoutSettings | None = Field(default=None, description="a section [readout]; without it, label words decide")
    server: ServerSettings | None = Field(default=None, description="a section [server]; without it, the mean of the clients")
    robust: RobustSettings | None = Field(default=None, description="a section [robust]; without it, every client is trusted")
    privacy: PrivacySettings | None = Field(default=None, description="a section [privacy]; without it, the mode is open")

    @field_validator("subspace", "readout", "server", mode="before")
    @classmethod
    def _removed(cls, value: Any) -> Any:
        """``readout = false`` removes a preset's section."""
        return None if value is False else value

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _check_robust(self)
        _check_sums(self)
        noise = None if self.privacy is None else self.privacy.noise
        if self.privacy and noise and (wrong := noise_contradictions(self)):
            raise ValueError(f'privacy.mode "private" would guarantee nothing: {"; ".join(wrong)}')
        if self.takes_gradients and self.rounds.client_fraction < 1:
            raise ValueError(
                'server.update "gradient" draws examples, not clients, and must not depend on which client holds them; '
                "leave rounds.client_fraction at 1"
            )
        if self.fixes_scalars and self.subspace is None:
            raise ValueError(
                'injection.context_scale "none" keeps λ and β where they are, so without [subspace] nothing is calibrated; add '
                "the section, or give a number"
            )
        if self.is_one_shot and (wrong := one_shot_contradictions(self)):
            raise ValueError(f"rounds.rounds is 0, so nothing is injected: {'; '.join(wrong)}")
        is_gated = self.promises_noise and self.holdout.gate > 0  # then one readout is made, and the gate alone decides
        if self.readout is not None and self.holdout.selection == 0 and not is_gated:
            raise ValueError("[readout] is chosen on held-out examples; set holdout.selection above 0, for instance to 0.2")
        return self

    @property
    def is_one_shot(self) -> bool:
        """Whether there are no rounds: nothing is injected, and one message of each client gives a readout of the raw model."""
        return self.rounds.rounds == 0

    @property
    def measures_first(self) -> bool:
        """Whether the raw model is measured on held-out examples before anything is learnt: rounds are compared with it, and
        the numbers of a secure sum get their range from the number of examples. Noise has no use for it in one shot.
        """
        return not self.is_one_shot or (self.sums_only and not self.promises_noise)

    @property
    def takes_updates(self) -> bool:
        """Whether clients take local steps and send coefficients."""
        return not (self.is_one_shot or self.takes_gradients)

    @property
    def rank(self) -> int:
        """Of the subspace; 0 without one."""
        return 0 if self.subspace is None else self.subspace.rank

    @property
    def fixes_scalars(self) -> bool:
        """Whether λ and β stay at 0 and 1, and Γ alone is calibrated."""
        return self.injection.context_scale == "none"

    def pooled_layers(self, layers: int) -> tuple[int, ...]:
        """The layers, 1 to ``layers``, whose inputs the readout averages over the text, from low to high; none: it does not."""
        if self.readout is None:
            return ()
        usual = _DEPTHS_WITH_NOISE if self.promises_noise else _DEPTHS
        depths = usual if self.readout.pooled_depths is None else self.readout.pooled_depths
        return tuple(sorted({max(1, round(depth * layers)) for depth in depths}))

    @property
    def refinements(self) -> int:
        """How often the sums of the readout are refined; noise would have to be added each time."""
        return 0 if self.readout is None or self.promises_noise else self.readout.refinements

    @property
    def promises_noise(self) -> bool:
        """Whether noise hides each example in the sums."""
        return self.privacy is not None and self.privacy.noise is not None

    @property
    def delta(self) -> float:
        """δ of the promise; 0 without noise."""
        return 0.0 if self.privacy is None or self.privacy.noise is None else self.privacy.noise.delta

    @property
    def sums_only(self) -> bool:
        """Whether the coordinator sees sums over clients, and no single client's replies."""
        return self.privacy is not None and self.privacy.is_secure

    @property
    def vectors_add_up(self) -> bool:
        """Whether the coordinator needs only the sum of the clients' context vectors."""
        return self.weighting == "examples" and self.robust is None

    @property
    def takes_gradients(self) -> bool:
        """Whether clients send gradient sums and take no local steps."""
        return self.server is not None and self.server.update == "gradient"

    @property
    def classes_apart(self) -> bool:
        """Whether clients send context vectors by class."""
        return not self.is_one_shot and (self.vectors.balance == "class" or self.subspace is not None)

    def reads_words(self, classes: int) -> bool:
        """Whether a readout for a task with this many labels reads their words' log-probabilities too.

        To run many label words takes longer than to run the text. With noise the features are those of public text, always all.
        """
        return classes <= MANY_LABELS or self.promises_noise

    def injected_layers(self, layers: int) -> range:
        """The injected layers of a model with ``layers`` layers; empty without rounds."""
        return range(0) if self.is_one_shot else self.injection.active_layers(layers)

    def groups(self, classes: int) -> int:
        """The number of sums of writes that a client sends, for a task with ``classes`` labels."""
        return classes if self.classes_apart else 1

    def group_of(self, label: int) -> int:
        """The group of an example whose label has this position in the task: its class, or 0 if all are summed together."""
        return label if self.classes_apart else 0


def one_shot_contradictions(method: Method) -> list[str]:
    """The settings that have no meaning without rounds; none: the method is a readout of the raw model."""
    return _true_ones(
        {
            "[readout] must be there: without it nothing would be learnt": method.readout is None,
            "[subspace] must be left out (subspace = false if a preset has it)": method.subspace is not None,
            "[server] must be left out (server = false if a preset has it)": method.server is not None,
        }
    )


def noise_contradictions(method: Method) -> list[str]:
    """The settings that make the guarantee of a run with noise empty; none: the guarantee holds."""
    server = method.server
    return _true_ones(
        {
            'server.update must be "gradient": local steps are not clipped by example': method.takes_updates,
            'server.optimizer must be "adam": gradients are sent in units of their usual size': (
                server is not None and server.optimizer != "adam"
            ),
            'rounds.select_by must be "accuracy" or "last": losses have no noise and are not sent': (
                method.rounds.select_by == "loss" and method.holdout.selection > 0
            ),
        }
    )


def _true_ones(sentences: Mapping[str, bool]) -> list[str]:
    return [sentence for sentence, is_true in sentences.items() if is_true]


def _check_robust(method: Method) -> None:
    if method.robust is None:
        return
    trusting = {
        'weighting "examples"': method.weighting == "examples",
        'server.update "gradient"': method.takes_gradients,
        "[readout]": method.readout is not None,
        "rounds.client_fraction below 1": method.rounds.client_fraction < 1,
        "a privacy.mode that shows sums only": method.sums_only,
    }
    if wrong := _true_ones(trusting):
        raise ValueError(
            f"[robust] does not go with {', '.join(wrong)}: with these, one client's sums or number of examples can decide, or "
            "most of the asked clients can be liars. Leave out one of the two; readout = false removes a preset's readout"
        )


def _check_sums(method: Method) -> None:
    if method.privacy is None or not method.sums_only:
        return
    wrong = _true_ones(
        {
            'weighting must be "examples", because a sum counts every example the same': method.weighting != "examples",
            "rounds.client_fraction must be 1, because sums over different clients can be subtracted": (
                method.rounds.client_fraction < 1
            ),
        }
    )
    if wrong:
        raise ValueError(f'privacy.mode "{method.privacy.mode}" shows the coordinator sums only: {"; ".join(wrong)}')
