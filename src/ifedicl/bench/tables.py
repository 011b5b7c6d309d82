"""The results of a plan as Markdown: figures, what they cost, and which differences are real."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ifedicl.bench.analytic import table_1
from ifedicl.bench.cells import Record, interval
from ifedicl.bench.plan import Plan
from ifedicl.metrics import paired_p

PAPER_FORM, OURS = "ifed-icl", "ifed-icl-subspace"
"""The paper's method, and what goes past it."""
_DASH = "–"


def markdown(plan: Plan, records: Sequence[Record]) -> str:
    """All tables of a plan.

    Args:
        plan: for its names and their order.
        records: finished cells; a plan that is not finished gives tables with gaps.
    """
    lines: list[str] = []
    for model in plan.models:
        own = [record for record in records if record.cell.model == model]
        if own:
            lines += [f"### {model}", "", *_model_tables(plan, own)]
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


def by_set(records: Iterable[Record], plan: Plan, method: str, alpha: float | None) -> dict[str, list[Record]]:
    """Records of a method by data set, over seeds; ``alpha`` does not matter where the split moves nothing."""
    table: dict[str, list[Record]] = {}
    for record in records:
        if record.cell.method == method and record.cell.alpha in (alpha, None):
            table.setdefault(record.cell.set, []).append(record)
    return {name: table[name] for name in plan.sets if name in table}


def hits(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """``(N,)``: for each test row, the fraction of seeds and classifiers that were right."""
    mean: npt.NDArray[np.float64] = np.mean([record.mean_hits for record in records], axis=0)
    return mean


def _model_tables(plan: Plan, records: Sequence[Record]) -> Iterator[str]:
    alphas = list(dict.fromkeys(record.cell.alpha for record in records if record.cell.alpha is not None))
    main = alphas[0] if alphas else None
    methods = [name for name in plan.methods if any(record.cell.method == name for record in records)]
    tables = {name: by_set(records, plan, name, main) for name in methods}
    seeds = sorted({record.cell.seed for record in records if record.cell.seed is not None})
    about = f"mean over seeds {', '.join(map(str, seeds)) or _DASH}; split by Dirichlet({main:g})" if main else "no split"
    yield from _titled(
        f"Accuracy ± its standard deviation over seeds / macro-F1 in %, {about}; in brackets the accuracy's 95% interval over "
        "test rows",
        ["method", *plan.sets, "mean"],
        ([name, *(_figures(table.get(key)) for key in plan.sets), _mean(table, plan)] for name, table in tables.items()),
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
        [
            "method",
            "bytes up",
            "bytes down",
            "rounds",
            "client seconds, by stage",
            "test, ms a text",
            "peak MiB above the model",
        ],
        (_cost_row(name, [record for own in table.values() for record in own]) for name, table in tables.items()),
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


def _accuracy(records: Sequence[Record] | None) -> str:
    return f"{100 * np.mean([record.accuracy for record in records]):.1f}" if records else _DASH


def _mean(table: dict[str, list[Record]], plan: Plan) -> str:
    """Over the data sets, where all are there."""
    if len(table) < len(plan.sets):
        return _DASH
    return f"{100 * np.mean([np.mean([record.accuracy for record in own]) for own in table.values()]):.1f}"


def _difference(ours: Sequence[Record] | None, theirs: Sequence[Record] | None) -> str:
    if not ours or not theirs:
        return _DASH
    pairs = _paired(ours, theirs)
    if not pairs:
        return _DASH
    first, second = (hits(side) for side in zip(*pairs, strict=True))
    by_seed = [100 * (one.accuracy - other.accuracy) for one, other in pairs]
    spread = f" ({min(by_seed):+.1f} to {max(by_seed):+.1f})" if len(by_seed) > 1 else ""
    return f"{100 * (first.mean() - second.mean()):+.1f}{spread}, p {paired_p(first, second):.4f}"


def _paired(ours: Sequence[Record], theirs: Sequence[Record]) -> list[tuple[Record, Record]]:
    """By seed; what no seed moves stands beside each."""
    by_seed = {record.cell.seed: record for record in theirs}
    both = ((record, by_seed.get(record.cell.seed) or by_seed.get(None)) for record in ours)
    return [(one, other) for one, other in both if other is not None]


def _cost_row(name: str, records: Sequence[Record]) -> list[str]:
    def mean(figure: Callable[[Record], float]) -> float:
        return float(np.mean([figure(record) for record in records]))

    stages = dict.fromkeys(stage for record in records for stage in record.cpu_seconds)
    seconds = [f"{stage} {mean(_seconds_of(stage)):.1f}" for stage in stages]
    in_all = f"{mean(lambda record: sum(record.cpu_seconds.values())):.1f}: "
    crosses = any(record.total_bytes for record in records)
    return [
        name,
        f"{mean(lambda record: sum(record.bytes_up.values())):,.0f}" if crosses else _DASH,
        f"{mean(lambda record: sum(record.bytes_down.values())):,.0f}" if crosses else _DASH,
        f"{mean(lambda record: record.rounds):.0f}",
        in_all + ", ".join(seconds) if seconds else _DASH,
        f"{mean(lambda record: record.test_milliseconds):.0f}",
        f"{mean(lambda record: record.peak_mib):.0f}",
    ]


def _seconds_of(stage: str) -> Callable[[Record], float]:
    return lambda record: record.cpu_seconds.get(stage, 0.0)


def _between(days: Sequence[str]) -> str:
    return _DASH if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
