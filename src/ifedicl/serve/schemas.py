"""Requests and answers of the HTTP interface, as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

TEXTS_EXAMPLE = ["The nurse called me back within minutes and explained everything kindly."]
ANSWER_EXAMPLE: dict[str, Any] = {
    "model": {
        "name": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "fingerprint": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "dtype": "float32",
    },
    "adapter": {"name": "demo", "version": "4236301f3912"},
    "results": [{"label": "positive", "probabilities": {"negative": 0.1086, "neutral": 0.0382, "positive": 0.8533}}],
    "zero_shot": [{"label": "positive", "probabilities": {"negative": 0.0687, "neutral": 0.0073, "positive": 0.924}}],
    "truncated": 0,
}
"""What the demo's adapter answers to :data:`TEXTS_EXAMPLE`."""


class ClassifyRequest(BaseModel):
    """One text or several, for one adapter."""

    model_config = ConfigDict(extra="forbid")

    texts: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="one text, or a list of them", examples=[TEXTS_EXAMPLE]
    )
    adapter: str | None = Field(default=None, description="name of the adapter; may be left out where only one is served")
    zero_shot: bool = Field(default=False, strict=True, description="true or false: also ask the raw model, for comparison")
    min_confidence: float = Field(
        default=0.0, ge=0.0, le=1.0, strict=True, description="a number from 0 to 1; a label of a lower probability is null"
    )

    @property
    def listed(self) -> list[str]:
        """The texts as a list."""
        return [self.texts] if isinstance(self.texts, str) else self.texts


class Labelled(BaseModel):
    """The answer to one text."""

    label: str | None = Field(description="the most probable label; null if its probability is below min_confidence")
    probabilities: dict[str, float] = Field(description="of every label; they sum to 1")


class ModelFacts(BaseModel):
    """The frozen model."""

    name: str
    fingerprint: str = Field(description="SHA-256 of weights and tokenizer")
    dtype: str


class AdapterName(BaseModel):
    """The adapter that answered."""

    name: str
    version: str


class ClassifyAnswer(BaseModel):
    """The answers, in the order of the texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER_EXAMPLE]})

    model: ModelFacts
    adapter: AdapterName
    results: list[Labelled]
    zero_shot: list[Labelled] | None = Field(default=None, description="the raw model's answers, if asked for")
    truncated: int = Field(description="texts that were cut at their end to fit the model's window")


class AdapterFacts(AdapterName):
    """A served adapter."""

    task: str
    labels: list[str]
    origin: str = Field(description="folder or store")
    coefficients: int = Field(description="calibrated numbers")


class ClientFacts(BaseModel):
    """What one client sent in the run that made an adapter."""

    client: str
    sent_bytes: dict[str, int] = Field(description="by kind of message")
    received_bytes: int
    failures: int


class ClassFigures(BaseModel):
    """Figures of one label."""

    label: str
    examples: int
    right: int
    zero_shot_right: int | None = None


class AdapterDetail(AdapterFacts):
    """All known facts of an adapter."""

    template: str
    label_words: list[str]
    readout: bool
    first_layer: int = Field(description="first injected layer, from 0; the lists by layer begin there")
    context_scale: list[list[float]] = Field(description="λ, by layer: attention, MLP")
    activation_scale: list[list[float]] = Field(description="β, by layer: attention, MLP")
    subspace_core: list[list[float]] | None = Field(description="norm of Γ, by layer: attention, MLP; null without a subspace")
    figures: dict[str, float | int | bool | str | None] = Field(description="of the run, as far as known")
    per_class: list[ClassFigures] = Field(description="on the run's test text, if it had one")
    clients: list[ClientFacts] = Field(description="of the run, if its folder is known")
    provenance: dict[str, object]


class LimitFacts(BaseModel):
    """Bounds of one request."""

    texts: int
    texts_with_zero_shot: int = Field(description="with zero_shot")
    characters: int = Field(description="of one text")
    body_bytes: int


class AdapterList(BaseModel):
    """All served adapters."""

    model: ModelFacts
    adapters: list[AdapterFacts]
    limits: LimitFacts


class RunFacts(BaseModel):
    """A run in the server's folder of runs."""

    name: str
    task: str | None
    age_seconds: float = Field(description="since its metrics.jsonl last grew")


class RunList(BaseModel):
    """All runs, newest first."""

    runs: list[RunFacts]


class RunLines(BaseModel):
    """Consecutive lines of a run's metrics.jsonl."""

    lines: list[dict[str, object]]
    next: int = Field(description="give it as `since`, with `generation`, to get the lines that follow")
    generation: int = Field(description="differs from the one before: the file was replaced, and these are its first lines")
    age_seconds: float


class FaultFacts(BaseModel):
    """One error."""

    code: str
    message: str


class FaultAnswer(BaseModel):
    """The body of every error answer."""

    error: FaultFacts
