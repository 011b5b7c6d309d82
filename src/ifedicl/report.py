"""The report of a run: tables in a terminal, and one HTML file that needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from rich.console import Console
from rich.table import Table

from ifedicl import __version__, files
from ifedicl.adapter import Adapter, Prediction
from ifedicl.core.coefficients import ACTIVATION, CONTEXT
from ifedicl.core.vectors import WRITES
from ifedicl.data import Example
from ifedicl.federation.coordinator import Outcome
from ifedicl.federation.messages import FailureCode
from ifedicl.federation.state import RoundRecord, Traffic
from ifedicl.metrics import Evaluation
from ifedicl.pictures import ACCENT, INK, PALE, blank, can_draw, svg
from ifedicl.settings import method_of
from ifedicl.settings.describe import mode_of


@dataclass(frozen=True)
class Figures:
    """The test results of one way to label text: on all test text, and each client's accuracy; ``seconds`` is its cost."""

    name: str
    evaluation: Evaluation
    by_client: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: of the page.
        adapter: the run's result.
        outcome: rounds, choice, gate and traffic.
        clients: each client's examples.
        rows: the ways to label the test text, the federation last; may be empty.
        verdicts: sentences on statistically significant differences.
        samples: example sentences and the saved adapter's predictions.
        seconds: of the whole run.
    """

    title: str
    adapter: Adapter
    outcome: Outcome
    clients: Mapping[str, Sequence[Example]]
    rows: Sequence[Figures]
    verdicts: Sequence[str]
    samples: Sequence[tuple[str, Prediction]]
    seconds: float


def percent(fraction: float) -> str:
    """``0.5`` as ``50.0%``."""
    return f"{100 * fraction:.1f}%"


def kilobytes(count: float) -> str:
    """Bytes in KB of 1,024."""
    return f"{count / 1024:,.1f} KB"


@dataclass(frozen=True)
class ClientTraffic:
    """What one client sent (up) and received (down).

    Attributes:
        setup_down: bytes outside the rounds: the task, the vectors, a readout's sums; ``setup_up`` is the same upwards.
        round_down: mean bytes in a round, with evaluations; ``round_up`` is the same upwards.
        seconds: of all its work.
        failures: unusable replies, by code.
    """

    client: str
    setup_down: int
    setup_up: int
    round_down: float
    round_up: float
    seconds: float
    failures: Mapping[str, int]


_STEPS_OF_A_ROUND = {"update", "gradient", "evaluate"}


def traffic_by_client(traffic: Sequence[Traffic], rounds: int) -> list[ClientTraffic]:
    """Sum the exchanges of each client: updates and evaluations as rounds, all others, a readout's trial too, as set-up."""
    table = []
    for client in dict.fromkeys(item.client for item in traffic):
        exchanges = [item for item in traffic if item.client == client]
        setup, rest = list[Traffic](), list[Traffic]()
        is_trial = False  # of a readout: the evaluations after its sums, up to the next other step
        for item in exchanges:
            is_trial = item.step in {"statistics", "noisy_statistics"} or (is_trial and item.step in {"evaluate", "context"})
            (rest if item.step in _STEPS_OF_A_ROUND and not is_trial else setup).append(item)
        table.append(
            ClientTraffic(
                client=client,
                setup_down=sum(item.bytes_down for item in setup),
                setup_up=sum(item.bytes_up for item in setup),
                round_down=sum(item.bytes_down for item in rest) / max(rounds, 1),
                round_up=sum(item.bytes_up for item in rest) / max(rounds, 1),
                seconds=sum(item.seconds for item in exchanges),
                # A client that was restarted asks for the vectors again; that is no failure.
                failures=Counter(item.failure for item in exchanges if item.failure and item.failure != FailureCode.NO_CONTEXT),
            )
        )
    return table


def print_report(report: Report, console: Console) -> None:
    """Print the report as tables. ``console`` must not interpret markup, because labels and tasks may contain brackets."""
    for table in _tables(report):
        console.print(table)
    for sentence in (*gate_sentences(report.outcome), *report.verdicts, mode_sentence(report)):
        console.print(sentence, highlight=False)
    for text, prediction in report.samples:
        console.print(
            f"  {text!r} → {prediction.label} ({percent(prediction.probabilities[prediction.label])})", highlight=False
        )


def mode_sentence(report: Report) -> str:
    """A sentence on who saw what."""
    return f"Privacy mode {mode_of(method_of(report.adapter.provenance))}."


def gate_sentences(outcome: Outcome) -> list[str]:
    """The gate's decision, as a sentence; empty without a gate."""
    gate = outcome.gate
    if gate is None:
        return []
    decision = "open, the adapter is used" if gate.is_open else "SHUT, the raw model is used"
    if gate.is_better and not gate.is_open:
        decision = f"{decision}, since the adapter's answers are no better than chance"
    return [f"Gate: {gate.sentence} of the raw model: {decision}."]


def evaluation_tables(adapter: Evaluation, zero_shot: Evaluation) -> list[Table]:
    """Zero-shot and the adapter compared, and the adapter's confusion matrix."""
    figures = Table("", "accuracy", "95% interval", "macro-F1", "loss", title=f"{len(adapter.truth)} examples")
    for name, evaluation in (("zero-shot", zero_shot), ("adapter", adapter)):
        figures.add_row(name, *_figures(evaluation), f"{evaluation.loss:.3f}")
    confusion = Table("true label", *adapter.labels, title="The adapter's predictions (columns)")
    for label, row in zip(adapter.labels, adapter.confusion, strict=True):
        confusion.add_row(label, *map(str, row))
    return [figures, confusion]


def write_report(report: Report, path: Path) -> None:
    """Write the report as one HTML file; its pictures are inside, or left out without matplotlib.

    Raises:
        StorageError: it cannot be written.
    """
    environment = Environment(loader=PackageLoader("ifedicl", "templates"), autoescape=select_autoescape())
    page = environment.get_template("report.html").render(
        report=report,
        version=__version__,
        pictures=_pictures(report) if can_draw() else [],
        tables=[_plain(table) for table in _tables(report)],
        percent=percent,
        gate=gate_sentences(report.outcome),
        mode=mode_sentence(report),
    )
    files.write_text(path, page)


def _pictures(report: Report) -> list[tuple[str, str]]:
    """Titles and SVGs; of rounds and coefficients, if there are any."""
    pictures = []
    if report.rows:
        pictures.append(("Accuracy on everyone's test text", _accuracy_picture(report.rows)))
    if report.outcome.state.history:
        pictures.append(("Held-out examples of all clients, round by round", _rounds_picture(report.outcome)))
    if report.adapter.coefficients.count:
        pictures.append(("Calibrated coefficients", _coefficients_picture(report.adapter)))
    return pictures


def _tables(report: Report) -> list[Table]:
    """All tables that have rows, in the order of the report."""
    makers = (_clients_table, _rounds_table, _figures_table, _by_client_table, _traffic_table)
    return [table for table in (make(report) for make in makers) if table.row_count]


def _clients_table(report: Report) -> Table:
    labels = report.adapter.task.labels
    table = Table("client", *labels, "examples", title="Examples of each client")
    for name, examples in report.clients.items():
        counts = Counter(example.label for example in examples)
        table.add_row(name, *(str(counts[label]) for label in labels), str(len(examples)))
    return table


def _rounds_table(report: Report) -> Table:
    columns = "round", "clients", "training loss", "held-out loss", "held-out accuracy", "worst client"
    table = Table(*columns, title="The federation, round by round")
    zero_shot = report.outcome.state.zero_shot
    if zero_shot is not None and report.outcome.state.history:
        table.add_row(
            "zero-shot", "", "", f"{zero_shot.loss:.3f}" if zero_shot.loss_sum else "", percent(zero_shot.accuracy), ""
        )
    for record in report.outcome.state.history:
        held_out = record.held_out
        table.add_row(
            f"{record.round}{' *' if record.round == report.outcome.chosen_round else ''}",
            str(_clients_in(report.outcome.state.traffic, record)),
            "" if record.train_loss is None else f"{record.train_loss:.3f}",
            "" if held_out is None or not held_out.loss_sum else f"{held_out.loss:.3f}",
            "" if held_out is None else percent(held_out.accuracy),
            "" if record.worst is None else f"{percent(record.by_client[record.worst].accuracy)} ({record.worst})",
        )
    table.caption = "* the chosen round"
    return table


def _clients_in(traffic: Sequence[Traffic], record: RoundRecord) -> int:
    """The number of clients whose reply counted in a round; in secure mode the record names only all of them together."""
    steps = {"update", "gradient"}
    return len({item.client for item in traffic if item.round == record.round - 1 and item.step in steps and not item.failure})


def _figures_table(report: Report) -> Table:
    table = Table("", "accuracy", "95% interval", "macro-F1", "seconds", title="Accuracy on everyone's test text")
    for row in report.rows:
        table.add_row(row.name, *_figures(row.evaluation), f"{row.seconds:.0f}")
    return table


def _figures(evaluation: Evaluation) -> tuple[str, str, str]:
    """Accuracy, its interval and macro-F1, as cells."""
    low, high = evaluation.interval
    return percent(evaluation.accuracy), f"{percent(low)} to {percent(high)}", percent(evaluation.macro_f1)


def _by_client_table(report: Report) -> Table:
    clients = list(report.rows[0].by_client) if report.rows else []
    table = Table("", *clients, title="Accuracy on each client's test text")
    for row in report.rows if clients else ():
        table.add_row(row.name, *(percent(row.by_client[client]) for client in clients))
    return table


def _traffic_table(report: Report) -> Table:
    table = Table("client", "once up", "once down", "a round up", "a round down", "seconds", "failures", title="Traffic")
    for row in traffic_by_client(report.outcome.state.traffic, len(report.outcome.state.history)):
        table.add_row(
            row.client,
            kilobytes(row.setup_up),
            kilobytes(row.setup_down),
            kilobytes(row.round_up),
            kilobytes(row.round_down),
            f"{row.seconds:.0f}",
            ", ".join(f"{count} {code}" for code, count in row.failures.items()),
        )
    return table


def _plain(table: Table) -> dict[str, object]:
    """A table's cells, for the template."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {
        "title": table.title,
        "caption": table.caption,
        "header": [str(column.header) for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
    }


def _accuracy_picture(rows: Sequence[Figures]) -> str:
    figure = blank(7.5, 0.42 * len(rows) + 0.8)
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        low, high = row.evaluation.interval
        accuracy = row.evaluation.accuracy
        axes.barh(place, accuracy, color=ACCENT if row is rows[-1] else PALE, height=0.62)
        axes.errorbar(accuracy, place, xerr=[[accuracy - low], [high - accuracy]], color=INK, capsize=3, linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy, with its 95% interval")
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _rounds_picture(outcome: Outcome) -> str:
    records = [record for record in outcome.state.history if record.held_out is not None]
    rounds = [record.round for record in records]
    figure = blank(7.5, 2.6)
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        axes.plot(rounds, [getattr(record.held_out, name) for record in records], color=ACCENT, marker="o", markersize=3)
        if outcome.state.zero_shot is not None:
            axes.axhline(getattr(outcome.state.zero_shot, name), color=PALE, linestyle="--", label="zero-shot")
            axes.legend(frameon=False)
        axes.axvline(outcome.chosen_round, color=INK, linewidth=0.6)
        axes.set_xlabel("round")
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return svg(figure)


def _coefficients_picture(adapter: Adapter) -> str:
    scales, layers = adapter.coefficients.scales, adapter.context.layers  # (L, 2, 2)
    shown = (("λ, context_scale", scales[..., CONTEXT], 0.0), ("β - 1, activation_scale", scales[..., ACTIVATION], 1.0))
    figure = blank(7.5, 2.4)
    for axes, (name, values, centre) in zip(figure.subplots(2, 1, sharex=True), shown, strict=True):
        deviation = (values - centre).T  # (2, L)
        bound = float(np.abs(deviation).max()) or 1.0
        edges = (layers.start - 0.5, layers.stop - 0.5, len(WRITES) - 0.5, -0.5)  # the model's layer numbers
        image = axes.imshow(deviation, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", extent=edges)
        axes.set_yticks(range(len(WRITES)), WRITES)
        axes.set_title(name, fontsize=9, loc="left")
        figure.colorbar(image, ax=axes)
    axes.set_xlabel("layer")
    return svg(figure)
