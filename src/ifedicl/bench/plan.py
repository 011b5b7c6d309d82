"""A benchmark plan: which methods are measured on which data, and how much each may train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ifedicl.bench.methods import METHODS
from ifedicl.bench.methods.base import PAPER, BenchMethod, Scope, Size
from ifedicl.bench.methods.ours import IFedICL
from ifedicl.errors import ConfigError, Fault
from ifedicl.settings import Method, ModelSettings, Section, anchored, changed, load_preset, toml_of, validated

DEMO = "demo"


class SetSettings(Section):
    """One data set. In a plan, a string is short for its source alone."""

    source: str = Field(
        min_length=1,
        description='a folder with train.jsonl and test.jsonl (and meta.json), "hub:OWNER/NAME", or "demo"',
    )
    template: str | None = Field(default=None, description="the prompt; default: meta.json's, or the usual one")
    labels: tuple[str, ...] | None = Field(default=None, description="default: meta.json's, or those of the training rows")
    label_words: tuple[str, ...] = Field(default=(), description="one a label in the same order; default: the labels")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")


class ModelPlan(ModelSettings):
    """A frozen model, and what a dry run needs to know of it. The source ``"demo"`` is the model of ``ifedicl demo``."""

    parameters: float | None = Field(default=None, gt=0, description="how many numbers its weights are; for a dry run")
    tokens_per_second: float | None = Field(
        default=None, gt=0, description="of a forward pass on the machine that the plan is written for; for a dry run"
    )

    @property
    def settings(self) -> ModelSettings:
        """What loads it."""
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})


class TrainingSettings(Section):
    """What every trained method may spend, alike."""

    rounds: int = Field(default=16, ge=1, description="rounds; 1 or more")
    local_steps: int = Field(default=2, ge=1, description="steps a client takes in a round; 1 or more")
    batch_size: int = Field(default=4, ge=1, description="examples a step; 1 or more")
    evaluate_every: int = Field(default=4, ge=1, description="rounds between evaluations on held-out client examples")

    def passes(self, clients: int) -> int:
        """Examples that all clients together run forwards and backwards."""
        return self.rounds * self.local_steps * self.batch_size * clients


class Variant(Section):
    """Our federation with other settings than a shipped file's."""

    preset: str = Field(description="the shipped settings file that it starts from")
    settings: Mapping[str, Any] = Field(
        default_factory=dict, description="sections of a config that differ, as in {injection = {from_depth = 0.5}}"
    )

    @model_validator(mode="after")
    def _is_a_method(self) -> Self:
        try:
            changed(load_preset(self.preset), self.settings, "settings")
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class Grid(Section):
    """Methods that are run for each alpha and seed. What does not move a method is not repeated for it."""

    methods: tuple[str, ...] = Field(min_length=1, description=f"of {', '.join(METHODS)}, and the plan's variants")
    alphas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.5,), min_length=1, description="Dirichlet concentrations, positive; small is uneven"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="whole numbers; each moves pool, split, sample and training"
    )
    sets: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="names of the plan's sets; default: all of them"
    )


class Cell(Section):
    """One measurement.

    Attributes:
        model: its name in the plan.
        set: likewise.
        method: likewise.
        seed: None where no seed moves the method.
        alpha: None where the split does not move it.
    """

    model: str
    set: str
    method: str
    seed: int | None
    alpha: float | None

    def __str__(self) -> str:
        moved = [f"seed {self.seed}" if self.seed is not None else "", f"α {self.alpha:g}" if self.alpha is not None else ""]
        return ", ".join([f"{self.model} {self.set} {self.method}", *filter(None, moved)])


class Plan(Section):
    """A whole plan file."""

    name: str = Field(min_length=1, description="a short name")
    about: str = Field(default="", description="what it is for, in a sentence")
    models: Mapping[str, ModelPlan] = Field(
        min_length=1, description='models by a short name, as in smollm2 = {source = "demo"}'
    )
    sets: Mapping[str, SetSettings] = Field(min_length=1, description='data sets by name, as in subj = "some/folder"')
    variants: Mapping[str, Variant] = Field(
        default_factory=dict, description='methods of the plan\'s own by name, as in [variants.upper] with preset = "subspace"'
    )
    grids: tuple[Grid, ...] = Field(min_length=1, description="[[grids]] sections")
    clients: int = Field(default=10, ge=1, description="simulated clients; 1 or more")
    pool: int = Field(default=400, ge=2, description="training rows dealt to them, held-out ones included")
    test_rows: int = Field(default=300, ge=1, description="test rows, the same for every cell")
    tokens: int = Field(default=48, ge=1, description="of a usual prompt; for a dry run")
    training: TrainingSettings = Field(default_factory=TrainingSettings)

    @field_validator("sets", mode="before")
    @classmethod
    def _from_strings(cls, sets: Any) -> Any:
        if not isinstance(sets, Mapping):
            return sets
        return {name: {"source": value} if isinstance(value, str) else value for name, value in sets.items()}

    @model_validator(mode="after")
    def _grids_name_its_sets(self) -> Self:
        if unknown := sorted({name for grid in self.grids for name in grid.sets or ()} - set(self.sets)):
            raise ValueError(f"a grid names {', '.join(map(repr, unknown))}, which [sets] does not hold")
        return self

    @model_validator(mode="after")
    def _grids_name_methods(self) -> Self:
        if taken := sorted(set(self.variants) & set(METHODS)):
            raise ValueError(f"variants {', '.join(map(repr, taken))} have names of methods; give them others")
        if unknown := sorted({name for grid in self.grids for name in grid.methods} - set(self.methods)):
            raise ValueError(f"no method is called {', '.join(map(repr, unknown))}; there are {', '.join(self.methods)}")
        return self

    @cached_property
    def methods(self) -> Mapping[str, BenchMethod]:
        """All that a grid may name, in the order of the tables."""
        return {**METHODS, **{name: IFedICL(name, variant.preset) for name, variant in self.variants.items()}}

    def cells(self) -> list[Cell]:
        """All cells, grid by grid, the first seed of everything before the second: an unfinished run has whole tables."""
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

    @property
    def size(self) -> Size:
        """Of each cell, about: who holds what is drawn."""
        held_out = round(load_preset(PAPER).holdout.selection * self.pool)
        return Size(
            clients=self.clients,
            held_out=held_out,
            training=self.pool - held_out,
            test=self.test_rows,
            passes=self.training.passes(self.clients),
            evaluations=1 + -(-self.training.rounds // self.training.evaluate_every),
        )

    def method(self, name: str, seed: int) -> Method:
        """The settings of the bench method ``name`` with the plan's rounds, steps and batches; a variant has the last word."""
        preset, training = load_preset(self.methods[name].preset), self.training
        steps = {"local_steps": training.local_steps, "batch_size": training.batch_size}
        rounds = {"rounds": training.rounds, "evaluate_every": training.evaluate_every}
        method = preset.model_copy(
            update={
                "seed": seed,
                "calibration": preset.calibration.model_copy(update=steps),
                "rounds": preset.rounds.model_copy(update=rounds),
            }
        )
        return changed(method, self.variants[name].settings, f"variant {name}") if name in self.variants else method

    def decides(self, cell: Cell) -> str:
        """Hex SHA-256 of all settings that decide the numbers of a cell: what was run under it need not be run again.

        A setting that is None is left out: what a method does not use may be invented later without running it again.
        """
        facts = {
            "model": self.models[cell.model].settings.model_dump(mode="json", exclude_none=True),
            "set": self.sets[cell.set].model_dump(mode="json", exclude={"source"}),
            "clients": self.clients,
            "pool": self.pool,
            "test_rows": self.test_rows,
            "method": self.method(cell.method, cell.seed or 0).model_dump(mode="json", exclude_none=True),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def shipped() -> tuple[str, ...]:
    """Names of the plans that come with ifedicl."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in _plans().iterdir() if file.name.endswith(".toml")))


def load_plan(name: str, data: Path | None = None) -> Plan:
    """A plan file, or a shipped plan by its name.

    Args:
        name: ``cpu`` or a path.
        data: the folder from which the sets' relative folders are taken; left out: the plan's own, or for a shipped plan the
            present one.

    Raises:
        ConfigError: there is no such plan, or it is wrong; every fault is in the message.
    """
    own = name in shipped()
    folder = data or (Path() if own else Path(name).resolve().parent)
    try:
        values = toml_of(_plans() / f"{name}.toml" if own else Path(name))
    except (OSError, UnicodeDecodeError) as error:
        allowed = f"a TOML file, or one of {', '.join(shipped())}"
        raise ConfigError(name, [Fault("plan", name, allowed, f"It cannot be read: {error}.")]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(name, [Fault("file", name, "TOML", f"{error}. Compare with docs/benchmark.md.")]) from error
    plan = validated(Plan, values, name)
    named = {key: value for key, value in plan.sets.items() if value.source != DEMO}
    sets = {key: value.model_copy(update={"source": anchored(value.source, folder)}) for key, value in named.items()}
    return plan.model_copy(update={"sets": {**plan.sets, **sets}})


def _plans() -> Traversable:
    return resources.files("ifedicl") / "bench" / "plans"
