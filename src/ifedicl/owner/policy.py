"""A data owner's settings: ``client.toml`` on its own machine, which no coordinator can change.

:class:`Policy` holds the rules; :class:`ClientSettings` adds the paths of data, model and ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from ifedicl.errors import ConfigError, Fault
from ifedicl.kinds import KINDS, USUAL
from ifedicl.settings import ModelSettings, PathText, PrivacySettings, Section, anchored, anchored_model, read_toml, validated

ANY = "any"
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|any)$")]


class AllowSettings(Section):
    """The tasks, models and kinds of replies that are allowed. A job that you approve needs no entry in tasks and models."""

    tasks: tuple[Digest, ...] = Field(
        default=(),
        description='digests of tasks (64 hexadecimal digits; `ifedicl policy check` prints a config\'s), or "any"',
    )
    models: tuple[Digest, ...] = Field(
        default=(),
        description='fingerprints of models (64 hexadecimal digits; `ifedicl policy check` prints a config\'s), or "any"',
    )
    class_counts: bool = Field(default=False, description="true: the number of examples of each label may leave")
    readout_sums: bool = Field(
        default=False, description="true: sums of products of hidden states may leave; [readout] in a config needs them"
    )
    gradient_sums: bool = Field(
        default=False, description='true: exact gradient sums may leave; server.update = "gradient" in a config needs them'
    )
    new_splits: bool = Field(
        default=False,
        description="true: a job may hold out other fractions of your examples, or draw others (server.draw), than the last "
        "job with the same model; the difference of two replies can then be one example's",
    )

    def task(self, digest: str) -> bool:
        """Whether this task is allowed."""
        return not {digest, ANY}.isdisjoint(self.tasks)

    def model(self, fingerprint: str) -> bool:
        """Whether this model is allowed."""
        return not {fingerprint, ANY}.isdisjoint(self.models)


class LeastSettings(Section):
    """Minimum numbers of examples behind a reply."""

    examples: int = Field(default=8, ge=1, description="minimum training examples behind a reply; 1: no check")
    new_examples: int = Field(default=8, ge=1, description="minimum examples between two replies to one task; 1: no check")
    step: int = Field(default=4, ge=1, description="minimum examples in each step of an update; 1: no check")
    group: int = Field(default=4, ge=1, description="minimum examples in a class whose mean leaves; 1: no check")
    held_out: int = Field(
        default=4, ge=1, description="minimum held-out examples behind a figure, or between two figures; 1: no check"
    )


class MostSettings(Section):
    """Limits of what may leave. The ledger counts it, so a restart resets no limit."""

    rounds: int = Field(default=200, ge=0, description="maximum updates and gradient sums in one run; 0: no limit")
    figures: int = Field(default=500, ge=0, description="maximum held-out figures and comparisons in one run; 0: no limit")
    sums: int = Field(default=40, ge=0, description="maximum context vectors and readout sums in one run; 0: no limit")
    contexts: int = Field(default=10, ge=0, description="maximum global vectors that one run may send you; 0: no limit")
    total_rounds: int = Field(default=2000, ge=0, description="maximum updates and gradient sums in all runs; 0: no limit")
    total_figures: int = Field(default=5000, ge=0, description="maximum figures and comparisons in all runs; 0: no limit")
    bytes_up: int = Field(default=50_000_000, ge=0, description="maximum bytes in one run, with the engine's own; 0: no limit")
    epsilon: float = Field(
        default=0.0, ge=0.0, description="maximum ε of one example over all jobs; above 0, only noisy sums leave; 0: no limit"
    )
    delta: float = Field(default=1e-5, ge=0.0, le=1e-3, description="maximum δ of a job with noise, if epsilon is above 0")
    jobs: int = Field(default=20, ge=0, description="maximum runs (task, settings and model) that get replies; 0: no limit")


class WorkSettings(Section):
    """Limits of the work that a coordinator can cause."""

    steps: int = Field(default=1000, ge=1, description="maximum local steps in an update")
    seconds: float = Field(default=3600.0, gt=0.0, description="longest time for one request, above 0")
    frame_bytes: int = Field(default=100_000_000, ge=1000, description="largest request in bytes, 1000 or more")
    refusal_seconds: float = Field(
        default=3600.0, ge=0.0, description="requests that are refused share one ledger line in this time; 0: a line for each"
    )


class SumSettings(Section):
    """The client takes part in secure sums only, with these peers."""

    peers: Mapping[str, Identity] = Field(
        description="the other clients' identities (64 hexadecimal digits, as `ifedicl policy identity` prints them), by name"
    )
    min_survivors: int = Field(default=3, ge=2, description="minimum survivors of a sum that is revealed; 2 or more")
    dropout: float = Field(default=0.3, ge=0.0, lt=0.5, description="maximum dropout, a fraction of the clients in [0, 0.5)")
    colluders: int = Field(
        default=1, ge=0, description="clients that may collude with the coordinator; at least 2 fewer than min_survivors"
    )

    @model_validator(mode="after")
    def _makes_rules(self) -> Self:
        PrivacySettings(mode="secure", min_survivors=self.min_survivors, colluders=self.colluders)
        return self


class Policy(Section):
    """The rules. The default allows no task and no model, so nothing leaves but for a job that the owner approves."""

    allow: AllowSettings = Field(default_factory=AllowSettings)
    least: LeastSettings = Field(default_factory=LeastSettings)
    most: MostSettings = Field(default_factory=MostSettings)
    work: WorkSettings = Field(default_factory=WorkSettings)


class SiteDataSettings(Section):
    """The owner's labelled text."""

    file: PathText = Field(min_length=1, description="a .jsonl, .csv, .tsv or .parquet file")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")
    kind: str = Field(default=USUAL.kind, description=f"the kind of task that its rows are for: {', '.join(KINDS)}")
    public: PathText | None = Field(
        default=None,
        min_length=1,
        description="a file of texts that are no client's own, the same at every client; a job with noise needs it",
    )

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"kind: received {kind[:40]!r}; allowed: {', '.join(KINDS)}")
        return kind


class LedgerSettings(Section):
    """The files of the ledger."""

    file: PathText = Field(default="ledger.jsonl", min_length=1, description="the ledger, an append-only file")
    secret: PathText = Field(default="client.secret", min_length=1, description="your key, created at the first start")
    approved: PathText = Field(default="approved.json", min_length=1, description="the jobs that you have approved")


class ClientSettings(Policy):
    """All sections of a ``client.toml``."""

    data: SiteDataSettings
    model: ModelSettings
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    sums: SumSettings | None = Field(default=None, description="[sums]: only masked numbers leave; without it, replies leave")

    @property
    def sum_rules(self) -> PrivacySettings | None:
        """The owner's rules of a secure sum; None: the client replies in open mode."""
        if self.sums is None:
            return None
        sums = self.sums
        return PrivacySettings(
            mode="secure",
            min_survivors=sums.min_survivors,
            dropout=sums.dropout,
            colluders=sums.colluders,
            min_examples=self.least.examples,
        )

    @property
    def policy(self) -> Policy:
        """The rules alone."""
        return Policy(**{name: getattr(self, name) for name in Policy.model_fields})


def open_policy() -> Policy:
    """The policy of a simulated client: everything may leave."""
    kinds = {"class_counts": True, "readout_sums": True, "gradient_sums": True, "new_splits": True}
    return Policy(
        allow=AllowSettings(tasks=(ANY,), models=(ANY,), **kinds),
        least=LeastSettings(examples=1, new_examples=1, step=1, group=1, held_out=1),
        most=MostSettings.model_validate(dict.fromkeys(MostSettings.model_fields, 0) | {"delta": 1e-3}),
        work=WorkSettings(steps=10_000),
    )


def load_client_settings(path: Path) -> ClientSettings:
    """Read a ``client.toml``. Relative paths in it start at its folder.

    Raises:
        ConfigError: the file is missing, not TOML, or has wrong settings; the message lists every fault.
    """
    settings = validated(ClientSettings, read_toml(path, "ifedicl policy init"), str(path))
    try:
        return _in_folder(settings, path.resolve().parent)
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown user, a NUL byte
        fault = Fault("data, model or ledger", "an invalid path", "paths of files", f"{error}. Correct the path.")
        raise ConfigError(str(path), [fault]) from error


def _in_folder(settings: ClientSettings, folder: Path) -> ClientSettings:
    data, ledger = settings.data, settings.ledger
    paths = {name: anchored(getattr(ledger, name), folder) for name in ("file", "secret", "approved")}
    update = {
        "data": data.model_copy(
            update={
                "file": anchored(data.file, folder),
                "public": None if data.public is None else anchored(data.public, folder),
            }
        ),
        "model": anchored_model(settings.model, folder),
        "ledger": ledger.model_copy(update=paths),
    }
    return settings.model_copy(update=update)
