"""Two of ten clients lie: which lie defeats which aggregation, and does the gate detect it?

The demo's model and sentences, dealt unevenly to ten clients. The liars see the honest replies first, know the aggregation
and collude. They also claim a million held-out examples on which the adapter is right. Each cell is one run, evaluated on the
demo's test sentences. An adapter is sunk if it is worse than zero-shot by more than the 95% half-width of the paired
difference of losses. Finished cells are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _liars import LIES, Colluding, Lie
from ifedicl import files, runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.data import dirichlet_split
from ifedicl.demo.fetch import demo_model, demo_places
from ifedicl.demo.story import TASK
from ifedicl.federation.local_engine import LocalEngine
from ifedicl.kinds.classify import Example
from ifedicl.settings import Method, ModelSettings, changed, load_preset

CLIENTS, LIARS = 10, ("client-04", "client-09")
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    **{rule: {"robust": {"rule": rule}} for rule in ("trimmed", "median", "bounded")},
}
ATTACKS: dict[str, tuple[Lie | None, Lie | None]] = {
    "none": (None, None),
    **{f"updates {name}": (lie, None) for name, lie in LIES.items()},
    **{f"vectors {name}": (None, lie) for name, lie in LIES.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pool", type=int, default=24, help="sentences of each of the four sources")
    parser.add_argument("--test", type=int, default=20, help="test sentences of each source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--out", type=Path, default=Path("runs/liars.json"), help="finished cells are not run again")
    arguments = parser.parse_args()

    places = demo_places(pool=arguments.pool, test=arguments.test, seed=arguments.seed).values()
    parts = dirichlet_split(
        [row for place in places for row in place.pool], clients=CLIENTS, alpha=2.0, seed=arguments.seed, at_least=6
    )
    examples = {f"client-{number:02d}": part for number, part in enumerate(parts)}
    test = [row for place in places for row in place.test]
    model = ModelSettings(source=str(demo_model()), dtype="float32")
    backbone = load_backbone(model)
    raw = losses(runs.zero_shot_adapter(backbone, model, TASK), backbone, test)
    cells = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    cells["zero-shot"] = {"loss": float(raw.mean())}
    for attack in arguments.attacks:
        for rule in arguments.rules:
            name = f"{attack} | {rule}"
            if name not in cells:
                cells[name] = cell(backbone, model, examples, test, raw, method_of(rule, arguments), ATTACKS[attack])
                files.write_json(arguments.out, cells)
            print(name, cells[name], flush=True)
    print("\n".join(table(cells)))


def method_of(rule: str, arguments: argparse.Namespace) -> Method:
    sections: dict[str, Any] = {
        "holdout": {"selection": 0.2, "gate": 0.2},
        "injection": {"from_depth": 0.5},
        "calibration": {"batch_size": 4, "local_steps": 2},
        "rounds": {"rounds": arguments.rounds, "evaluate_every": 2},
        "seed": arguments.seed,
        "readout": False,  # [robust] needs the paper's form
        **RULES[rule],
    }
    return changed(load_preset("demo"), sections, "benchmark")


def cell(
    backbone: Backbone,
    model: ModelSettings,
    examples: dict[str, tuple[Example, ...]],
    test: Sequence[Example],
    raw: np.ndarray,
    method: Method,
    lies: tuple[Lie | None, Lie | None],
) -> dict[str, Any]:
    """One run: the adapter of the chosen round, and the gate's answer."""
    clients = runs.simulate(backbone, TASK, examples, seed=method.seed)
    updates, vectors = lies
    honest = updates is None and vectors is None

    def engine(owners: Sequence[Any]) -> Any:
        return LocalEngine(owners) if honest else Colluding(LocalEngine(owners), LIARS, updates=updates, vectors=vectors)

    federated = runs.federate(clients, model, TASK, method, engine=engine)
    outcome = federated.outcome
    adapter = Adapter(
        task=TASK,
        context=outcome.context,
        coefficients=outcome.state.best,
        model=model,
        fingerprint=backbone.fingerprint,
    )
    adapted = losses(adapter, backbone, test)
    worse = adapted - raw
    half_width = 1.96 * float(worse.std(ddof=1)) / len(worse) ** 0.5
    assert outcome.gate is not None
    return {
        "loss": float(adapted.mean()),
        "worse_than_zero_shot": float(worse.mean()),
        "half_width": half_width,
        "sunk": bool(worse.mean() > half_width),
        "round": outcome.chosen_round,
        "gate_open": outcome.gate.is_open,
    }


def losses(adapter: Adapter, backbone: Backbone, test: Sequence[Example]) -> np.ndarray:
    """``(N,)``: the loss of each test sentence, in nats, at most 100."""
    logs = adapter.classifier(backbone).log_probabilities([row.text for row in test])
    found = -logs[np.arange(len(test)), [TASK.index(row.label) for row in test]]
    finite: np.ndarray = np.clip(np.nan_to_num(found, nan=100.0), 0.0, 100.0)
    return finite


def table(cells: dict[str, Any]) -> list[str]:
    """Lines of Markdown: test loss, and whether the gate is open."""
    lines = ["| liars | " + " | ".join(RULES) + " |", "|---" * (len(RULES) + 1) + "|"]
    for attack in ATTACKS:
        row = [cells.get(f"{attack} | {rule}") for rule in RULES]
        shown = [
            ""
            if item is None
            else f"{item['loss']:.2f}{' **sunk**' if item['sunk'] else ''}, gate {'open' if item['gate_open'] else 'closed'}"
            for item in row
        ]
        lines.append(f"| {attack} | {' | '.join(shown)} |")
    return [f"zero-shot: {cells['zero-shot']['loss']:.2f}", "", *lines]


if __name__ == "__main__":
    main()
