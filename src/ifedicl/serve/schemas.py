"""Answers of the HTTP interface, as JSON; those of the kinds of task are in :mod:`~ifedicl.serve.asked`."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ModelFacts(BaseModel):
    """The frozen model."""

    name: str
    fingerprint: str = Field(description="SHA-256 of weights and tokenizer")
    dtype: str


class AdapterName(BaseModel):
    """The adapter that answered."""

    name: str
    version: str


class AdapterFacts(AdapterName):
    """A served adapter."""

    task: str
    kind: str = Field(description="of the task, as its config file names it")
    asked_at: str = Field(description="path to which texts go")
    takes: str = Field(description="the field of a request there that holds them")
    labels: list[str] = Field(description="that it gives; empty where the kind has none")
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
    label_words: list[str] = Field(description="one a label; empty where the kind has no labels")
    answers: dict[str, object] = Field(description="what can be answered: the labels, or other settings of the kind")
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

    texts: int = Field(description="some kinds count a text as more than one: see the path that is asked")
    texts_with_zero_shot: int = Field(description="with zero_shot")
    characters: int = Field(description="of one text or option")
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
