"""A whole config file: a method, how the run is driven, and where the model and the data lie on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from ifedicl.settings.contradictions import check_coordination
from ifedicl.settings.coordination import Coordination
from ifedicl.settings.method import Method
from ifedicl.settings.validation import Section
from ifedicl.task import Task

TOGETHER = "all clients"
"""How the coordinator knows the one client that a sum seems to come from; no client's name."""


class ModelSettings(Section):
    """The frozen model that every client runs."""

    source: str = Field(min_length=1, description="a hub id, a folder with safetensors, or a .gguf file")
    revision: str | None = Field(default=None, description="a branch, tag or commit of the hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description='"float32", "bfloat16" or "float16" to compute in; "auto": bfloat16 where the processor has units for it',
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description='"auto", "cpu", "cuda" or "cuda:N"')
    max_prompt_tokens: int | None = Field(
        default=None, ge=8, description="cut longer prompts (in the text, never in the template); default: the model's window"
    )
    writes: Mapping[str, str] | None = Field(
        default=None,
        description='for a family that ifedicl does not know: layers, attention and mlp, as in {layers = "model.layers", '
        'attention = "self_attn.o_proj", mlp = "mlp.down_proj"}',
    )


class SplitSettings(Section):
    """Simulated clients: one file dealt out."""

    clients: int = Field(default=10, ge=1, description="how many simulated clients; 1 or more")
    alpha: float = Field(default=0.5, gt=0.0, description="Dirichlet concentration, positive; small is uneven")
    pool: int | None = Field(default=None, ge=2, description="draw so many examples first; default: all of them")


class DataSettings(Section):
    """Where the labelled text lies."""

    clients: Mapping[str, str] | None = Field(
        default=None, description='one file a client, as in {"clinic-a" = "a.jsonl", "clinic-b" = "b.csv"}'
    )
    train: str | None = Field(default=None, description="one file, dealt to simulated clients by [data.split]")
    split: SplitSettings = Field(default_factory=SplitSettings)
    public: str | None = Field(
        default=None,
        description='texts that are no one\'s data, the same file at every client; privacy.mode "private" needs it',
    )
    test: str | None = Field(default=None, description="a file read once, at the end, for the report")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.clients is None) == (self.train is None):
            raise ValueError("give either clients (one file each) or train (one file, dealt out), not both and not neither")
        if self.clients is not None and not self.clients:
            raise ValueError("clients is empty; name at least one client and its file")
        if self.clients is not None and TOGETHER in self.clients:
            raise ValueError(f'a client may not be called "{TOGETHER}", the name under which sums are kept; give it another')
        return self


class RunSettings(Method):
    """A whole config file."""

    preset: str | None = Field(default=None, description="a shipped settings file to start from, for instance paper")
    task: Task
    model: ModelSettings
    data: DataSettings
    coordination: Coordination = Field(default_factory=Coordination)

    @model_validator(mode="after")
    def _has_public_text(self) -> Self:
        if self.promises_noise and self.data.public is None:
            raise ValueError('privacy.mode "private" takes its vectors from public text; name a file of it as data.public')
        return self

    @model_validator(mode="after")
    def _has_clients_to_hide_among(self) -> Self:
        clients = self.data.split.clients if self.data.clients is None else len(self.data.clients)
        if self.privacy is not None and self.sums_only and clients < self.privacy.min_survivors:
            raise ValueError(
                f"{clients} clients are fewer than privacy.min_survivors, {self.privacy.min_survivors}: no sum would ever be "
                "revealed. Name more clients in [data]"
            )
        return self

    @model_validator(mode="after")
    def _counts_a_sum_once(self) -> Self:
        check_coordination(self, self.coordination)
        return self

    @property
    def method(self) -> Method:
        """The part that travels to the clients."""
        return Method(**{name: getattr(self, name) for name in Method.model_fields})
