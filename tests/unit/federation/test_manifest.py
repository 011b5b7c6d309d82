"""A job's manifest: the same file for both sides, names that follow from all of it, and limits that a run needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.subspace import Context
from ifedicl.errors import ConfigError
from ifedicl.federation.manifest import CONTEXT_ID_SIZE, Limits, Manifest, context_id
from ifedicl.federation.messages import Failure
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method
from ifedicl.settings.validation import section_in
from tests.support import tiny
from tests.support.endpoints import engine_of
from tests.support.engines import RecordingEngine
from tests.support.local_runs import real, run_real, shape_of
from tests.support.private import private_method

MODEL = ModelShape("a" * 64, 3, 8)
SECURE: dict[str, Any] = {"weighting": "examples", "privacy": {"mode": "secure"}}
EVERYTHING: dict[str, Any] = {"subspace": {"rank": 2}, "readout": {}, "server": {}, "holdout": {"gate": 0.2}}
METHODS = {
    "plain": tiny.method(),
    "everything": tiny.method(**EVERYTHING),
    "robust": tiny.method(robust={}),
    "secure": tiny.method(**SECURE),
    "private": private_method(),
}


def manifest_of(method: Method = METHODS["plain"], task: Task = tiny.TASK) -> Manifest:
    return Manifest.of(task, method, MODEL)


def again(values: Mapping[str, Any]) -> Manifest:
    return Manifest.from_json(json.loads(json.dumps(values)))


# The file


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("task", [tiny.TASK, tiny.MANY_TOKENS], ids=["one token", "several"])
def test_what_is_written_is_read_again(method: Method, task: Task) -> None:
    manifest = manifest_of(method, task)
    read = again(manifest.to_json())
    assert read == manifest
    assert (read.digest, read.run, read.question) == (manifest.digest, manifest.run, manifest.question)


@pytest.mark.parametrize("value", [2, 0, "1", 1.5, None])
def test_another_format_is_refused_by_name(value: object) -> None:
    assert faults_of(manifest_of().to_json() | {"format": value}) == {"format"}


def faults_of(values: Mapping[str, Any]) -> set[str]:
    with pytest.raises(ConfigError) as caught:
        again(values)
    return {fault.field for fault in caught.value.faults}


def at(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        values = values[name]
    return values


def changed(values: Mapping[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """A copy with another value at ``path``."""
    copy = deepcopy(dict(values))
    at(copy, path[:-1])[path[-1]] = value
    return copy


REQUIRED = [
    *[(name,) for name in ("format", "task", "method", "model", "limits")],
    *[("task", name) for name in ("name", "labels")],
    *[("model", name) for name in ("fingerprint", "layers", "width")],
    *[("limits", name) for name in ("rounds", "updates", "figures", "sums", "contexts")],
]


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_a_missing_field_is_refused_by_name(path: tuple[str, ...]) -> None:
    values = manifest_of().to_json()
    del at(values, path[:-1])[path[-1]]
    assert faults_of(values) == {".".join(path)}


SECTIONS: list[tuple[str, ...]] = [(), ("task",), ("method",), ("method", "rounds"), ("model",), ("limits",)]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda path: ".".join(path) or "the file")
def test_an_unknown_field_is_refused_by_name(section: tuple[str, ...]) -> None:
    assert faults_of(changed(manifest_of().to_json(), (*section, "extra"), 1)) == {".".join((*section, "extra"))}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.fingerprint", "a" * 63),
        ("model.fingerprint", "A" * 64),
        ("model.fingerprint", "a" * 64 + "\n"),
        ("model.layers", 0),
        ("model.width", -1),
        ("model.width", 8.5),
        ("limits.rounds", -1),
        ("limits.rounds", "3"),
        ("limits.figures", True),
        ("limits.sums", None),
        ("limits.contexts", 1e300),
        ("method.rounds.rounds", -1),
        ("method.seed", "7"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(path: str, value: object) -> None:
    assert faults_of(changed(manifest_of().to_json(), tuple(path.split(".")), value)) == {path}


def test_all_faults_are_named_at_once() -> None:
    values = changed(changed(manifest_of().to_json(), ("limits", "sums"), -1), ("model", "layers"), 0)
    assert faults_of(values) == {"limits.sums", "model.layers"}


def test_a_file_that_is_no_object_is_refused() -> None:
    nothing: list[Any] = [[], "text", 3, None]
    for values in nothing:
        with pytest.raises(ConfigError):
            Manifest.from_json(values)


# Its names


def words_of(model: type[BaseModel]) -> set[str]:
    """The words that settings with a choice allow."""
    words: set[str] = set()
    for field in model.model_fields.values():
        if (inner := section_in(field.annotation)) is not None:
            words |= words_of(inner)
        kinds = [field.annotation, *get_args(field.annotation)]
        words |= {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind) if isinstance(word, str)}
    return words


WORDS = sorted(words_of(Method) | words_of(Task))


def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values that are no sections, with their paths."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def other_values(value: object) -> list[object]:
    """Values that may be allowed in the place of this one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1, value / 2, value + 0.1]
    if isinstance(value, str):
        return [value.replace("{text}", "{text} "), *WORDS, "0" * 64, f"{value}x"]
    if isinstance(value, list):
        return [value[::-1]]
    return [{}, 1, 1.5, *WORDS, {"attention": "x", "mlp": "y", "layers": "z"}]


def other_manifests(values: Mapping[str, Any], path: tuple[str, ...], value: object) -> Iterator[Manifest]:
    for other in other_values(value):
        try:
            found = again(changed(values, path, other))
        except ConfigError:
            continue
        if found.to_json() != values:
            yield found


def test_each_field_changes_the_digest_and_all_but_limits_size_and_the_tasks_name_change_the_run() -> None:
    tried, found = set[str](), set[str]()
    for method in METHODS.values():
        manifest = manifest_of(method)
        for path, value in leaves(manifest.to_json()):
            tried.add(".".join(path))
            other = next(other_manifests(manifest.to_json(), path, value), None)
            if other is None:
                continue
            found.add(".".join(path))
            assert other.digest != manifest.digest, path
            of_question = path == ("model", "fingerprint")
            of_run = of_question or path[0] == "method" or (path[0] == "task" and path[1] != "name")
            assert (other.run != manifest.run) is of_run, path
            assert (other.question != manifest.question) is of_question, path
    # Only one format is allowed, the mode decides whether there is a section of the noise, None stands for the usual depths.
    assert tried - found == {"format", "method.privacy.noise", "method.readout.pooled_depths"}
    assert {"method.privacy.noise.epsilon", "method.privacy.mode", "task.template", "limits.updates"} <= found


@pytest.mark.parametrize("name", Limits.model_fields)
def test_a_limit_changes_the_job_and_not_the_run(name: str) -> None:
    manifest = manifest_of()
    more = replace(manifest, limits=manifest.limits.model_copy(update={name: 99}))
    assert more.digest != manifest.digest
    assert (more.run, more.question) == (manifest.run, manifest.question)


def test_more_rounds_are_another_job_of_the_same_run() -> None:
    more = Manifest.of(tiny.TASK, METHODS["plain"], MODEL, rounds=5, phases=2)
    assert more.digest != manifest_of().digest
    assert more.run == manifest_of().run


def test_a_context_is_named_by_its_job_and_its_numbers() -> None:
    vectors = np.arange(48, dtype=np.float32).reshape(3, 2, 8)
    basis = np.ones((3, 2, 2, 8), dtype=np.float32)
    other = vectors.copy()
    other[2, 1, 7] = np.nextafter(other[2, 1, 7], np.float32(99))
    job = manifest_of().digest
    contexts = [Context(vectors), Context(other), Context(vectors, basis), Context(vectors, -basis), Context(vectors, None, 1)]
    names = {context_id(name, context) for name in (job, "b" * 64) for context in contexts}
    assert len(names) == 2 * len(contexts)
    assert {len(name) for name in names} == {CONTEXT_ID_SIZE}
    assert context_id(job, Context(vectors.copy())) == context_id(job, Context(vectors))


# Its limits

NO_SELECTION: dict[str, Any] = {"holdout": {"selection": 0.0, "gate": 0.3}, "rounds": {"select_by": "last"}}


@pytest.mark.parametrize(
    ("sections", "rounds", "phases", "expected"),
    [
        # figures: zero-shot, each evaluated round, and the last round once more
        ({}, 2, 1, Limits(rounds=2, updates=2, figures=2 * (2 + 2), sums=2, contexts=2)),
        ({"rounds": {"evaluate_every": 3}}, 7, 1, Limits(rounds=7, updates=7, figures=2 * (3 + 2), sums=2, contexts=2)),
        ({"holdout": {"gate": 0.2}}, 2, 1, Limits(rounds=2, updates=2, figures=2 * (2 + 3), sums=2, contexts=2)),
        ({"readout": {}}, 2, 1, Limits(rounds=2, updates=2, figures=2 * (2 + 3), sums=2 * 5, contexts=2)),
        (EVERYTHING, 6, 3, Limits(rounds=6, updates=6, figures=2 * (6 + 3 * 4), sums=2 * 3 * 5, contexts=6)),
        (NO_SELECTION, 2, 1, Limits(rounds=2, updates=2, figures=2, sums=2, contexts=2)),
        (SECURE, 5, 2, Limits(rounds=5, updates=10, figures=2 * (5 + 2 * 2), sums=4, contexts=4)),
        ({}, 0, 1, Limits(rounds=0, updates=0, figures=4, sums=2, contexts=2)),
    ],
    ids=["plain", "each third round", "gate", "readout", "three phases", "no selection", "sums over clients", "no rounds"],
)
def test_the_limits_count_what_the_schedules_need(sections: dict[str, Any], rounds: int, phases: int, expected: Limits) -> None:
    assert Limits.of(tiny.method(**sections), rounds, phases) == expected


def test_fewer_rounds_than_those_of_the_method_count_as_these() -> None:
    limits = [Manifest.of(tiny.TASK, METHODS["plain"], MODEL, rounds=rounds).limits.rounds for rounds in (0, 1, 2, 3)]
    assert limits == [2, 2, 2, 3]


_COUNTS = {
    "vectors": "sums",
    "statistics": "sums",
    "products": "sums",
    "context": "contexts",
    "evaluate": "figures",
    "compare": "figures",
    "update": "updates",
}


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_a_run_without_interruptions_needs_its_updates_and_half_of_its_other_limits_at_most(
    name: str, backbone: Backbone, tmp_path: Path
) -> None:
    method, file, needed = METHODS[name], tmp_path / "state", Counter[str]()
    for more, phases in ((0, 1), (1, 2)):
        engine = RecordingEngine(engine_of(real(backbone)))
        outcome = run_real(backbone, method, engine=engine, checkpoint=file, more_rounds=more)
        needed.update(
            _COUNTS[request.kind]
            for client, request, reply in engine.crossed
            if client == "a" and request.kind != "job" and not isinstance(reply, Failure)
        )
        state = outcome.state
        assert state.phases == phases
        limits = Manifest.of(tiny.TASK, method, shape_of(backbone), rounds=state.last_round, phases=phases).limits
        assert needed["updates"] == limits.updates == limits.rounds
        for kind in ("figures", "sums", "contexts"):
            assert 0 < 2 * needed[kind] <= getattr(limits, kind), kind
