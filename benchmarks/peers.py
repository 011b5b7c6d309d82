"""Cost of a client until a held-out accuracy is reached: IFed-ICL against FedAvg-LoRA.

Both train on the same clients, batches and number of passes (``ifedicl.bench``) and are evaluated on held-out client examples
after each round. The cost is a client's processor seconds and the bytes of its messages, up and down, until the accuracy is
first reached, with stage 1. LoRA's learning rate is the best of three on the first seed; the search is not counted. A seed in
which one of them never reaches the accuracy has no ratio and is listed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from _pairs import Spread, machine, model_settings, parser, use_threads
from ifedicl.backbone.load import load_backbone
from ifedicl.bench.datasets import load_set
from ifedicl.bench.methods import METHODS
from ifedicl.bench.methods.base import Measured
from ifedicl.bench.plan import Cell, Plan
from ifedicl.bench.runner import make_setup
from ifedicl.settings import validated

OURS, THEIRS = "ifed-icl", "fedavg-lora"
_ONCE = frozenset({"vectors", "context"})  # stages before the first round


@dataclass(frozen=True)
class Cost:
    """Cost until the accuracy is reached.

    Attributes:
        rounds: completed.
        seconds: of one client's processor.
        bytes: of one client's messages.
    """

    rounds: int
    seconds: float
    bytes: float


def main() -> None:
    arguments = _arguments()
    use_threads(arguments)
    settings = model_settings(arguments)
    backbone, plan = load_backbone(settings), _plan(arguments, settings.source)
    data, choices = load_set("set", plan.sets["set"]), None
    seeds: dict[int, dict[str, Cost | None]] = {}
    for seed in range(arguments.pairs):
        costs: dict[str, Cost | None] = {}
        for name in (OURS, THEIRS):
            cell = Cell(model="model", set="set", method=name, seed=seed, alpha=arguments.alpha)
            setup = make_setup(plan, cell, data, backbone, settings)
            measured = METHODS[name].run(replace(setup, choices=choices or {}))
            if name == THEIRS:
                choices = measured.choices
            costs[name] = _until(measured, arguments.accuracy)
        seeds[seed] = costs
    _report(arguments, seeds, choices or {})


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__, pairs=3, examples=240)
    arguments.add_argument("--data", default="demo", help="a set as in a plan: a folder, or demo (default: %(default)s)")
    arguments.add_argument("--accuracy", type=float, default=0.6, help="on held-out examples (default: %(default)s)")
    arguments.add_argument("--clients", type=int, default=4, help="default: %(default)s")
    arguments.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet split (default: %(default)s)")
    arguments.add_argument("--rounds", type=int, default=12, help="default: %(default)s")
    return arguments.parse_args()


def _plan(arguments: argparse.Namespace, source: str) -> Plan:
    values = {
        "name": "peers",
        "models": {"model": {"source": source}},
        "sets": {"set": arguments.data},
        "clients": arguments.clients,
        "pool": arguments.examples,
        "test_rows": 1,  # they are not used here
        "training": {"rounds": arguments.rounds, "evaluate_every": 1},
        "grids": [{"methods": [OURS, THEIRS]}],
    }
    return validated(Plan, values, "peers")


def _until(measured: Measured, accuracy: float) -> Cost | None:
    """Costs up to the first round that reaches ``accuracy``: one-time costs in full, costs of rounds by their share."""
    reached = next((point.round for point in measured.curve if point.round > 0 and point.accuracy >= accuracy), None)
    if reached is None:
        return None

    def until(stages: dict[str, float]) -> float:
        return sum(total if stage in _ONCE else total * reached / measured.rounds for stage, total in stages.items())

    costs = measured.costs
    seconds, up, down = (until(dict(stages)) for stages in (costs.cpu_seconds, costs.bytes_up, costs.bytes_down))
    return Cost(reached, seconds, up + down)


def _report(arguments: argparse.Namespace, seeds: dict[int, dict[str, Cost | None]], choices: Mapping[str, float]) -> None:
    both = [(costs[OURS], costs[THEIRS]) for costs in seeds.values() if costs[OURS] and costs[THEIRS]]
    ratios = {
        figure: Spread.of([getattr(theirs, figure) / getattr(ours, figure) for ours, theirs in both]) if both else None
        for figure in ("seconds", "bytes", "rounds")
    }
    setting = {**machine(), "dtype": arguments.dtype, "data": arguments.data, "accuracy": arguments.accuracy, **choices}
    if arguments.json:
        runs = {seed: {name: cost and asdict(cost) for name, cost in costs.items()} for seed, costs in seeds.items()}
        print(json.dumps({**setting, "seeds": runs, "ratios": {key: value and asdict(value) for key, value in ratios.items()}}))
        return
    print(f"peers: {THEIRS} / {OURS}, median (minimum to maximum) of {len(both)} of {len(seeds)} seeds")
    print("  " + ", ".join(f"{name} {value}" for name, value in setting.items()))
    for figure, spread in ratios.items():
        print(f"  {figure}: {'both reached it in no seed' if spread is None else spread}")
    for seed, costs in seeds.items():
        for name, cost in costs.items():
            result = (
                "never" if cost is None else f"round {cost.rounds}, {cost.seconds:.1f} s and {cost.bytes:,.0f} bytes a client"
            )
            print(f"  seed {seed}, {name}: {result}")


if __name__ == "__main__":
    main()
