"""The tables of a report, for a terminal and for its page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ifedicl.federation.state import RoundRecord, Traffic
from ifedicl.kinds.examples import AnyEvaluation
from ifedicl.report.facts import Report, kilobytes, percent, traffic_by_client
from ifedicl.report.verdict import LabelFigures, adapter_and_raw, by_label

MOST_LABELS = 20
"""Above it the confusion matrix is a list of the most frequent mistakes."""
CONFUSION = "What the adapter says (columns) of each true label (rows)"
"""Title of the confusion matrix."""
_MISTAKES = 10


def evaluation_tables(adapter: AnyEvaluation, zero_shot: AnyEvaluation) -> list[Table]:
    """Zero-shot and the adapter compared, in all, by label and by mistake."""
    columns = "accuracy", "95% interval", *adapter.figures, *adapter.numbers, "loss", "calibration error"
    figures = Table("", *columns, title=f"{adapter.examples} examples")
    for name, evaluation in (("zero-shot", zero_shot), ("adapter", adapter)):
        error = percent(evaluation.confidence.calibration_error)
        figures.add_row(name, *_figures(evaluation), f"{evaluation.loss:.3f}", error)
    others = _labels_table(by_label(adapter, zero_shot)), _confusion_table(adapter)
    return [figures, *(table for table in others if table.row_count)]


def tables_of(report: Report) -> list[Table]:
    """All tables that have rows, in the order of the report."""
    makers = (_figures_table, _by_label_table, _mistakes_table, _by_client_table, _clients_table, _rounds_table, _traffic_table)
    return [table for table in (make(report) for make in makers) if table.row_count]


def _by_label_table(report: Report) -> Table:
    both = adapter_and_raw(report)
    return Table() if both is None else _labels_table(by_label(*both))


def _labels_table(rows: Sequence[LabelFigures]) -> Table:
    table = Table(
        "label", "test texts", "right, zero-shot", "right, adapter", "change", title="Right answers by label (recall)"
    )
    for row in rows:
        change = "" if row.change is None else f"{100 * row.change:+.1f} points"
        table.add_row(row.label, str(row.examples), _rate(row.raw, row.examples), _rate(row.right, row.examples), change)
    return table


def _rate(right: int | None, examples: int) -> str:
    return "" if right is None or not examples else f"{percent(right / examples)} ({right})"


def _mistakes_table(report: Report) -> Table:
    return _confusion_table(report.rows[-1].evaluation) if report.rows else Table()


def _confusion_table(evaluation: AnyEvaluation) -> Table:
    """The confusion matrix; with many labels, the most frequent mistakes."""
    matrix = evaluation.confusion
    labels = evaluation.labels[: len(matrix)]
    if len(labels) <= MOST_LABELS:
        table = Table("true label", *labels, title=CONFUSION)
        for label, counts in zip(labels, matrix, strict=True):
            table.add_row(label, *map(str, counts))
        return table
    table = Table("true label", "the adapter's answer", "test texts", title="The adapter's most frequent mistakes")
    wrong = matrix.copy()
    wrong[range(len(labels)), range(len(labels))] = 0
    for place in (-wrong.ravel()).argsort(kind="stable")[:_MISTAKES]:
        true, answer = divmod(int(place), len(labels))
        if wrong[true, answer]:
            table.add_row(labels[true], labels[answer], str(wrong[true, answer]))
    return table


def _clients_table(report: Report) -> Table:
    task = report.adapter.task
    by_client = {name: task.summary_of(examples) for name, examples in report.clients.items()}
    answers = list(task.summary_of([example for examples in report.clients.values() for example in examples]))
    table = Table("client", *answers, "examples", title="Examples of each client")
    for name, counts in by_client.items():
        table.add_row(name, *(str(counts.get(answer, 0)) for answer in answers), str(len(report.clients[name])))
    return table


def _rounds_table(report: Report) -> Table:
    columns = "round", "clients", "training loss", "held-out loss", "held-out accuracy", "worst client"
    table = Table(*columns, title="The federation, round by round")
    zero_shot = report.outcome.state.zero_shot
    if zero_shot is not None and report.outcome.state.history:
        table.add_row(
            f"zero-shot{' *' if report.outcome.chosen_round == 0 else ''}",
            "",
            "",
            f"{zero_shot.loss:.3f}" if zero_shot.loss_sum else "",
            percent(zero_shot.accuracy),
            "",
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
    last = report.rows[-1].evaluation if report.rows else None
    more = () if last is None else (*last.figures, *last.numbers)
    table = Table("", "accuracy", "95% interval", *more, "seconds", title="Accuracy on everyone's test text")
    for row in report.rows:
        table.add_row(row.name, *_figures(row.evaluation), f"{row.seconds:.0f}")
    return table


def _figures(evaluation: AnyEvaluation) -> tuple[str, ...]:
    """Accuracy, its interval and the kind's further figures, as cells."""
    low, high = evaluation.interval
    numbers = (f"{number:.3f}" for number in evaluation.numbers.values())
    return (
        percent(evaluation.accuracy),
        f"{percent(low)} to {percent(high)}",
        *map(percent, evaluation.figures.values()),
        *numbers,
    )


def _by_client_table(report: Report) -> Table:
    clients = list(report.rows[0].by_client) if report.rows else []
    table = Table("", *clients, title="Accuracy on each client's test text")
    for row in report.rows if clients else ():
        table.add_row(row.name, *(percent(row.by_client[client]) for client in clients))
    return table


def _traffic_table(report: Report) -> Table:
    """Bytes of each client; a run without rounds has no columns of them."""
    rounds = len(report.outcome.state.history)
    by_round = ["a round up", "a round down"] if rounds else []
    table = Table("client", "once up", "once down", *by_round, "seconds", "failures", title="Traffic")
    for row in traffic_by_client(report.outcome.state.traffic, rounds):
        table.add_row(
            row.client,
            *map(kilobytes, (row.setup_up, row.setup_down, *((row.round_up, row.round_down) if rounds else ()))),
            f"{row.seconds:.0f}",
            ", ".join(f"{count} {code}" for code, count in row.failures.items()),
        )
    return table
