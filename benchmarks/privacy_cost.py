"""Accuracy with the defences. Ten clients, secure sums with distributed noise, ε = 1, 4, 8 and infinity.

The rounds send sums of clipped per-example gradients of the coefficients, and the server takes Adam steps. The context vector
is the clients' mean (only without a bound on ε), a mean in a public frame of few directions, or the mean of public text. All
clients run in one process: each clips, rounds and adds its noise share, and only the sum is used. Also printed: the
similarity of a noisy mean to the mean, for each way to send it. Test rows are read once, at the end of each run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from _narrow_frame import NarrowFrame
from _victims import Cast, cast, demo_backbone, parser, private_set, public_examples
from ifedicl import files, seeds
from ifedicl.audit.defence import DELTA, Defence, median_norm
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import example_gradients
from ifedicl.core.coefficients import CONTEXT, Coefficients, Form
from ifedicl.core.server_optimizer import Moments, stepped
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import WRITES, Array32
from ifedicl.data import dirichlet_split, draw_pool
from ifedicl.dp.accountant import Release, epsilon, noise_multiplier
from ifedicl.dp.clipping import Bound, joint
from ifedicl.dp.skellam import Crowd, Shares
from ifedicl.metrics import Evaluation
from ifedicl.settings import InjectionSettings, Method

CLIENTS = 10
CROWD = Crowd(survivors=8, colluders=1)
_WEIGHING = 64  # public texts that estimate the size of each coefficient's gradient
_VECTOR_SHARE = 0.3  # of the noise budget (in ρ) for a private vector, if the plan has one


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        name: in the table.
        epsilon: of the whole run; infinite: neither noise nor clip.
        vectors: "own", "public", or "frame": in a public frame, with noise.
    """

    name: str
    epsilon: float
    vectors: str


PLANS = (
    Plan("no defence, own vectors", math.inf, "own"),
    Plan("no noise, public vectors", math.inf, "public"),
    Plan("ε = 8, public vectors", 8.0, "public"),
    Plan("ε = 4, public vectors", 4.0, "public"),
    Plan("ε = 1, public vectors", 1.0, "public"),
    Plan("ε = 4, vectors in a public frame", 4.0, "frame"),
)


class Stage:
    """One data set, its clients, and the values that all runs share."""

    def __init__(self, arguments: argparse.Namespace, name: str, backbone: Backbone, known: Cast) -> None:
        data, rows = private_set(arguments, name)
        self.arguments, self.known = arguments, known
        self.method = Method(injection=InjectionSettings(from_depth=arguments.from_depth))
        first = self.method.injection.active_layers(backbone.layers).start
        self.scorer = Scorer(backbone, data.task, first_layer=first)
        self.examples = self.scorer.encoded(rows)
        keyed = {row.key: place for place, row in enumerate(rows)}
        parts = dirichlet_split(rows, clients=CLIENTS, alpha=arguments.alpha, seed=arguments.seed)
        self.parts = [[keyed[row.key] for row in part] for part in parts]
        self.test = draw_pool(data.test, arguments.test, arguments.seed)
        self.public = public_examples(data.task, _WEIGHING, arguments.seed + 1)
        form = Form(backbone.layers, arguments.core)
        active = np.zeros((backbone.layers, len(WRITES)), dtype=np.bool_)
        active[first:] = True
        self.start = Coefficients.identity(form)
        self.start.scales[first:, :, CONTEXT] = 0.1
        self.shapes = {name: (int(active.sum()), *shape[2:]) for name, shape in form.shapes.items()}
        self.active = active
        # The leading directions of public text in the injected layers.
        above = known.public.vectors[:, first:].astype(np.float64)
        self.basis = np.zeros((*known.public.vectors.shape[1:3], arguments.core, backbone.width), dtype=np.float32)
        self.basis[first:] = subspace_basis(above, arguments.core, np.random.default_rng(0))

    def gradients(self, context: Context, coefficients: Coefficients, *, public: bool = False) -> dict[str, Array32]:
        """``(N, ...)``: the gradients of each example."""
        examples = self.scorer.encoded(self.public) if public else self.examples
        result = {name: np.zeros((len(examples.labels), *shape), dtype=np.float32) for name, shape in self.shapes.items()}
        rows = range(len(examples.labels))
        for places, arrays in example_gradients(self.scorer, examples, context, coefficients, self.method, rows):
            for name, array in arrays.items():
                result[name][places] = array[:, self.active]
        return result

    def weights(self, context: Context) -> dict[str, np.ndarray]:
        """Weights by the size of public text's gradients, with which clipping treats all coefficients equally."""
        weights = {}
        for name, array in self.gradients(context, self.start, public=True).items():
            sizes = np.sqrt(np.square(array).mean(axis=0))
            weights[name] = 1 / np.maximum(sizes, np.median(sizes) / 10)
        return weights

    def moved(
        self, coefficients: Coefficients, total: np.ndarray, moments: Moments, rate: float
    ) -> tuple[Coefficients, Moments]:
        """One Adam step of the server along a mean of weighted gradients, whose noise is equal for all numbers."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])[:-1]
        direction = {name: np.zeros_like(array) for name, array in self.start.arrays.items()}
        for (name, shape), part in zip(self.shapes.items(), np.split(total, ends), strict=True):
            direction[name][self.active] = part.reshape(shape)
        return stepped(coefficients, direction, moments, "adam", rate=rate, momentum=0.9)

    def evaluate(self, context: Context, coefficients: Coefficients) -> Evaluation:
        """Evaluate on the test rows."""
        task = self.scorer.task
        with applied(self.scorer.backbone, context, coefficients):
            logs = self.scorer.log_probabilities(self.scorer.encoded(self.test).prompts)
        return Evaluation.of(task.labels, logs, [task.index(row.label) for row in self.test])

    def vectors(self, plan: Plan, variance: float, frame: NarrowFrame) -> Context:
        """The global vector of the plan."""
        if plan.vectors == "own":
            return Context(self.known.private.vectors.mean(axis=0), self.basis)
        if plan.vectors == "public":
            return Context(frame.centre, self.basis)
        rows = frame.to_rows(self.known.private.vectors)
        bound = Bound(median_norm(frame.to_rows(self.known.public.vectors)), frame.size)
        total = self.summed(rows, bound, variance, "vectors")
        return Context(frame.to_vector(total / len(rows)), self.basis)

    def summed(self, rows: np.ndarray, bound: Bound, multiplier: float, kind: str) -> np.ndarray:
        """``(D,)``: the server's input, the sum of all clients' clipped sums and noise shares."""
        variance = (multiplier * bound.sensitivity) ** 2
        shares = [Shares({kind: variance}, CROWD) for _ in self.parts]
        total = sum(bound.sum(rows[part]) + share(kind, bound.size) for part, share in zip(self.parts, shares, strict=True))
        return np.asarray(total) * bound.step


def run(stage: Stage, plan: Plan, rounds: int, rate: float, frame: NarrowFrame) -> dict[str, object]:
    """One plan: vector, rounds, and the test rows once."""
    start, size = time.perf_counter(), sum(int(np.prod(shape)) for shape in stage.shapes.values())
    private = math.isfinite(plan.epsilon)

    def releases(multiplier: float) -> list[Release]:
        """The rounds with this noise, and the vector with the noise of its share of the budget."""
        bound = Bound(1.0, size)
        rounds_ = Release(bound.size, bound.sensitivity, (multiplier * bound.sensitivity) ** 2, rounds)
        if plan.vectors != "frame":
            return [rounds_]
        bound = Bound(1.0, frame.size)
        return [rounds_, Release(bound.size, bound.sensitivity, (vector_noise(multiplier) * bound.sensitivity) ** 2)]

    def vector_noise(multiplier: float) -> float:
        # ρ of the rounds is rounds / 2z². The vector has its share of the total.
        return multiplier / math.sqrt(rounds * _VECTOR_SHARE / (1 - _VECTOR_SHARE))

    noise = noise_multiplier(plan.epsilon, DELTA, releases) if private else 0.0
    context = stage.vectors(plan, vector_noise(noise) if private else 0.0, frame)
    weights = stage.weights(context)
    clip = median_norm(joint(stage.gradients(context, stage.start, public=True), weights))
    coefficients, moments = stage.start, Moments.none(stage.start)
    for _ in range(rounds):
        rows = joint(stage.gradients(context, coefficients), weights)
        total = stage.summed(rows, Bound(clip, rows.shape[1]), noise, "gradient") if private else rows.sum(axis=0)
        coefficients, moments = stage.moved(coefficients, total / len(rows), moments, rate)
    evaluation = stage.evaluate(context, coefficients)
    spent = epsilon(releases(noise), DELTA) if private else None
    return {
        "plan": plan.name,
        "epsilon": None if spent is None else round(spent, 3),
        "accuracy": round(evaluation.accuracy, 4),
        "interval": [round(bound, 4) for bound in evaluation.interval],
        "loss": round(evaluation.loss, 4),
        "noise_multiplier_of_a_round": round(noise, 3),
        "numbers_of_a_round": size,
        "seconds": round(time.perf_counter() - start),
    }


def fidelity(known: Cast, draw: np.random.Generator) -> list[dict[str, object]]:
    """Cosine of the sent mean to the clients' mean, both minus that of public text, and the noise's norm over the clip."""
    truth = known.private.vectors.mean(axis=0)
    rows = []
    for rank in (0, 16, 4, 1):
        frame = NarrowFrame.of(known.public.vectors, rank, np.random.default_rng(0))
        private, clip = frame.to_rows(known.private.vectors), median_norm(frame.to_rows(known.public.vectors))
        for budget in (1.0, 4.0, 8.0, math.inf):
            defence = Defence() if math.isinf(budget) else Defence.of(budget, clip, frame.size)
            clipped = defence.clipped(private)
            released = defence.noisy_sum(clipped, draw) / len(private)
            ours = (frame.to_vector(released) - frame.centre) / frame.sizes[..., None]
            wanted = (truth - frame.centre) / frame.sizes[..., None]
            noise = released - clipped.mean(axis=0)
            rows.append(
                {
                    "numbers": frame.size,
                    "directions_of_a_write": rank or frame.centre.shape[-1],
                    "epsilon": None if math.isinf(budget) else budget,
                    "noise_over_clip": round(float(np.linalg.norm(noise)) / clip, 3),
                    "cosine": round(float((ours * wanted).sum() / np.linalg.norm(ours) / np.linalg.norm(wanted)), 3),
                }
            )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--rate", type=float, default=0.2)
    arguments.add_argument("--from-depth", type=float, default=0.95)
    arguments.add_argument("--core", type=int, default=4, help="directions of each write in which Γ acts, from public text")
    arguments.add_argument("--alpha", type=float, default=0.5)
    arguments.add_argument("--test", type=int, default=300, help="test rows (default: %(default)s)")
    arguments.add_argument("--rank", type=int, default=4, help="directions of a write in the public frame")
    arguments.add_argument(
        "--plans", nargs="+", type=int, default=list(range(len(PLANS))), help="positions in the list of runs"
    )
    chosen = arguments.parse_args()
    for name in chosen.sets:
        known = cast(chosen, name, "prompt")
        frame = NarrowFrame.of(known.public.vectors, chosen.rank, seeds.generator(chosen.seed, "frame"))
        stage = Stage(chosen, name, demo_backbone("bfloat16"), known)
        raw = stage.evaluate(Context(frame.centre, stage.basis), Coefficients.identity(stage.start.form))
        results = [
            {
                "plan": "zero-shot",
                "accuracy": round(raw.accuracy, 4),
                "interval": [round(b, 4) for b in raw.interval],
                "loss": round(raw.loss, 4),
            }
        ]
        print(json.dumps({"set": name, **results[0]}), flush=True)
        facts = {
            "set": name,
            "examples": len(stage.examples.labels),
            "clients": CLIENTS,
            "alpha": chosen.alpha,
            "rounds": chosen.rounds,
            "rate": chosen.rate,
            "delta": DELTA,
            "survivors": CROWD.survivors,
            "colluders": CROWD.colluders,
            "test_rows": len(stage.test),
            "from_depth": chosen.from_depth,
            "core": chosen.core,
            "dtype": "bfloat16",
            "seed": chosen.seed,
            "torch": torch.__version__,
            "vectors": fidelity(known, seeds.generator(chosen.seed, "fidelity")),
        }
        for place in chosen.plans:
            results.append(run(stage, PLANS[place], chosen.rounds, chosen.rate, frame))
            print(json.dumps({"set": name, **results[-1]}), flush=True)
            files.write_json(chosen.out / f"cost-{name}-{chosen.seed}.json", facts | {"runs": results})


if __name__ == "__main__":
    main()
