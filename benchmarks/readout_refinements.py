"""What several depths and refinements buy: accuracy and bytes of a readout by depths, directions and number of refinements.

Frozen model; a pool of training rows of each set is divided over clients, 15% of it are held out and blend all readouts that
are tried, as in a run; other training rows measure. Test rows are never read. All sums cross in the form in which they travel.
"whole" is the whole Gram matrix, not rounded, with the same penalty for all features. "both" adds the sums of the held-out rows
afterwards, and makes one more refinement on all.
What the model says of the rows is computed once for each set and kept in --cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from _sets import load_labelled
from _victims import demo_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import load_plan
from ifedicl.core.blend import blended, mixes
from ifedicl.core.penalties import PENALTIES
from ifedicl.core.readout import Readout, features, log_softmax
from ifedicl.core.readout_sums import ReadoutSums, next_refinement
from ifedicl.core.refinement import Products, Refinement
from ifedicl.core.sketch import Directions
from ifedicl.core.units import Units
from ifedicl.core.vectors import Array64
from ifedicl.federation.messages import ProductsReply, StatisticsReply, decode_reply, encode
from ifedicl.federation.reply_sums import Total

SETS = ("sst5", "clinc_domain", "tweet_sentiment")
DEPTHS = (0.2, 0.4, 0.5, 0.6, 0.8)
PARTS = {" ".join(map(str, depths)): depths for depths in ((0.5,), (0.2, 0.5, 0.8), (0.2, 0.4, 0.6, 0.8))}
MEASURED, UNITS = 600, 16
R = TypeVar("R", StatisticsReply, ProductsReply)


@dataclass(frozen=True)
class Split:
    """Features ``(N, F)`` and labels ``(N,)``: of the clients' training rows, of held-out rows, and of rows that measure."""

    clients: tuple[tuple[Array64, npt.NDArray[np.int64]], ...]
    held_out: tuple[Array64, npt.NDArray[np.int64]]
    measured: tuple[Array64, npt.NDArray[np.int64]]
    units: Units
    classes: int
    depths: int

    @property
    def states(self) -> int:
        """Of the hidden states that are read."""
        return 1 + self.depths

    def directions(self, count: int) -> Directions:
        """About so many, in each state as many."""
        width = (len(self.units.offset) - self.classes) // self.states
        return Directions.of([width] * self.states, self.classes, count, 0)

    def readouts(self, sums: ReadoutSums, directions: Directions) -> list[Readout]:
        """All that are tried."""
        return sums.solve(directions, tuple(range(1, self.states)))

    def asked(self, sums: ReadoutSums, directions: Directions, number: int) -> Refinement:
        """The next refinement, after so many."""
        return next_refinement(sums, directions, max(1, self.classes - 1), self.depths, number)

    def added(self, directions: Directions) -> tuple[ReadoutSums, int]:
        """The sums of all clients, and the bytes of one."""
        sums = (ReadoutSums.of(rows, labels, self.classes, self.units, directions) for rows, labels in self.clients)
        total, size = summed(StatisticsReply, map(StatisticsReply, sums))
        return total.sums, size

    def products(self, asked: Refinement, *, both: bool = False) -> tuple[Products, int]:
        """The products of all clients, and the bytes of one; ``both``: of held-out rows too."""
        parts = [*self.clients, *([self.held_out] if both else [])]
        total, size = summed(ProductsReply, (ProductsReply(Products.of(rows, self.units, asked)) for rows, _ in parts))
        return total.sums, size


def summed(kind: type[R], replies: Iterable[R]) -> tuple[R, int]:
    """The total of replies as they arrive, and the bytes of the last."""
    total, size = Total(kind), 0
    for reply in replies:
        data = encode(reply)
        sent = decode_reply(data)
        assert isinstance(sent, kind)
        total.add(sent)
        size = len(data)
    assert total.reply is not None
    return total.reply, size


def splits(
    folder: Path, cache: Path, names: Sequence[str], depths: Sequence[float], arguments: argparse.Namespace
) -> Iterator[Split]:
    """One for each set and seed."""
    for name in names:
        stored = np.load(read(folder, cache, name))
        width, labels = stored["logs"].shape[1], stored["labels"]
        states = np.concatenate([stored["last"], *(stored[f"mean {depth}"] for depth in depths)], axis=1)
        rows = features(states, stored["logs"])
        for seed in range(arguments.seeds):
            order = np.random.default_rng(seed).permutation(len(labels))
            pool, measured = order[: arguments.pool], order[arguments.pool : arguments.pool + MEASURED]
            kept = round(0.85 * len(pool))
            parts = [(rows[part], labels[part]) for part in np.array_split(pool[:kept], arguments.clients)]
            held_out = rows[pool[kept:]], labels[pool[kept:]]
            yield Split(
                tuple(parts), held_out, (rows[measured], labels[measured]), Units.of(rows[order[-UNITS:]]), width, len(depths)
            )


def read(folder: Path, cache: Path, name: str) -> Path:
    """The file of what the model says of a set's training rows."""
    file = cache / f"{name}.npz"
    if not file.exists():
        data, backbone = load_labelled(name, load_plan("dev", folder).sets[name]), demo_backbone("float32")
        scorer = Scorer(backbone, data.task)
        known = scorer.encoded(data.train)
        layers = [round(depth * backbone.layers) for depth in DEPTHS]
        reading = scorer.read(known.prompts, tuple(layers))
        last, *means = np.split(reading.states, 1 + len(layers), axis=1)
        cache.mkdir(parents=True, exist_ok=True)
        named: dict[str, Any] = {f"mean {depth}": mean for depth, mean in zip(DEPTHS, means, strict=True)}
        np.savez(file, **named | {"last": last, "logs": reading.logs, "labels": np.array(known.labels)})
    return file


def losses(readouts: Sequence[Readout], split: Split) -> list[float]:
    """Summed over the held-out rows: of the label words, and of each mix."""
    rows, labels = split.held_out
    words = readouts[0].mixed(0.0, 1.0)
    mixed = (log_softmax(scored(each, rows)) for each in (words, *mixes(readouts)))
    return [float(-logs[np.arange(len(labels)), labels].sum()) for logs in mixed]


def blend(readouts: Sequence[Readout], evidence: Sequence[float]) -> Readout:
    """What is used."""
    return blended(readouts, evidence) or readouts[0].mixed(0.0, 1.0)


def scored(readout: Readout, rows: Array64) -> Array64:
    """``(N, C)`` scores."""
    weights = readout.weights.T.astype(np.float64)
    scores: Array64 = rows @ weights[:-1] + weights[-1]
    return scores


def right(readout: Readout, split: Split) -> float:
    """Per cent."""
    rows, labels = split.measured
    return 100 * float((scored(readout, rows).argmax(axis=1) == labels).mean())


def ridge(split: Split) -> list[Readout]:
    """For each penalty the readout of the whole Gram matrix, in the examples' own space, which is smaller."""
    rows, labels = (np.concatenate(each) for each in zip(*split.clients, strict=True))
    targets, mean = np.eye(split.classes)[labels], rows.mean(axis=0)
    deviations = np.maximum((rows - mean).std(axis=0), 1e-9)
    standard, shares = (rows - mean) / deviations, targets.mean(axis=0)
    products, found = standard @ standard.T, list[Readout]()
    for penalty in PENALTIES:
        dual = np.linalg.solve(products + penalty * len(rows) * np.eye(len(rows)), targets - shares)
        weights = (standard.T @ dual) / deviations[:, None]
        found.append(Readout(np.concatenate([weights, (shares - mean @ weights)[None]]).T.astype(np.float32)))
    return found


def figures(split: Split, count: int, refinements: int) -> dict[str, tuple[float, float, float]]:
    """By number of refinements: accuracy, accuracy after the held-out rows were added, bytes up."""
    found = dict[str, tuple[float, float, float]]()
    if not count:
        readouts = ridge(split)
        return {"whole": (right(blend(readouts, losses(readouts, split)), split), float("nan"), float("nan"))}
    directions = split.directions(count)
    sums, up = split.added(directions)
    for number in range(refinements + 1):
        readouts = split.readouts(sums, directions)
        evidence = losses(readouts, split)
        found[str(number)] = (
            right(blend(readouts, evidence), split),
            right(blend(with_held_out(split, sums, directions, number), evidence), split),
            float(up),
        )
        asked = split.asked(sums, directions, number)
        answer, more = split.products(asked)
        sums, directions, up = sums.refined(asked, answer), directions.with_more(asked.directions), up + more
    return found


def with_held_out(split: Split, sums: ReadoutSums, directions: Directions, number: int) -> list[Readout]:
    """The readouts of all rows, after one more refinement on all of them."""
    total = Total(StatisticsReply)
    total.add(StatisticsReply(sums))
    total.add(StatisticsReply(ReadoutSums.of(*split.held_out, split.classes, split.units, directions)))
    assert total.reply is not None
    both = total.reply.sums
    asked = split.asked(both, directions, number)
    refined = both.refined(asked, split.products(asked, both=True)[0])
    return split.readouts(refined, directions.with_more(asked.directions))


def main() -> None:
    """A table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--directions", nargs="+", type=int, default=[0, 8, 16, 32, 64], help="of the sketch; 0: the whole matrix"
    )
    parser.add_argument("--refinements", type=int, default=4)
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cache", type=Path, default=Path("runs/refinements"))
    arguments = parser.parse_args()
    print(f"| depths | directions | refinements | {' | '.join(arguments.sets)} | mean | both | KB up |")
    print(f"|---|---:|---:|{'---:|' * (len(arguments.sets) + 3)}")
    for name, depths in PARTS.items():
        for count in arguments.directions:
            cells = [
                [
                    figures(split, count, arguments.refinements)
                    for split in splits(arguments.data, arguments.cache, [data], depths, arguments)
                ]
                for data in arguments.sets
            ]
            for number in cells[0][0]:
                each = np.array([np.mean([found[number] for found in of_set], axis=0) for of_set in cells])
                by_set = " | ".join(f"{value:.1f}" for value in each[:, 0])
                mean, both, up = each.mean(axis=0)
                cost = " | ".join(
                    "" if np.isnan(value) else f"{value:.{digits}f}" for value, digits in ((both, 1), (up / 1000, 0))
                )
                print(f"| {name} | {count or ''} | {number} | {by_set} | {mean:.1f} | {cost} |", flush=True)


if __name__ == "__main__":
    main()
