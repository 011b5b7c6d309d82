"""Settings of a run: frozen, checked together, with all faults reported at once.

:class:`Method` is what travels to the clients and decides the numbers; :class:`RunSettings` adds what is only of this
machine: where the model and the data lie. A config file is TOML; ``preset`` names a shipped file whose sections it starts
from (``paper`` is the paper's variant).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ifedicl.errors import ConfigError, Fault
from ifedicl.task import Task

M = TypeVar("M", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
_SHOWN_CHARACTERS = 80


class Section(BaseModel):
    """Settings that belong together: frozen, and no name is taken that does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    weighting: Literal["uniform", "examples"] = Field(
        default="uniform",
        description='"uniform": every client counts alike (paper Eq. 3); "examples": by its number of examples',
    )
    wire_dtype: Literal["float32", "float16"] = Field(
        default="float32", description='"float32", or "float16" for half the bytes of stage 1'
    )
    refresh_every: int = Field(
        default=0, ge=0, description="rounds between asking clients for vectors of examples added meanwhile; 0: never"
    )


class InjectionSettings(Section):
    """Where the context vector is injected, and the coefficients it starts from (paper Eq. 5)."""

    from_depth: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="fraction of the depth in [0, 1) below which nothing is injected; 0.5: the upper half"
    )
    to_depth: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="fraction of the depth in (0, 1] above which nothing is injected"
    )
    writes: tuple[Literal["attention", "mlp"], ...] = Field(
        default=("attention", "mlp"), min_length=1, description='"attention", "mlp" or both'
    )
    context_scale: float = Field(default=0.1, description="initial λ, any finite number")
    activation_scale: float = Field(default=1.0, description="initial β, any finite number")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.from_depth >= self.to_depth:
            raise ValueError(f"from_depth {self.from_depth:g} is not below to_depth {self.to_depth:g}")
        return self

    def active_layers(self, layers: int) -> range:
        """The layers of a model with ``layers`` of them that are injected; at least one."""
        first = min(int(self.from_depth * layers), layers - 1)
        return range(first, max(first + 1, round(self.to_depth * layers)))


class CalibrationSettings(Section):
    """Stage 2b at a client: how it moves the coefficients on its own examples (paper Eq. 6)."""

    optimizer: Literal["adamw", "adam", "sgd"] = Field(default="adamw", description='"adamw", "adam" or "sgd"')
    learning_rate: float = Field(default=0.05, gt=0.0, description="a positive number")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description='"cosine" falls to 0 over all rounds; "constant" stays'
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rate rises to its full value; 0 or more")
    weight_decay: float = Field(default=0.001, ge=0.0, description="pull of λ to 0 and β to 1; 0 or more")
    batch_size: int = Field(default=8, ge=1, description="examples a step; 1 or more")
    local_steps: int = Field(default=4, ge=1, description="steps a client takes in a round; 1 or more")
    noise: float = Field(
        default=0.0, ge=0.0, description="Gaussian noise on each injected write, as a fraction of its norm; 0 or more"
    )
    loss: Literal["vocabulary", "labels"] = Field(
        default="labels",
        description='"vocabulary": the label word against every token; "labels": against the other label words',
    )


class SubspaceSettings(Section):
    """Past the paper: a small matrix Γ for each write, within directions ``U`` that all share."""

    rank: int = Field(default=8, ge=1, le=256, description="directions of each write; 1 to 256")
    source: Literal["classes", "shards", "clients", "random"] = Field(
        default="classes",
        description='where the directions come from: means of "classes", of "shards" of classes, of classes within groups of '
        '"clients", or "random"',
    )
    parts: int = Field(default=4, ge=2, le=64, description="shards of each class, or groups of clients; 2 to 64")


class ReadoutSettings(Section):
    """Past the paper: after the rounds, a linear classifier on the adapted model's hidden states, in closed form from sums."""

    pooled_depth: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="depth in (0, 1] at which the mean state of the text's tokens is read too; 0: the last hidden state alone",
    )
    most_features: int = Field(
        default=2048, ge=8, description="hidden states of more numbers than this are projected to so many random directions"
    )


class ServerSettings(Section):
    """Past the paper: the server moves the coefficients by an optimizer of its own, in place of taking the clients' mean."""

    update: Literal["local", "gradient"] = Field(
        default="local",
        description='"local": along the mean change of the clients\' own steps; "gradient": along the exact gradient of '
        "examples that are drawn by their hash, whoever holds them",
    )
    optimizer: Literal["momentum", "adam"] = Field(default="adam", description='"momentum" or "adam"')
    learning_rate: float = Field(default=0.02, gt=0.0, description="a positive number; 1 with momentum 0 is plain averaging")
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0, description="what is kept of earlier rounds' direction, in [0, 1)")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description='"cosine" falls to 0 over all rounds; "constant" stays'
    )
    draw: float = Field(
        default=0.25, gt=0.0, le=1.0, description='fraction of all examples in a round of update "gradient", in (0, 1]'
    )


class RobustSettings(Section):
    """Past the paper: aggregation that a minority of lying clients cannot steer at will, in place of the mean."""

    updates: Literal["trimmed", "median", "bounded"] = Field(
        default="median",
        description='of coefficients: "trimmed" leaves out the extremes of every number, "median" takes the middle one, '
        '"bounded" shortens long changes',
    )
    vectors: Literal["trimmed", "median", "bounded"] = Field(
        default="median", description='of context vectors: "trimmed", "median" or "bounded"'
    )
    liars: float = Field(default=0.2, gt=0.0, lt=0.5, description="fraction of the clients that may lie, in (0, 0.5)")
    bound: float = Field(
        default=1.0,
        gt=0.0,
        description='"bounded": longest change that counts, in lengths of the median one; a positive number',
    )


class RoundSettings(Section):
    """The rounds and how one of them is chosen (paper Eq. 7; the choice never sees test text)."""

    rounds: int = Field(default=10, ge=1, description="how many rounds; 1 or more")
    min_clients: int = Field(default=1, ge=1, description="fewest usable replies for a step to count; 1 or more")
    client_fraction: float = Field(
        default=1.0, gt=0.0, le=1.0, description="fraction of the clients asked in each round, in (0, 1]"
    )
    weighting: Literal["uniform", "examples"] = Field(
        default="uniform", description='"uniform": every client counts alike (paper Eq. 7); "examples": by its examples'
    )
    evaluate_every: int = Field(default=1, ge=1, description="rounds between evaluations on held-out client examples")
    select_by: Literal["loss", "accuracy", "last"] = Field(
        default="loss", description='"loss" or "accuracy" on held-out client examples, or "last" for the last round'
    )
    patience: int = Field(default=0, ge=0, description="stop after so many evaluations without a better one; 0: never")
    deadline_seconds: float = Field(default=3600.0, gt=0.0, description="how long the coordinator waits for a step")


class PrivacySettings(Section):
    """What the coordinator sees: each client's replies, or their sums only."""

    mode: Literal["open", "secure"] = Field(
        default="open",
        description='"open": the coordinator sees each client\'s replies; "secure": sums over clients and nothing else',
    )
    min_clients: int = Field(
        default=3,
        ge=2,
        description="fewest clients whose sum is ever revealed; 2 or more (of two, each knows the other's part)",
    )
    drop_out: float = Field(
        default=0.3, ge=0.0, lt=0.5, description="fraction of a sum's clients that may be lost on the way, in [0, 0.5)"
    )
    min_examples: int = Field(
        default=8, ge=1, description="fewest training examples, or added ones, from which a client sends anything; 1 or more"
    )
    largest_update: float = Field(
        default=100.0,
        gt=0.0,
        description="longest change of the coefficients, by Euclidean norm, that a client sends; positive",
    )
    bits: Literal[32, 40, 48, 56] = Field(default=40, description="of each number of a summed vector: 32, 40, 48 or 56")

    @property
    def is_secure(self) -> bool:
        """Whether only sums leave the clients."""
        return self.mode != "open"

    def threshold(self, clients: int) -> int:
        """Fewest of so many clients that must last to the end of a sum: more than half, so that a server that tells clients
        different things cannot have both shares of one of them.
        """
        return max(self.min_clients, clients - int(self.drop_out * clients))


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

    @model_validator(mode="after")
    def _believes_no_claim(self) -> Self:
        if self.robust is None:
            return self
        believed = {
            'rounds.weighting "examples"': self.rounds.weighting == "examples",
            'vectors.weighting "examples"': self.vectors.weighting == "examples",
            'server.update "gradient"': self.takes_gradients,
            "[readout]": self.readout is not None,
            'subspace.source "clients"': self.subspace is not None and self.subspace.source == "clients",
            "rounds.client_fraction below 1": self.rounds.client_fraction < 1,
        }
        if wrong := [name for name, stands in believed.items() if stands]:
            raise ValueError(
                f"[robust] does not go with {', '.join(wrong)}: there, one client's own sums or numbers of examples decide, or "
                "a drawn few can be liars in the majority. Leave out the one or the other"
            )
        return self

    privacy: PrivacySettings | None = Field(default=None, description="[privacy] chooses a mode; without it, it is open")

    @model_validator(mode="after")
    def _needs_sums_only(self) -> Self:
        if self.privacy is None or not self.sums_only:
            return self
        from_clients = self.subspace is not None and self.subspace.source == "clients"
        contradictions = {
            'vectors.weighting must be "examples", as a sum counts every example alike': self.vectors.weighting != "examples",
            'rounds.weighting must be "examples", likewise': self.rounds.weighting != "examples",
            "rounds.client_fraction must be 1, since sums over different clients can be subtracted": self.rounds.client_fraction
            < 1,
            "rounds.min_clients must be 1; privacy.min_clients takes its place": self.rounds.min_clients > 1,
            'subspace.source must be "classes", "shards" or "random", as "clients" needs each client\'s means': from_clients,
        }
        if self.robust is not None:
            contradictions = {"[robust] must be left out, as it compares single clients": True, **contradictions}
        if wrong := [text for text, is_so in contradictions.items() if is_so]:
            raise ValueError(f'privacy.mode "{self.privacy.mode}" shows the coordinator sums only: {"; ".join(wrong)}')
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
    def sums_only(self) -> bool:
        """Whether the coordinator sees sums over clients, and no single client's replies."""
        return self.privacy is not None and self.privacy.is_secure

    @property
    def takes_gradients(self) -> bool:
        """Whether clients send gradient sums, and take no steps of their own."""
        return self.server is not None and self.server.update == "gradient"

    @property
    def classes_apart(self) -> bool:
        """Whether clients send context vectors by class."""
        from_means = self.subspace is not None and self.subspace.source != "random"
        return self.vectors.balance == "class" or from_means

    @property
    def shards(self) -> int:
        """Into how many parts a client divides the examples of a class."""
        return self.subspace.parts if self.subspace is not None and self.subspace.source == "shards" else 1

    def groups(self, classes: int) -> int:
        """How many sums of writes a client sends, of a task with so many classes."""
        return classes * self.shards if self.classes_apart else 1


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
    test: str | None = Field(default=None, description="a file read once, at the end, for the report")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.clients is None) == (self.train is None):
            raise ValueError("give either clients (one file each) or train (one file, dealt out), not both and not neither")
        if self.clients is not None and not self.clients:
            raise ValueError("clients is empty; name at least one client and its file")
        return self


class RunSettings(Method):
    """A whole config file."""

    preset: str | None = Field(default=None, description="a shipped settings file to start from, for instance paper")
    task: Task
    model: ModelSettings
    data: DataSettings

    @model_validator(mode="after")
    def _has_clients_to_hide_among(self) -> Self:
        clients = self.data.split.clients if self.data.clients is None else len(self.data.clients)
        if self.privacy is not None and self.sums_only and clients < self.privacy.min_clients:
            raise ValueError(
                f"{clients} clients are fewer than privacy.min_clients, {self.privacy.min_clients}: no sum would ever be "
                "revealed. Name more clients in [data]"
            )
        return self

    @property
    def method(self) -> Method:
        """The part that travels to the clients."""
        return Method(**{name: getattr(self, name) for name in Method.model_fields})


def load_settings(path: str | Path) -> RunSettings:
    """Read a config file.

    Relative paths of files within it are taken from its own folder.

    Raises:
        ConfigError: it is absent, not TOML, or wrong; every fault is in the message.
    """
    path = Path(path)
    values = _with_preset(read_toml(path, "ifedicl init"), str(path))
    settings = validated(RunSettings, values, str(path))
    try:
        return _anchored(settings, path.resolve().parent)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user, a NUL
        fault = Fault("model or data", "a path that cannot be", "paths of files", f"{error}. Correct the path.")
        raise ConfigError(str(path), [fault]) from error


def load_preset(name: str) -> Method:
    """A shipped settings file as a :class:`Method`.

    Raises:
        ConfigError: there is no such preset.
    """
    return validated(Method, _preset(name, f"preset {name}"), f"preset {name}")


def changed(method: Method, sections: Mapping[str, Any], source: str) -> Method:
    """``method`` with some fields of some sections replaced, as a config file would give them.

    Raises:
        ConfigError: they do not fit; ``source`` names them in the message.
    """
    return validated(Method, _merged(method.model_dump(exclude_none=True), sections), source)


def presets() -> tuple[str, ...]:
    """Names of the shipped settings files."""
    folder = resources.files("ifedicl") / "presets"
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def validated(model: type[M], values: Mapping[str, Any], source: str) -> M:
    """Build ``model`` from ``values``, with every fault named.

    Raises:
        ConfigError: at least one field is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(source, [_fault(model, dict(item)) for item in _roots(error.errors())]) from error


def read_toml(path: Path, command: str) -> dict[str, Any]:
    """What a TOML file holds.

    Args:
        path: the file.
        command: writes a fresh one.

    Raises:
        ConfigError: it is absent or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = Fault("file", str(path), "a readable TOML file", f"{error.strerror}. Write one with: {command}")
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of thousands of digits, deep nesting
        fault = Fault("file", str(path), "TOML in UTF-8", f"{error}. Compare with a fresh one: {command}")
    raise ConfigError(str(path), [fault])


def _preset(name: str, source: str) -> dict[str, Any]:
    if name not in presets():
        fault = Fault("preset", repr(name), ", ".join(presets()), "Choose one of these or leave the line out.")
        raise ConfigError(source, [fault])
    return tomllib.loads((resources.files("ifedicl") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))


def _with_preset(values: dict[str, Any], source: str) -> dict[str, Any]:
    name = values.get("preset")
    return values if not isinstance(name, str) else _merged(_preset(name, source), values)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _anchored(settings: RunSettings, folder: Path) -> RunSettings:
    def anchored(source: str | None) -> str | None:
        if source is None or source.startswith("hub:"):
            return source
        return str(folder / Path(source).expanduser())

    data = settings.data
    clients = None if data.clients is None else {name: str(anchored(file)) for name, file in data.clients.items()}
    data = data.model_copy(update={"clients": clients, "train": anchored(data.train), "test": anchored(data.test)})
    local = folder / Path(settings.model.source).expanduser()
    model = settings.model.model_copy(update={"source": str(local)}) if local.exists() else settings.model
    return settings.model_copy(update={"data": data, "model": model})


def _roots(errors: Sequence[Any]) -> list[Any]:
    """Errors without those that only follow: a list is "too short" when something in it is wrong."""
    places = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if not any(place != error["loc"] and place[: len(error["loc"])] == error["loc"] for place in places)
    ]


def _fault(model: type[BaseModel], error: Mapping[str, Any]) -> Fault:
    location = [str(part) for part in error["loc"]]
    section, name = _section_of(model, location)
    field = ".".join(location) or "file"
    missing = error["type"] == "missing"
    received = "nothing" if missing else _shown(error["input"])
    if error["type"] == "extra_forbidden":
        known = list(section.model_fields)
        near = difflib.get_close_matches(location[-1], known, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else "Remove the line."
        return Fault(field, "a name that does not exist", ", ".join(known), remedy)
    described = section.model_fields[name].description if name else None
    message = str(error["msg"]).removeprefix("Value error, ")
    if described is None:  # of fields that do not go together; the message says which
        return Fault(field, received, message, "Change one of them.")
    return Fault(field, received, described, "Add it." if missing else f"{message[0].upper()}{message[1:]}.")


def _section_of(model: type[BaseModel], location: list[str]) -> tuple[type[BaseModel], str | None]:
    """The section that ``location`` ends in, and the last of its fields on the way; sections may stand in lists and tables."""
    name = None
    for place, part in enumerate(location):
        if part not in model.model_fields:  # a place in a list, a key of a table, or a name that does not exist
            continue
        name = part
        inner = _section_in(model.model_fields[part].annotation)
        if inner is not None and place + 1 < len(location):
            model, name = inner, None
    return model, name


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of thousands of digits
        text = "a number of too many digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
