"""What a data owner lets out: a file ``client.toml`` on its own machine, which no coordinator can change.

:class:`Policy` is the rules; :class:`ClientSettings` adds what is only of this machine: where data, model and ledger lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ifedicl.errors import ConfigError, Fault
from ifedicl.settings import ModelSettings, PrivacySettings, Section, anchored, anchored_model, read_toml, validated

ANY = "any"
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64}|any)$")]


class AllowSettings(Section):
    """What may be asked, and which kinds of answers may leave."""

    tasks: tuple[Digest, ...] = Field(
        default=(),
        description='digests of tasks (64 hexadecimal digits; `ifedicl policy check` tells a config\'s), or "any"',
    )
    models: tuple[Digest, ...] = Field(
        default=(),
        description='fingerprints of models (64 hexadecimal digits; `ifedicl policy check` tells a config\'s), or "any"',
    )
    class_counts: bool = Field(default=False, description="true: how many examples of each label there are may leave")
    readout_sums: bool = Field(
        default=False, description="true: sums of products of hidden states may leave; [readout] in a config needs them"
    )
    gradient_sums: bool = Field(
        default=False, description='true: exact gradient sums may leave; server.update = "gradient" in a config needs them'
    )

    def task(self, digest: str) -> bool:
        """Whether this task may be asked."""
        return not {digest, ANY}.isdisjoint(self.tasks)

    def model(self, fingerprint: str) -> bool:
        """Whether this model may be used."""
        return not {fingerprint, ANY}.isdisjoint(self.models)


class LeastSettings(Section):
    """How many examples must stand behind what leaves."""

    examples: int = Field(
        default=8, ge=1, description="fewest training examples behind vectors, an update or a sum; 1: no such check"
    )
    new_examples: int = Field(
        default=8,
        ge=1,
        description="fewest examples by which two sets of vectors of one task may differ; 1: no such check",
    )
    group: int = Field(default=4, ge=1, description="fewest examples in a class whose mean leaves; 1: no such check")
    held_out: int = Field(default=4, ge=1, description="fewest held-out examples behind a figure; 1: no such check")


class MostSettings(Section):
    """How much may leave. What has left already is read from the ledger, so that a restart forgets nothing."""

    rounds: int = Field(default=200, ge=0, description="updates and gradient sums in one job; 0: no limit")
    bytes_up: int = Field(default=50_000_000, ge=0, description="bytes in one job, the engine's own included; 0: no limit")
    epsilon: float = Field(
        default=0.0,
        ge=0.0,
        description="what all jobs together may tell of one example; above 0, only noisy sums get an answer; 0: no limit",
    )
    jobs: int = Field(
        default=20, ge=0, description="jobs (task, settings and model together) that ever get an answer; 0: no limit"
    )


class SumSettings(Section):
    """That this client takes part in secure sums only, and with whom."""

    peers: Mapping[str, Identity] = Field(
        description="the other clients' identities (64 hexadecimal digits, as `ifedicl policy identity` prints them), by name"
    )
    min_survivors: int = Field(default=3, ge=2, description="fewest clients whose sum is ever revealed; 2 or more")
    dropout: float = Field(
        default=0.3, ge=0.0, lt=0.5, description="fraction of a sum's clients that may be lost on the way, in [0, 0.5)"
    )


class Policy(Section):
    """The rules. The default lets nothing out: it allows no task and no model."""

    allow: AllowSettings = Field(default_factory=AllowSettings)
    least: LeastSettings = Field(default_factory=LeastSettings)
    most: MostSettings = Field(default_factory=MostSettings)


class SiteDataSettings(Section):
    """The owner's labelled text."""

    file: str = Field(min_length=1, description="a .jsonl, .csv, .tsv or .parquet file")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")


class LedgerSettings(Section):
    """Where the record of what left lies."""

    file: str = Field(default="ledger.jsonl", min_length=1, description="a file that is only ever appended to")
    secret: str = Field(
        default="client.secret", min_length=1, description="a file with a key of your own, made at the first start"
    )


class ClientSettings(Policy):
    """A whole ``client.toml``."""

    data: SiteDataSettings
    model: ModelSettings
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    sums: SumSettings | None = Field(default=None, description="[sums] lets out masked numbers only; without it, replies")

    @property
    def sum_rules(self) -> PrivacySettings | None:
        """What this owner asks of a secure sum; None: it answers in open mode."""
        if self.sums is None:
            return None
        sums, least = self.sums, self.least.examples
        return PrivacySettings(mode="secure", min_survivors=sums.min_survivors, dropout=sums.dropout, min_examples=least)

    @property
    def policy(self) -> Policy:
        """The rules alone."""
        return Policy(**{name: getattr(self, name) for name in Policy.model_fields})


def open_policy() -> Policy:
    """Rules for clients that are only played: all may leave, and the ledger tells what did."""
    kinds = {"class_counts": True, "readout_sums": True, "gradient_sums": True}
    return Policy(
        allow=AllowSettings(tasks=(ANY,), models=(ANY,), **kinds),
        least=LeastSettings(examples=1, new_examples=1, group=1, held_out=1),
        most=MostSettings(rounds=0, bytes_up=0, jobs=0),
    )


def load_client_settings(path: Path) -> ClientSettings:
    """Read a ``client.toml``. Relative paths within it are taken from its own folder.

    Raises:
        ConfigError: it is absent, not TOML, or wrong; every fault is in the message.
    """
    settings = validated(ClientSettings, read_toml(path, "ifedicl policy init"), str(path))
    try:
        return _in_folder(settings, path.resolve().parent)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user, a NUL
        fault = Fault("data, model or ledger", "a path that cannot be", "paths of files", f"{error}. Correct the path.")
        raise ConfigError(str(path), [fault]) from error


def _in_folder(settings: ClientSettings, folder: Path) -> ClientSettings:
    data, ledger = settings.data, settings.ledger
    places = {"file": anchored(ledger.file, folder), "secret": anchored(ledger.secret, folder)}
    return settings.model_copy(
        update={
            "data": data.model_copy(update={"file": anchored(data.file, folder)}),
            "model": anchored_model(settings.model, folder),
            "ledger": ledger.model_copy(update=places),
        }
    )
