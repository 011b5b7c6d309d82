"""Runs of a few clients on the tiny Llama, within the process, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.data import Role, split_roles
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Coordinator, Outcome
from ifedicl.federation.events import Event
from ifedicl.federation.messages import Reply, Request, VectorsReply
from ifedicl.kinds.classify import Example
from ifedicl.settings import Coordination, Method
from tests.support import tiny
from tests.support.endpoints import engine_of

Hands: TypeAlias = dict[str, tuple[Example, ...]]
HANDS: Hands = {name: tiny.examples(count, seed=seed) for seed, (name, count) in enumerate({"a": 9, "b": 6, "c": 11}.items())}
SHORT = tiny.method(rounds={"rounds": 2, "select_by": "last"})


# Real clients


def real(backbone: Backbone, hands: Mapping[str, tuple[Example, ...]] = HANDS) -> list[Client]:
    """One client for each name, on this model."""
    return [Client(name, examples, backbone, secret=name.encode()) for name, examples in hands.items()]


def shape_of(backbone: Backbone) -> ModelShape:
    """The shape of this model."""
    return ModelShape(backbone.fingerprint, backbone.layers, backbone.width)


def run_real(
    backbone: Backbone,
    method: Method = SHORT,
    hands: Mapping[str, tuple[Example, ...]] = HANDS,
    *,
    engine: Any = None,
    **options: Any,
) -> Outcome:
    """A whole run of real clients."""
    return run_with(engine or engine_of(real(backbone, hands)), method, shape_of(backbone), **options)


def run_with(
    engine: Any,
    method: Method,
    shape: ModelShape,
    *,
    checkpoint: Path | None = None,
    observer: Callable[[Event], None] = lambda event: None,
    resume: bool = False,
    more_rounds: int = 0,
    **coordination: Any,
) -> Outcome:
    """A whole run over an engine."""
    coordinator = Coordinator(
        engine,
        tiny.TASK,
        method,
        shape,
        coordination=Coordination(**coordination),
        checkpoint_file=checkpoint,
        observer=observer,
    )
    return coordinator.run(resume=resume, more_rounds=more_rounds)


def assert_same_result(first: Outcome, second: Outcome) -> None:
    """Two runs chose the same round and the same numbers."""
    assert first.context.digest == second.context.digest
    assert first.coefficients.arrays.keys() == second.coefficients.arrays.keys()
    for name, array in first.coefficients.arrays.items():
        np.testing.assert_array_equal(array, second.coefficients.arrays[name])
    assert first.chosen_round == second.chosen_round
    assert first.state.history == second.state.history


def failures(outcome: Outcome) -> list[tuple[str, str, str]]:
    """(client, step, code) of each exchange that failed."""
    return [(item.client, item.step, item.failure) for item in outcome.state.traffic if item.failure]


# Clients that fail

NAN = float("nan")


# Restarts


def counting(backbone: Backbone, rows: list[int], hands: Mapping[str, tuple[Example, ...]] = HANDS) -> list[Client]:
    """Clients that note how many rows they vectorise."""

    class Counting(Client):
        def handle(self, request: Request) -> Reply:
            reply = super().handle(request)
            if isinstance(reply, VectorsReply):
                rows.append(reply.vectors.examples)
            return reply

    return [Counting(name, examples, backbone, secret=name.encode()) for name, examples in hands.items()]


# Incremental data

MORE: Hands = {name: (*hand, *tiny.examples(7, seed=50 + place)) for place, (name, hand) in enumerate(HANDS.items())}


def training_rows(hands: Mapping[str, tuple[Example, ...]]) -> int:
    """The number of training examples of all clients."""
    return sum(len(split_roles(hand, selection=0.25, gate=0.0, seed=0)[Role.TRAIN]) for hand in hands.values())
