"""Does a warm start from a related task reach a cold run's held-out loss in half its rounds or less?

For each pair, the first task is calibrated. The second is calibrated twice, from a cold start and from the coefficients of the
first, with the same rounds, settings, clients and held-out examples. Also printed: cosines between the signatures of all tasks,
the basis for the threshold of a near hit. Test rows are never read.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from _sets import load_labelled
from ifedicl import runs
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.bench.plan import SetSettings, load_plan
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.core.warm_start import Start, warm_start
from ifedicl.demo.fetch import demo_model
from ifedicl.federation.client import Client
from ifedicl.federation.coordinator import Starter
from ifedicl.kinds.classify import Task
from ifedicl.settings import CalibrationSettings, HoldoutSettings, Method, ModelSettings, RoundSettings, SplitSettings
from ifedicl.store.signature import reference, signature


@dataclass(frozen=True)
class Prepared:
    """A task and its clients."""

    task: Task
    clients: tuple[Client, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--pairs", nargs="+", default=["sst2:sst5", "snips:clinc_domain", "sst5:sst2"], help="FROM:TO")
    parser.add_argument("--pool", type=int, default=200, help="examples of all clients together (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--local-steps", type=int, default=2)
    parser.add_argument("--selection", type=float, default=0.4, help="share of each client's examples that is held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="default: the model of `ifedicl demo`")
    arguments = parser.parse_args()
    model = ModelSettings(source=arguments.model or str(demo_model()), dtype="float32", device="cpu")
    backbone = load_backbone(model)
    method = Method(
        seed=arguments.seed,
        holdout=HoldoutSettings(selection=arguments.selection),
        rounds=RoundSettings(rounds=arguments.rounds),
        calibration=CalibrationSettings(local_steps=arguments.local_steps),
    )
    split = SplitSettings(clients=arguments.clients, pool=arguments.pool)
    known = load_plan("dev", arguments.data).sets  # with label words of one token for names of several
    names = sorted({name for pair in arguments.pairs for name in pair.split(":")})
    sets = {name: known.get(name, SetSettings(source=str(arguments.data / name))) for name in names}
    prepared = {name: prepare(name, settings, backbone, split, arguments.seed) for name, settings in sets.items()}
    finished: dict[str, runs.Federated] = {}
    for pair in arguments.pairs:
        old, new = pair.split(":")
        for name in (old, new):
            if name not in finished:
                finished[name] = calibrated(prepared[name], model, method)
        warm = calibrated(prepared[new], model, method, warm_from(finished[old].adapter, method))
        print(json.dumps({"pair": pair, **compared(finished[new], warm)}), flush=True)
    centre = reference(backbone, method.vectors.read_position)
    signatures = {name: signature(item.adapter.context, centre) for name, item in finished.items()}
    for first, second in combinations(signatures, 2):
        print(json.dumps({"cosine": round(float(signatures[first] @ signatures[second]), 3), "of": [first, second]}))
    print(json.dumps({"plain cosines": plain({name: item.adapter.context.vectors for name, item in finished.items()})}))


def prepare(name: str, settings: SetSettings, backbone: Backbone, split: SplitSettings, seed: int) -> Prepared:
    """Simulated clients of one data set; they remember their vectors."""
    data = load_labelled(name, settings)
    examples = runs.simulated_clients(data.train, split, seed)
    return Prepared(data.task, runs.simulate(backbone, data.task, examples, seed=seed))


def calibrated(prepared: Prepared, model: ModelSettings, method: Method, starter: Starter | None = None) -> runs.Federated:
    start = time.perf_counter()
    federated = runs.federate(prepared.clients, model, prepared.task, method, options=runs.RunOptions(starter=starter))
    print(
        json.dumps({"task": prepared.task.name, "losses": losses(federated), "seconds": time.perf_counter() - start}),
        flush=True,
    )
    return federated


def warm_from(old: Adapter, method: Method) -> Starter:
    """The coefficients of the first task, with the rounds of the cold run, so that both schedules are the same."""

    def start(context: Context, initial: Coefficients) -> Start:
        return warm_start(old.coefficients, old.context, initial, context, method.rounds.rounds)

    return start


def losses(federated: runs.Federated) -> list[float]:
    """Held-out loss after each round."""
    return [round(record.held_out.loss, 4) for record in federated.outcome.state.history if record.held_out is not None]


def compared(cold: runs.Federated, warm: runs.Federated) -> dict[str, object]:
    best = min(losses(cold))
    cold_round = losses(cold).index(best) + 1
    reached = next((number for number, loss in enumerate(losses(warm), start=1) if loss <= best), None)
    return {"cold_best": best, "cold_round": cold_round, "warm_reaches_it_in": reached, "warm_best": min(losses(warm))}


def plain(vectors: dict[str, Array32]) -> dict[str, float]:
    """Cosines without centre and projection, for comparison."""
    flat = {name: array.ravel() / float((array**2).sum()) ** 0.5 for name, array in vectors.items()}
    return {f"{a} {b}": round(float(flat[a] @ flat[b]), 4) for a, b in combinations(flat, 2)}


if __name__ == "__main__":
    main()
