"""The results of a plan as Markdown: figures, costs, and differences with their p-values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ifedicl.bench.analytic import table_1
from ifedicl.bench.cells import Record, interval
from ifedicl.bench.plan import Plan
from ifedicl.metrics import paired_p

PAPER_FORM, OURS = "ifed-icl", "ifed-icl-subspace"
"""The paper's method, and its extension in a subspace."""
_DASH = "–"
_COSTS = (
    "method",
    "bytes up",
    "bytes down",
    "rounds",
    "client seconds, by stage",
    "test, ms a text",
    "peak MiB above the model",
)


def markdown(plan: Plan, records: Sequence[Record]) -> str:
    """All tables of a plan; the tables of an unfinished plan have gaps."""
    lines: list[str] = []
    for model, model_records in by_model(plan, records):
        lines += [f"### {model}", "", *_model_tables(plan, model_records)]
    lines += ["### Bytes at L = 32, d = 4096, beside the paper's Table 1", "", *bytes_table(), ""]
    commits = sorted({record.commit for record in records})
    days = sorted({record.date[:10] for record in records})
    machines = sorted({f"{r.machine['processor']}, {r.machine['threads']} threads, {r.dtype}" for r in records})
    versions = sorted({f"torch {r.machine['torch']}, transformers {r.machine['transformers']}" for r in records})
    lines += [
        f"{len(records)} of {len(plan.cells())} cells; run {_between(days)} at {', '.join(commits) or _DASH} on "
        f"{'; '.join(machines) or _DASH} with {'; '.join(versions) or _DASH}.",
    ]
    return "\n".join(lines) + "\n"


def bytes_table() -> Iterator[str]:
    """The paper's Table 1, computed, beside the paper's figures."""
    yield "| message of one client | ours, bytes | the paper, bytes |"
    yield "|---|---:|---:|"
    for row in table_1():
        yield f"| {row.what} | {row.ours:,} | {_DASH if row.paper is None else f'{row.paper:,.0f}'} |"


def by_model(plan: Plan, records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Models with finished cells, each with its records."""
    for model in plan.models:
        if model_records := [record for record in records if record.cell.model == model]:
            yield model, model_records


def by_set(records: Iterable[Record], plan: Plan, method: str, alpha: float | None) -> dict[str, list[Record]]:
    """Records of a method by data set, over seeds; a method that the split does not change has records for every ``alpha``."""
    table: dict[str, list[Record]] = {}
    for record in records:
        if record.cell.method == method and record.cell.alpha in (alpha, None):
            table.setdefault(record.cell.set, []).append(record)
    return {name: table[name] for name in plan.sets if name in table}


def hits(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """``(N,)``: for each test row, the fraction of seeds and classifiers that are right."""
    return np.asarray(np.mean([record.mean_hits for record in records], axis=0))


def _model_tables(plan: Plan, records: Sequence[Record]) -> Iterator[str]:
    alphas = list(dict.fromkeys(record.cell.alpha for record in records if record.cell.alpha is not None))
    main = alphas[0] if alphas else None
    methods = [name for name in plan.methods if any(record.cell.method == name for record in records)]
    tables = {name: by_set(records, plan, name, main) for name in methods}
    seeds = sorted({record.cell.seed for record in records if record.cell.seed is not None})
    about = f"mean over seeds {', '.join(map(str, seeds)) or _DASH}; split by Dirichlet({main:g})" if main else "no split"
    second = ", ".join(dict.fromkeys(record.second for record in records))
    yield from _titled(
        f"Accuracy ± its standard deviation over seeds / {second} in %, {about}; in brackets the accuracy's 95% interval over "
        "test rows",
        ["method", *plan.sets, "mean"],
        ([name, *(_figures(table.get(key)) for key in plan.sets), _mean(table, plan)] for name, table in tables.items()),
    )
    if any(len(record.figures) > 1 for record in records):
        yield from _titled(
            "Further figures, mean over seeds",
            ["method", *plan.sets],
            ([name, *(_more(table.get(key)) for key in plan.sets)] for name, table in tables.items()),
        )
    for ours in (name for name in (OURS, PAPER_FORM) if name in tables):
        others = [name for name in methods if name != ours]
        yield from _titled(
            f"{ours} minus each other method, in points of accuracy over the seeds that both have (smallest to largest of a "
            "seed), and the paired p-value over test rows: of these trained classifiers, not of other seeds, and each test "
            "by itself",
            ["method", *plan.sets],
            ([name, *(_difference(tables[ours].get(key), tables[name].get(key)) for key in plan.sets)] for name in others),
        )
    yield from _titled(
        "Cost, mean over sets and seeds: bytes and processor seconds of one client in a whole run, and of one test text",
        _COSTS,
        (_cost_row(name, [record for by_seed in table.values() for record in by_seed]) for name, table in tables.items()),
    )
    if len(alphas) > 1:
        yield from _titled(
            "Accuracy in % by split, mean over seeds",
            ["method", *plan.sets],
            (
                [f"{name}, α = {alpha:g}", *(_accuracy(by_set(records, plan, name, alpha).get(key)) for key in plan.sets)]
                for name in methods
                for alpha in sorted(alphas)
                if len({record.cell.alpha for record in records if record.cell.method == name}) > 1
            ),
        )


def _titled(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield from (f"{title}.", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}")
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _figures(records: Sequence[Record] | None) -> str:
    if not records:
        return _DASH
    low, high = interval(hits(records))
    f1 = np.mean([record.macro_f1 for record in records])
    spread = f" ± {100 * np.std([record.accuracy for record in records], ddof=1):.1f}" if len(records) > 1 else ""
    return f"{_accuracy(records)}{spread} / {100 * f1:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def _more(records: Sequence[Record] | None) -> str:
    """The kind's further figures, where all records have them."""
    names = list(records[0].figures) if records and all(record.figures for record in records) else []
    means = {name: np.mean([record.figures[name] for record in records or ()]) for name in names}
    return ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()) or _DASH


def _accuracy(records: Sequence[Record] | None) -> str:
    return f"{100 * np.mean([record.accuracy for record in records]):.1f}" if records else _DASH


def _mean(table: dict[str, list[Record]], plan: Plan) -> str:
    """Means over the data sets of accuracy and macro-F1; a dash if one is missing."""
    if len(table) < len(plan.sets):
        return _DASH
    accuracy = np.mean([np.mean([record.accuracy for record in by_seed]) for by_seed in table.values()])
    f1 = np.mean([np.mean([record.macro_f1 for record in by_seed]) for by_seed in table.values()])
    return f"{100 * accuracy:.1f} / {100 * f1:.1f}"


def _difference(ours: Sequence[Record] | None, theirs: Sequence[Record] | None) -> str:
    # A method that no seed changes is compared with every seed of the other.
    by_seed = {record.cell.seed: record for record in theirs or ()}
    both = ((record, by_seed.get(record.cell.seed) or by_seed.get(None)) for record in ours or ())
    pairs = [(one, other) for one, other in both if other is not None]
    if not pairs:
        return _DASH
    first, second = (hits(side) for side in zip(*pairs, strict=True))
    points = [100 * (one.accuracy - other.accuracy) for one, other in pairs]
    spread = f" ({min(points):+.1f} to {max(points):+.1f})" if len(points) > 1 else ""
    return f"{100 * (first.mean() - second.mean()):+.1f}{spread}, p {paired_p(first, second):.4f}"


def _cost_row(name: str, records: Sequence[Record]) -> list[str]:
    def mean(figure: Callable[[Record], float]) -> float:
        return float(np.mean([figure(record) for record in records]))

    stages = dict.fromkeys(stage for record in records for stage in record.cpu_seconds)
    seconds = [f"{stage} {np.mean([record.cpu_seconds.get(stage, 0.0) for record in records]):.1f}" for stage in stages]
    total = f"{mean(lambda record: record.client_seconds):.1f}: "
    crosses = any(record.total_bytes for record in records)
    return [
        name,
        f"{mean(lambda record: sum(record.bytes_up.values())):,.0f}" if crosses else _DASH,
        f"{mean(lambda record: sum(record.bytes_down.values())):,.0f}" if crosses else _DASH,
        f"{mean(lambda record: record.rounds):.0f}",
        total + ", ".join(seconds) if seconds else _DASH,
        f"{mean(lambda record: record.test_milliseconds):.0f}",
        f"{mean(lambda record: record.peak_mib):.0f}",
    ]


def _between(days: Sequence[str]) -> str:
    return _DASH if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
