"""Adapters and signatures for a task cache; run as a module, it writes versions until it is killed."""

from __future__ import annotations

import sys

import numpy as np

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.settings import ModelSettings
from ifedicl.store import open_store
from ifedicl.store.records import TaskKey
from ifedicl.store.signature import SIZE
from tests.support import tiny

METHOD = tiny.method()
KEY = TaskKey.of("clinics", "f" * 64, tiny.TASK, METHOD)


def adapter(value: float = 1.0) -> Adapter:
    """Tells which it is by its first λ."""
    context = Context(np.full((3, 2, 32), value, dtype=np.float32))
    scales = np.full((3, 2, 2), value, dtype=np.float32)
    model, provenance = ModelSettings(source="tiny"), {"method": METHOD.model_dump(mode="json")}
    return Adapter(tiny.TASK, context, Coefficients(scales), model, "f" * 64, provenance=provenance)


def unit(seed: int) -> Array32:
    """A random signature."""
    drawn = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)
    unit: Array32 = drawn / np.linalg.norm(drawn)
    return unit


def main(url: str) -> None:
    """Say when the store is open, then each version once it is stored."""
    store = open_store(url)
    print("open", flush=True)
    number = 0
    while True:
        number += 1
        print(store.put(KEY, adapter(number), unit(number)).version, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
