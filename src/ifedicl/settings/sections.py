"""The sections of a method: the meaning and the allowed values of each setting."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ifedicl.settings.validation import Section

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

_LARGEST_DECAY = 0.1
"""Of what a client's step keeps of the steps before it."""

PRIVATE_DTYPE = "float32"
"""What a model computes in under differential privacy. That one example changes no other was tested in nothing else."""

WireDtype: TypeAlias = Literal["float32", "float16"]
"""Dtypes in which vectors are sent."""


class HoldoutSettings(Section):
    """The parts of each client's examples that are never trained on."""

    selection: Fraction = Field(default=0.2, description="fraction in [0, 1) that chooses the round")
    gate: Fraction = Field(default=0.0, description="fraction in [0, 1) that compares the adapter with zero-shot; 0: no gate")

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.selection + self.gate >= 1.0:
            raise ValueError(
                f"selection + gate is {self.selection + self.gate:g}; keep it below 1, to leave examples to train on"
            )
        return self


class VectorSettings(Section):
    """Stages 1 and 2a: context vectors and their mean (paper Eq. 1-3)."""

    read_position: Literal["label", "prompt"] = Field(
        default="label",
        description='"label": the last token of prompt + label word; "prompt": the token that predicts the label word',
    )
    balance: Literal["none", "class"] = Field(
        default="none",
        description='"none": the mean over examples; "class": the mean of the classes\' means',
    )
    wire_dtype: WireDtype = Field(default="float32", description='"float32", or "float16" for half the bytes of stage 1')


class InjectionSettings(Section):
    """The layers of the injection, and its initial coefficients (paper Eq. 5)."""

    from_depth: Fraction = Field(
        default=0.0, description="fraction of the depth in [0, 1) below which nothing is injected or sent; 0.5: the upper half"
    )
    context_scale: float | Literal["none"] = Field(
        default=0.1,
        description='initial λ, any finite number; "none": λ stays 0 and β 1, so the core of [subspace] alone is calibrated',
    )

    def active_layers(self, layers: int) -> range:
        """The injected layers of a model with ``layers`` layers; at least one."""
        return range(min(int(self.from_depth * layers), layers - 1), layers)


class CalibrationSettings(Section):
    """Stage 2b: how a client trains the coefficients on its own examples, with AdamW (paper Eq. 6)."""

    learning_rate: float = Field(default=0.05, ge=1e-6, le=1.0, description="from 0.000001 to 1")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description='"cosine": falls to 0 over all rounds; "constant"'
    )
    weight_decay: float = Field(
        default=0.001, ge=0.0, description="pull of λ to 0 and β to 1; 0 or more, at most 0.1 / learning_rate"
    )
    batch_size: int = Field(default=8, ge=1, le=100_000, description="examples in a step; 1 to 100000")
    local_steps: int = Field(default=4, ge=1, le=10_000, description="steps a client takes in a round; 1 to 10000")
    loss: Literal["vocabulary", "labels"] = Field(
        default="labels",
        description='"vocabulary": the label word against every token; "labels": against the other label words',
    )

    @model_validator(mode="after")
    def _keeps_all_steps(self) -> Self:
        """A step shrinks the earlier ones by this product. Near 1 an update would be the last step's gradient alone."""
        if (product := self.learning_rate * self.weight_decay) > _LARGEST_DECAY:
            raise ValueError(
                f"learning_rate * weight_decay is {product:g}; keep it at most {_LARGEST_DECAY:g}, or each step wipes out the "
                "steps before it"
            )
        return self


class SubspaceSettings(Section):
    """Not in the paper: a small matrix Γ for each write, in directions ``U`` that all clients share."""

    rank: int = Field(default=8, ge=1, le=256, description="number of directions of each write; 1 to 256")


class ReadoutSettings(Section):
    """Not in the paper: a linear classifier on the adapted model's hidden states, in closed form from sums after the rounds."""

    pooled_depths: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] | None = Field(
        default=None,
        max_length=16,
        description="depths in (0, 1] of the text's mean states, at most 16; []: only the last hidden state and the label "
        "words are used, without an intercept, as in a classification head; left out: [0.2, 0.5, 0.8], with noise [0.5]",
    )
    refinements: int = Field(
        default=3,
        ge=0,
        le=16,
        description="how often sums of products along the present solution are asked for, 0 to 16; with noise never",
    )


class ServerSettings(Section):
    """Not in the paper: an optimizer at the server, in place of the clients' mean.

    Its rate falls to 0 over all rounds, along half a cosine.
    """

    update: Literal["local", "gradient"] = Field(
        default="local",
        description='"local": along the clients\' mean change; "gradient": along the exact gradient of examples that are drawn '
        "by their hash",
    )
    optimizer: Literal["momentum", "adam"] = Field(default="adam", description='"momentum" or "adam"')
    learning_rate: float = Field(default=0.02, gt=0.0, description="rate of the first round; a positive number")
    draw: float = Field(
        default=0.25, gt=0.0, le=1.0, description='fraction of all examples in a round of update "gradient", in (0, 1]'
    )


class RobustSettings(Section):
    """Past the paper: aggregation that a minority of lying clients cannot steer at will, in place of the mean."""

    rule: Literal["trimmed", "median", "bounded"] = Field(
        default="median",
        description='of context vectors and coefficients: "trimmed" leaves out the extremes of every number, "median" takes '
        'the middle one, "bounded" shortens changes that are longer than the median one',
    )
    liars: float = Field(default=0.2, gt=0.0, lt=0.5, description="fraction of the clients that may lie, in (0, 0.5)")


class NoiseSettings(Section):
    """Differential privacy for one example, by noise in the sums over clients."""

    epsilon: float = Field(
        default=4.0, gt=0.0, le=16.0, description="ε of all rounds together for one example, in (0, 16]; 1 is strong"
    )
    delta: float = Field(
        default=1e-5,
        gt=0.0,
        le=1e-3,
        description="probability that ε does not hold, in (0, 0.001]; well below 1 / number of examples",
    )
    clip: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="longest gradient of one example, relative to a usual one; above 0 and at most 100",
    )


class RoundSettings(Section):
    """The rounds, and the choice of one of them (paper Eq. 7; test text is not used)."""

    rounds: int = Field(
        default=10,
        ge=0,
        le=100_000,
        description="number of rounds; 0 to 100000; 0: no calibration, a readout of the raw model from one message",
    )
    client_fraction: float = Field(
        default=1.0, gt=0.0, le=1.0, description="fraction of the clients asked in each round, in (0, 1]"
    )
    evaluate_every: int = Field(default=1, ge=1, description="rounds between evaluations on held-out client examples")
    select_by: Literal["loss", "accuracy", "last"] = Field(
        default="loss", description='"loss" or "accuracy" on held-out client examples, or "last" for the last round'
    )


class PrivacySettings(Section):
    """Whether the coordinator sees each client's replies, or only their sums."""

    mode: Literal["open", "secure", "private"] = Field(
        default="open",
        description='"open": the coordinator sees each client\'s replies; "secure": it sees sums over clients only; '
        '"private": sums with noise that hides each example, see [privacy.noise]',
    )
    min_survivors: int = Field(
        default=3,
        ge=2,
        description="minimum number of clients in a revealed sum; 2 or more (with 2, each can compute the other)",
    )
    dropout: float = Field(default=0.3, ge=0.0, lt=0.5, description="fraction of a sum's clients that may be lost, in [0, 0.5)")
    colluders: int = Field(
        default=1,
        ge=0,
        description="clients that may tell a lying coordinator all that they know, their noise too; 0 or more, at least 2 "
        "fewer than min_survivors",
    )
    min_examples: int = Field(
        default=8, ge=1, description="minimum number of training examples, or added ones, at a client that sends; 1 or more"
    )
    noise: NoiseSettings | None = Field(default=None, description='a section [privacy.noise], for mode "private" only')

    @model_validator(mode="after")
    def _has_noise_if_private(self) -> Self:
        if (self.mode == "private") != (self.noise is not None):
            raise ValueError(
                f'mode is "{self.mode}" and [privacy.noise] is {"absent" if self.noise is None else "present"}; '
                'mode "private" needs it, and no other mode has it'
            )
        return self

    @model_validator(mode="after")
    def _hides_among_honest_clients(self) -> Self:
        if self.min_survivors < self.colluders + 2:
            raise ValueError(
                f"min_survivors is {self.min_survivors} and colluders is {self.colluders}; a sum over fewer than two others is "
                "one client's numbers. Raise min_survivors, or lower colluders"
            )
        return self

    @property
    def is_secure(self) -> bool:
        """Whether only sums leave the clients."""
        return self.mode != "open"

    def threshold(self, clients: int) -> int:
        """Minimum number ``t`` of survivors of a sum over ``n`` clients, of whom ``c`` may collude with a server that lies.

        ``2 t > n + c``: two different lists of survivors need ``2 t`` signatures, and there are at most ``n + c``, as only
        colluders sign twice (Bonawitz et al. 2017). It is higher where ``dropout`` allows fewer losses.
        """
        return max(self.min_survivors, clients - int(self.dropout * clients), (clients + self.colluders) // 2 + 1)
