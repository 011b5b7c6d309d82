"""The sections of a method: what each setting means, what is allowed, and what goes together."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ifedicl.settings.validation import Section

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

WireDtype: TypeAlias = Literal["float32", "float16"]
"""What means may cross the network in."""


class HoldoutSettings(Section):
    """Which part of each client's own examples is never trained on."""

    selection: Fraction = Field(default=0.2, description="fraction in [0, 1) that chooses the round")
    gate: Fraction = Field(default=0.0, description="fraction in [0, 1) that compares the adapter with zero-shot; 0: no gate")

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.selection + self.gate >= 1.0:
            raise ValueError(
                f"selection + gate is {self.selection + self.gate:g}; keep it below 1 so that something is trained on"
            )
        return self


class VectorSettings(Section):
    """Stage 1 and 2a: what a context vector is and how clients' vectors become one (paper Eq. 1-3)."""

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
    """Where the context vector is injected, and the coefficients it starts from (paper Eq. 5)."""

    from_depth: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="fraction of the depth in [0, 1) below which nothing is injected or sent; 0.5: the upper half"
    )
    context_scale: float = Field(default=0.1, description="initial λ, any finite number")

    def active_layers(self, layers: int) -> range:
        """The layers of a model with ``layers`` of them that are injected; at least one."""
        return range(min(int(self.from_depth * layers), layers - 1), layers)


class CalibrationSettings(Section):
    """Stage 2b at a client: how it moves the coefficients on its own examples, with AdamW (paper Eq. 6)."""

    learning_rate: float = Field(default=0.05, gt=0.0, description="a positive number")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description='"cosine" falls to 0 over all rounds; "constant" stays'
    )
    weight_decay: float = Field(default=0.001, ge=0.0, description="pull of λ to 0 and β to 1; 0 or more")
    batch_size: int = Field(default=8, ge=1, description="examples a step; 1 or more")
    local_steps: int = Field(default=4, ge=1, description="steps a client takes in a round; 1 or more")
    loss: Literal["vocabulary", "labels"] = Field(
        default="labels",
        description='"vocabulary": the label word against every token; "labels": against the other label words',
    )


class SubspaceSettings(Section):
    """Past the paper: a small matrix Γ for each write, within directions ``U`` that all share."""

    rank: int = Field(default=8, ge=1, le=256, description="directions of each write; 1 to 256")


class ReadoutSettings(Section):
    """Past the paper: after the rounds, a linear classifier on the adapted model's hidden states, in closed form from sums."""

    pooled_depth: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="depth in (0, 1] at which the mean state of the text's tokens is read too; 0: the last hidden state alone",
    )


class ServerSettings(Section):
    """Past the paper: the server moves the coefficients by an optimizer of its own, in place of taking the clients' mean.

    Its rate falls to 0 over all rounds, as half a cosine.
    """

    update: Literal["local", "gradient"] = Field(
        default="local",
        description='"local": along the mean change of the clients\' own steps; "gradient": along the exact gradient of '
        "examples that are drawn by their hash, whoever holds them",
    )
    optimizer: Literal["momentum", "adam"] = Field(default="adam", description='"momentum" or "adam"')
    learning_rate: float = Field(default=0.02, gt=0.0, description="rate of the first round; a positive number")
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="what is kept of earlier rounds' direction, in [0, 1)")
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
    """Differential privacy on top of sums over clients: what one example may change, and how well noise hides it."""

    epsilon: float = Field(
        default=4.0, gt=0.0, le=16.0, description="most that all rounds together tell of one example, in (0, 16]; 1 is strong"
    )
    delta: float = Field(
        default=1e-5, gt=0.0, le=1e-3, description="probability of telling more, in (0, 0.001]; well below 1 in all examples"
    )
    clip: float = Field(
        default=1.0, gt=0.0, description="longest gradient of one example, in lengths of a usual one; a positive number"
    )
    colluders: int = Field(
        default=1, ge=0, description="clients that may tell the coordinator their own noise; 0 or more, fewer than answer"
    )


class RoundSettings(Section):
    """The rounds and how one of them is chosen (paper Eq. 7; the choice never sees test text)."""

    rounds: int = Field(default=10, ge=1, description="how many rounds; 1 or more")
    client_fraction: float = Field(
        default=1.0, gt=0.0, le=1.0, description="fraction of the clients asked in each round, in (0, 1]"
    )
    evaluate_every: int = Field(default=1, ge=1, description="rounds between evaluations on held-out client examples")
    select_by: Literal["loss", "accuracy", "last"] = Field(
        default="loss", description='"loss" or "accuracy" on held-out client examples, or "last" for the last round'
    )


class PrivacySettings(Section):
    """What the coordinator sees: each client's replies, or their sums only."""

    mode: Literal["open", "secure", "private"] = Field(
        default="open",
        description='"open": the coordinator sees each client\'s replies; "secure": sums over clients and nothing else; '
        '"private": such sums with noise that hides each example, as [privacy.noise] says',
    )
    min_survivors: int = Field(
        default=3,
        ge=2,
        description="fewest clients whose sum is ever revealed; 2 or more (of two, each knows the other's part)",
    )
    dropout: float = Field(
        default=0.3, ge=0.0, lt=0.5, description="fraction of a sum's clients that may be lost on the way, in [0, 0.5)"
    )
    min_examples: int = Field(
        default=8, ge=1, description="fewest training examples, or added ones, from which a client sends anything; 1 or more"
    )
    noise: NoiseSettings | None = Field(default=None, description='[privacy.noise] belongs to mode "private", and to no other')

    @model_validator(mode="after")
    def _promises_or_not(self) -> Self:
        if (self.mode == "private") != (self.noise is not None):
            raise ValueError(
                f'mode is "{self.mode}" and [privacy.noise] is {"absent" if self.noise is None else "there"}; '
                '"private" needs it, and no other mode adds noise'
            )
        return self

    @property
    def is_secure(self) -> bool:
        """Whether only sums leave the clients."""
        return self.mode != "open"

    def threshold(self, clients: int) -> int:
        """Fewest of so many clients that must last to the end of a sum: more than half, so that a server that tells clients
        different things cannot have both shares of one of them.
        """
        return max(self.min_survivors, clients - int(self.dropout * clients))
