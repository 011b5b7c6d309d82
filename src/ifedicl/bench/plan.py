"""A benchmark plan: methods, data sets, models and the training of each method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ifedicl.bench.methods import METHODS
from ifedicl.bench.methods.base import PAPER, BenchMethod, Scope, Size
from ifedicl.bench.methods.lora import FedAvgLoRA, LoRASize
from ifedicl.bench.methods.ours import IFedICL
from ifedicl.bench.plan_file import DEMO, PlanFile
from ifedicl.errors import ConfigError
from ifedicl.settings import Method, ModelSettings, Section, anchored, changed, load_preset, validated


class SetSettings(Section):
    """One data set. In a plan, a string stands for the source alone."""

    source: str = Field(
        min_length=1,
        description='a folder with train and test (.jsonl, .csv, .tsv, .parquet) and meta.json, "hub:OWNER/NAME", or "demo"',
    )
    template: str | None = Field(default=None, description="the prompt; default: that of meta.json, or the usual one")
    labels: tuple[str, ...] | None = Field(default=None, description="default: those of meta.json, or of the training rows")
    label_words: tuple[str, ...] = Field(default=(), description="one word per label in the same order; default: the labels")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")
    tokens: int | None = Field(default=None, ge=1, description="tokens of a usual prompt; for a dry run; default: the plan's")
    pool: int | None = Field(default=None, ge=2, description="training rows that the clients get; default: the plan's")


class ModelPlan(ModelSettings):
    """A frozen model, with two figures for a dry run. The source ``"demo"`` is the model of ``ifedicl demo``."""

    parameters: float | None = Field(default=None, gt=0, description="number of weights; for a dry run")
    tokens_per_second: float | None = Field(
        default=None, gt=0, description="speed of a forward pass on the intended machine; for a dry run"
    )

    @property
    def settings(self) -> ModelSettings:
        """The settings that load the model."""
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})


class TrainingSettings(Section):
    """Training of each trained method; the same for all."""

    rounds: int = Field(default=16, ge=1, description="rounds; 1 or more")
    local_steps: int = Field(default=2, ge=1, description="steps a client takes in a round; 1 or more")
    batch_size: int = Field(default=4, ge=1, description="examples a step; 1 or more")
    evaluate_every: int = Field(default=4, ge=1, description="rounds between evaluations on held-out client examples")

    def passes(self, clients: int) -> int:
        """Examples that all clients together run forwards and backwards in one training."""
        return self.rounds * self.local_steps * self.batch_size * clients


class Variant(Section):
    """IFed-ICL or another trained method with a preset and some changed settings."""

    preset: str = Field(description="the preset that it changes")
    method: Literal["fedavg-lora"] | None = Field(
        default=None, description='"fedavg-lora"; left out: our federation. Of another method rounds, steps and batches count'
    )
    settings: Mapping[str, Any] = Field(
        default_factory=dict, description="changed sections of a config, as in {injection = {from_depth = 0.5}}"
    )
    lora: LoRASize | None = Field(default=None, description='of "fedavg-lora": its rank and where it is; default: the usual')

    @model_validator(mode="after")
    def _is_a_method(self) -> Self:
        try:
            changed(load_preset(self.preset), self.settings, "settings")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.lora is not None and self.method != "fedavg-lora":
            raise ValueError('lora: received a size for another method; allowed: method "fedavg-lora". Leave it out')
        return self

    def named(self, name: str) -> BenchMethod:
        """The method under its name in the plan."""
        if self.method is None:
            return IFedICL(name, self.preset)
        return FedAvgLoRA(name, self.preset, self.lora)


class Grid(Section):
    """Methods that run for each alpha and seed. A method is not repeated for what does not change its figures."""

    methods: tuple[str, ...] = Field(min_length=1, description=f"names of {', '.join(METHODS)}, and the plan's variants")
    alphas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.5,), min_length=1, description="Dirichlet concentrations, above 0; small is uneven"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="whole numbers; each changes pool, split, sample and training"
    )
    sets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="names of the plan's sets; default: all of them"
    )


class Cell(Section):
    """One measurement: names of the plan, seed and alpha; None if the seed or the split does not change the figures."""

    model: str
    set: str
    method: str
    seed: int | None
    alpha: float | None

    def __str__(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        alpha = "" if self.alpha is None else f", α {self.alpha:g}"
        return f"{self.model} {self.set} {self.method}{seed}{alpha}"


class Plan(Section):
    """A plan file."""

    name: str = Field(min_length=1, description="a short name")
    about: str = Field(default="", description="its purpose, in one sentence")
    models: Mapping[str, ModelPlan] = Field(
        min_length=1, description='models by a short name, as in smollm2 = {source = "demo"}'
    )
    sets: Mapping[str, SetSettings] = Field(min_length=1, description='data sets by name, as in subj = "some/folder"')
    variants: Mapping[str, Variant] = Field(
        default_factory=dict, description='additional methods by name, as in [variants.upper] with preset = "subspace"'
    )
    grids: tuple[Grid, ...] = Field(min_length=1, description="[[grids]] sections")
    clients: int = Field(default=10, ge=1, description="simulated clients; 1 or more")
    pool: int = Field(default=400, ge=2, description="training rows that the clients get, held-out rows included")
    test_rows: int = Field(default=300, ge=1, description="test rows, the same for every cell")
    tokens: int = Field(default=48, ge=1, description="tokens of a usual prompt; for a dry run")
    training: TrainingSettings = Field(default_factory=TrainingSettings)

    @field_validator("sets", mode="before")
    @classmethod
    def _from_strings(cls, sets: Any) -> Any:
        if not isinstance(sets, Mapping):
            return sets
        return {name: {"source": value} if isinstance(value, str) else value for name, value in sets.items()}

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for field, named, allowed in (
            ("sets", {name for grid in self.grids for name in grid.sets or ()}, tuple(self.sets)),
            ("methods", {name for grid in self.grids for name in grid.methods}, tuple(self.methods)),
        ):
            if unknown := sorted(named - set(allowed)):
                raise ValueError(f"grids.{field}: received {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")
        if taken := sorted(set(self.variants) & set(METHODS)):
            raise ValueError(f"variants: received {', '.join(map(repr, taken))}; allowed: names that no method has")
        return self

    @cached_property
    def methods(self) -> Mapping[str, BenchMethod]:
        """All methods by name, in the order of the tables."""
        return {**METHODS, **{name: item.named(name) for name, item in self.variants.items()}}

    def cells(self) -> list[Cell]:
        """All cells by grid, then by seed: after the first seed, an unfinished run already has complete tables."""
        cells: list[Cell] = []
        for grid in self.grids:
            order = [None, *grid.seeds]
            cells += sorted(self._cells(grid), key=lambda cell: order.index(cell.seed))
        return list(dict.fromkeys(cells))

    def _cells(self, grid: Grid) -> Iterator[Cell]:
        for model in self.models:
            for name in grid.sets or self.sets:
                for method in grid.methods:
                    scope = self.methods[method].scope
                    for alpha in grid.alphas if scope is Scope.SPLIT else (None,):
                        for seed in (None,) if scope is Scope.SET else grid.seeds:
                            yield Cell(model=model, set=name, method=method, seed=seed, alpha=alpha)

    def pool_of(self, name: str) -> int:
        """Training rows of a set that the clients get, held-out rows included."""
        return self.sets[name].pool or self.pool

    def size(self, name: str) -> Size:
        """Estimated size of each cell of a set; the random split decides the true one."""
        pool = self.pool_of(name)
        held_out = round(load_preset(PAPER).holdout.selection * pool)
        return Size(
            clients=self.clients,
            held_out=held_out,
            training=pool - held_out,
            test=self.test_rows,
            passes=self.training.passes(self.clients),
            evaluations=1 + -(-self.training.rounds // self.training.evaluate_every),
        )

    def method(self, name: str, seed: int) -> Method:
        """The settings of the method ``name`` with the plan's rounds, steps and batches; settings of a variant come last."""
        preset, training = load_preset(self.methods[name].preset), self.training
        steps = {"local_steps": training.local_steps, "batch_size": training.batch_size}
        rounds = {} if preset.is_one_shot else {"rounds": training.rounds, "evaluate_every": training.evaluate_every}
        method = preset.model_copy(
            update={
                "seed": seed,
                "calibration": preset.calibration.model_copy(update=steps),
                "rounds": preset.rounds.model_copy(update=rounds),
            }
        )
        return changed(method, self.variants[name].settings, f"variant {name}") if name in self.variants else method

    def decides(self, cell: Cell) -> str:
        """Hex SHA-256 of all settings that decide the numbers of a cell; a finished cell with this digest does not run again.

        Settings that are None do not count: a new optional setting does not change the digest of older cells.
        """
        facts = {
            "model": self.models[cell.model].settings.model_dump(mode="json", exclude_none=True),
            "set": self.sets[cell.set].model_dump(mode="json", exclude={"source", "tokens", "pool"}),
            "clients": self.clients,
            "pool": self.pool_of(cell.set),
            "test_rows": self.test_rows,
            "method": self.method(cell.method, cell.seed or 0).model_dump(mode="json", exclude_none=True),
        }
        variant = self.variants.get(cell.method)
        if variant and variant.method:
            facts["variant_of"] = variant.method
        if variant and variant.lora:
            facts["lora"] = variant.lora.model_dump(mode="json")
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load_plan(name: str, data: Path | None = None) -> Plan:
    """Read a plan file, or a shipped plan by its name, as :meth:`PlanFile.read`.

    Raises:
        ConfigError: the plan does not exist, or has faults; the message names all of them.
    """
    return plan_of(PlanFile.read(name, data))


def plan_of(file: PlanFile) -> Plan:
    """The plan in a file.

    Raises:
        ConfigError: it has faults; the message names all of them.
    """
    plan = validated(Plan, file.values, file.name)
    sets = {
        key: value if value.source == DEMO else value.model_copy(update={"source": anchored(value.source, file.folder)})
        for key, value in plan.sets.items()
    }
    return plan.model_copy(update={"sets": sets})
