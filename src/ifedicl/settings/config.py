"""A whole config file: the method, coordination, and this machine's model and data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, Self
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator

from ifedicl.kinds import TaskField
from ifedicl.kinds.any_task import AnyTask
from ifedicl.settings.method import Method
from ifedicl.settings.validation import PathText, Section

_PLACE = re.compile(r"cpu|disk|cuda(:\d+)?")

TOGETHER = "all clients"
"""The name under which the coordinator keeps sums; no client has it."""


_LONGEST_NAME, _SHOWN_NAME = 200, 40
CLIENT_NAME = "one character or more, all of them visible, and not too long for a file's name"
"""What :func:`is_client_name` allows."""


def is_client_name(name: object) -> bool:
    """Whether a client can have this name: it is seen in reports, and a file is called after it."""
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and len(quote(name)) <= _LONGEST_NAME


def shortened(name: str) -> str:
    """The beginning of a name, for messages."""
    return name if len(name) <= _SHOWN_NAME else f"{name[:_SHOWN_NAME]}…"


class Coordination(Section):
    """How the coordinator drives a run: deadline, minimum number of replies, early stop.

    It is not sent to clients and not part of any digest, so a run can be resumed with a longer deadline or fewer clients.
    """

    deadline_seconds: float = Field(default=3600.0, gt=0.0, description="longest wait for a step; above 0")
    min_clients: int = Field(default=1, ge=1, description="minimum number of usable replies in a step; 1 or more")
    clients_in_a_pass: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="simulated clients whose training rows share each pass, 1 to 1000; 1: one client after another",
    )
    patience: int = Field(default=0, ge=0, description="evaluations without improvement before the run stops; 0: no early stop")


def check_coordination(method: Method, coordination: Coordination) -> None:
    """Check how a run is driven against its method.

    Raises:
        ValueError: they contradict each other.
    """
    if method.sums_only and coordination.min_clients > 1:
        raise ValueError(
            "coordination.min_clients must be 1 where the coordinator sees sums only, because a sum is one reply. "
            "privacy.min_survivors takes its place"
        )


def check_task(method: Method, task: AnyTask) -> None:
    """Check a method against the kind of its task.

    Raises:
        ValueError: they contradict each other.
    """
    if method.promises_noise and not task.takes_noise:
        raise ValueError(
            f'task.kind "{task.kind}" has no sums with noise, so privacy.mode "private" would promise what nobody computes. '
            'Take "secure" or "open"'
        )
    if method.calibration.loss == "vocabulary" and not task.has_word_loss:
        raise ValueError(f'calibration.loss "vocabulary" is not defined for task.kind "{task.kind}". Take "labels"')
    if method.readout is not None and not task.columns:
        raise ValueError(f'task.kind "{task.kind}" has no readout; leave [readout] out (readout = false if a preset has it)')


class ModelSettings(Section):
    """The frozen model that every client runs."""

    source: PathText = Field(min_length=1, description="a hub id, a folder with safetensors, or a .gguf file")
    revision: str | None = Field(default=None, description="a branch, tag or commit of the hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description='"float32", "bfloat16" or "float16"; "auto": bfloat16 if the processor has units for it',
    )
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description='"auto", "cpu", "cuda" or "cuda:N"')
    device_map: Literal["auto"] | Mapping[str, str | int] | None = Field(
        default=None,
        description='"auto" divides the model over all GPUs, the host\'s memory and the disk (accelerate); or where each '
        'module goes, as in {"model.layers.0" = 0, "" = "cpu"}, with "disk" for the files; default: one device, model.device',
    )
    quantisation: Literal["int8", "int4"] | None = Field(
        default=None,
        description="whole numbers of 8 or 4 bits for the weights of all layers (torchao); what is made with them fits no "
        "other model; default: none",
    )
    launches: Literal["auto", "plain", "captured"] = Field(
        default="auto",
        description='"auto": fused injections on a GPU with Triton, if they give the plain numbers there; "captured": also '
        'replays passes of repeated shapes as CUDA graphs; "plain": neither',
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=8, description="longest prompt; longer texts are cut, the template never; default: the model's window"
    )
    max_pass_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens, padding included, in one pass of a training step, which is divided into as many; default: as "
        "many as the GPU's memory holds, up to 4 GiB beside the weights. See `ifedicl inspect`",
    )
    writes: Mapping[str, str] | None = Field(
        default=None,
        description='layers, attention and mlp of a family that ifedicl does not know, as in {layers = "model.layers", '
        'attention = "self_attn.o_proj", mlp = "mlp.down_proj"}',
    )

    @field_validator("device_map")
    @classmethod
    def _names_places(cls, places: str | Mapping[str, str | int] | None) -> str | Mapping[str, str | int] | None:
        for place in () if places is None or isinstance(places, str) else places.values():
            if not (isinstance(place, int) and place >= 0) and not _PLACE.fullmatch(str(place)):
                raise ValueError(f"device_map: received {place!r}; allowed: a GPU's number, 'cuda:N', 'cpu' or 'disk'")
        return places

    @model_validator(mode="after")
    def _places_whole_weights(self) -> Self:
        if self.device_map is not None and self.quantisation is not None:
            raise ValueError("give one of device_map and quantisation: a divided model keeps its weights as they are")
        return self


class SplitSettings(Section):
    """Simulated clients: one file, split among them."""

    clients: int = Field(default=10, ge=1, description="how many simulated clients; 1 or more")
    alpha: float = Field(default=0.5, gt=0.0, description="Dirichlet concentration, positive; small: uneven")
    pool: int | None = Field(default=None, ge=2, description="number of examples to draw first; default: all of them")


class DataSettings(Section):
    """The files of labelled text."""

    clients: Mapping[str, PathText] | None = Field(
        default=None, description='one file a client, as in {"clinic-a" = "a.jsonl", "clinic-b" = "b.csv"}'
    )
    train: PathText | None = Field(default=None, description="one file, split among simulated clients by [data.split]")
    split: SplitSettings = Field(default_factory=SplitSettings)
    public: PathText | None = Field(
        default=None,
        description='texts that belong to no client, the same file at every client; privacy.mode "private" needs it',
    )
    test: PathText | None = Field(default=None, description="a file that is read once, at the end, for the report")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")

    @field_validator("clients")
    @classmethod
    def _has_names(cls, clients: Mapping[str, str] | None) -> Mapping[str, str] | None:
        wrong = [name for name in clients or () if not is_client_name(name)]
        if wrong:
            raise ValueError(f"give a client another name than {shortened(wrong[0])!r}: {CLIENT_NAME}")
        return clients

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.clients is None) == (self.train is None):
            raise ValueError("give exactly one of clients (a file for each) and train (one file, split among them)")
        if self.clients is not None and not self.clients:
            raise ValueError("clients is empty; name at least one client and its file")
        if self.clients is not None and TOGETHER in self.clients:
            raise ValueError(f'clients: "{TOGETHER}" is the name of sums; give the client another name')
        return self


class RunSettings(Method):
    """A whole config file."""

    preset: str | None = Field(default=None, description="a shipped settings file to start from, for instance paper")
    task: TaskField
    model: ModelSettings
    data: DataSettings
    coordination: Coordination = Field(default_factory=Coordination)

    @model_validator(mode="after")
    def _has_public_text(self) -> Self:
        if self.promises_noise and self.data.public is None:
            raise ValueError('privacy.mode "private" computes its vectors from public text; name a file of it in data.public')
        return self

    @model_validator(mode="after")
    def _has_enough_clients(self) -> Self:
        clients = self.data.split.clients if self.data.clients is None else len(self.data.clients)
        if self.privacy is not None and self.sums_only and clients < self.privacy.min_survivors:
            raise ValueError(
                f"data has {clients} clients, fewer than privacy.min_survivors, {self.privacy.min_survivors}: no sum would be "
                "revealed. Name more clients in [data]"
            )
        return self

    @model_validator(mode="after")
    def _is_coordinated(self) -> Self:
        check_coordination(self, self.coordination)
        check_task(self, self.task)
        return self

    @property
    def method(self) -> Method:
        """The part that is sent to the clients."""
        return Method(**{name: getattr(self, name) for name in Method.model_fields})
