"""The expected time of a run: what is counted, by hand, and what is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from ifedicl import Backbone, Example, Method, Task, load_preset
from ifedicl.data import Role, split_roles
from ifedicl.federation.expected_steps import ExpectedStep
from ifedicl.federation.manifest import Manifest
from ifedicl.runs.expected_time import Pace, client_seconds, measured_pace
from tests.support import tiny

EXAMPLES = tuple(Example(f"a room number {number}", ("good", "bad")[number % 2]) for number in range(40))


def steps(**times: int) -> list[ExpectedStep]:
    return [ExpectedStep(step, often, 0, 0) for step, often in times.items()]


def test_a_clients_seconds_are_those_of_its_examples_in_each_step() -> None:
    method = load_preset("demo")  # batches of 6, two local steps, 15% each for selection and gate
    roles = split_roles(EXAMPLES, selection=0.15, gate=0.15, seed=method.seed)
    train, selection, gate = (len(roles[role]) for role in (Role.TRAIN, Role.SELECTION, Role.GATE))
    pace = Pace(8, whole=10.0, upper=10.0, step=100.0)
    assert client_seconds(EXAMPLES, method, pace, steps(vectors=1)) == 10 * train
    assert client_seconds(EXAMPLES, method, pace, steps(update=5)) == 5 * 2 * 6 * 100
    assert client_seconds(EXAMPLES, method, pace, steps(evaluate=3, compare=1)) == 3 * 10 * selection + 2 * 10 * gate
    assert client_seconds(EXAMPLES, method, pace, steps(job=1, context=1)) == 0


def test_kept_states_are_computed_once_and_each_step_begins_above_them() -> None:
    pace = Pace(8, whole=10.0, upper=4.0, step=0.0)
    once = (10 - 4) * len(EXAMPLES)
    method = load_preset("demo")
    train = len(split_roles(EXAMPLES, selection=0.15, gate=0.15, seed=method.seed)[Role.TRAIN])
    assert client_seconds(EXAMPLES, method, pace, steps(statistics=1)) == once + 4 * train


@pytest.mark.parametrize("preset", ["paper", "subspace", "one-shot"])
def test_the_model_is_timed_on_a_few_texts_of_every_length(backbone: Backbone, preset: str) -> None:
    task = Task(name="mood", labels=("good", "bad"), template="Text: {text}\nMood:")
    ticks: Iterator[int] = count()
    manifest = Manifest.of(task, load_preset(preset), backbone.shape)
    pace = measured_pace(manifest, backbone, {"a": EXAMPLES}, clock=lambda: float(next(ticks)))
    assert pace.texts == 1  # a second for each reading by this clock: more texts would take too long
    assert (pace.whole, pace.upper) == (1, 1)
    assert pace.step == (0 if preset == "one-shot" else 1)


def test_a_fast_model_is_timed_on_a_whole_batch(backbone: Backbone) -> None:
    method: Method = load_preset("paper")
    manifest = Manifest.of(tiny.TASK, method, backbone.shape)
    rows = [replace(example, label=tiny.TASK.labels[0]) for example in EXAMPLES]
    pace = measured_pace(manifest, backbone, {"a": rows}, clock=lambda: 0.0)
    assert pace.texts == min(16, method.calibration.batch_size)
