"""What a report says and shows: traffic, the answer first, labels that fell, the parts that decide, and its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ifedicl import federate, simulate
from ifedicl.adapter import Prediction
from ifedicl.backbone.load import Backbone
from ifedicl.confidence import Confidence
from ifedicl.federation.driver import Federated
from ifedicl.federation.state import Traffic
from ifedicl.metrics import Comparison, Evaluation, Tally
from ifedicl.pictures import VARIABLES
from ifedicl.report import Figures, Report, compare, traffic_by_client, write_report
from ifedicl.report.plots import rounds_pictures
from ifedicl.report.rich_tables import MOST_LABELS, evaluation_tables, tables_of
from ifedicl.report.verdict import answer_of, by_label, details_of, label_sentences
from ifedicl.settings import TOGETHER, Method, ModelSettings, load_preset
from tests.support import tiny
from tests.support.private import private_method

SOURCE = Path(__file__).parents[2] / "src" / "ifedicl"


def exchange(client: str, step: str, number: int, down: int, up: int, failure: str | None = None) -> Traffic:
    return Traffic(client=client, step=step, round=number, bytes_down=down, bytes_up=up, seconds=1.0, failure=failure)


def test_what_comes_once_and_what_comes_each_round_are_shown_apart() -> None:
    traffic = []
    for client in ("a", "b"):
        traffic += [exchange(client, "vectors", 0, 1, 100), exchange(client, "context", 0, 50, 1)]
        for number in (0, 1):
            traffic += [exchange(client, "update", number, 10, 20), exchange(client, "evaluate", number + 1, 10, 2)]
        traffic += [exchange(client, "statistics", 2, 10, 1000), exchange(client, "evaluate", 2, 500, 4)]  # its readouts' trial
        traffic += [exchange(client, "compare", 2, 30, 3)]
    for row in traffic_by_client(traffic, rounds=2):
        assert (row.setup_up, row.setup_down) == (100 + 1 + 1000 + 4 + 3, 1 + 50 + 10 + 500 + 30)
        assert (row.round_up, row.round_down) == (22.0, 20.0)
        assert row.seconds == 9.0


def test_failures_are_counted_but_for_a_client_that_was_started_again() -> None:
    traffic = [
        exchange("a", "update", 0, 1, 1, "late"),
        exchange("a", "update", 1, 1, 1, "late"),
        exchange("a", "update", 2, 1, 1, "no_context"),
        exchange("a", "update", 2, 1, 1),
    ]
    (row,) = traffic_by_client(traffic, rounds=3)
    assert row.failures == {"late": 2}


# The answer


def evaluation(rights: Sequence[int], wrongs: Sequence[int], labels: Sequence[str] = tiny.TASK.labels) -> Evaluation:
    """Of each label so many right, and so many answered as the next label."""
    truth, predicted = [], []
    for place, (right, wrong) in enumerate(zip(rights, wrongs, strict=True)):
        truth += [place] * (right + wrong)
        predicted += [place] * right + [(place + 1) % len(labels)] * wrong
    hits = np.array(truth) == np.array(predicted)
    return Evaluation(tuple(labels), np.array(truth), np.array(predicted), 0.5, Confidence(np.where(hits, 0.9, 0.6), hits, 0.3))


def test_a_difference_is_claimed_only_where_chance_does_not_explain_it() -> None:
    good, middle, bad = evaluation((30, 30), (0, 0)), evaluation((29, 30), (1, 0)), evaluation((15, 15), (15, 15))
    assert compare("It", good, "raw", bad.hits).startswith("It beats raw: +50.0 points on 60 test texts, paired p = 0.0")
    assert "is WORSE than raw: -50.0 points" in compare("It", bad, "raw", good.hits)
    assert "does NOT beat raw: +1.7 points" in compare("It", good, "raw", middle.hits)
    assert "does NOT beat raw: -1.7 points" in compare("It", middle, "raw", good.hits)


@cache
def run_of(backbone: Backbone, kind: str) -> Federated:
    rows = tiny.examples(24)
    clients = simulate(backbone, tiny.TASK, {f"ward-{n}": rows[6 * n : 6 * n + 6] for n in range(4)})
    methods: dict[str, Method] = {
        "rounds": tiny.method(holdout={"selection": 0.25, "gate": 0.25}, subspace={"rank": 2}),
        "no gate": tiny.method(rounds={"rounds": 1}),
        "one-shot": load_preset("one-shot"),
    }
    return federate(clients, ModelSettings(source="tiny"), tiny.TASK, methods[kind])


def as_private(run: Federated) -> Federated:
    """As a run in private mode reads: noisy counts without losses."""
    state, counts = run.outcome.state, Tally(7, 5)
    history = tuple(replace(record, train_loss=None, by_client={TOGETHER: counts}) for record in state.history)
    outcome = replace(run.outcome, chosen_round=1, state=replace(state, history=history, zero_shot_by_client={"a": counts}))
    provenance = {**run.adapter.provenance, "method": private_method().model_dump(mode="json")}
    return replace(run, outcome=outcome, adapter=replace(run.adapter, provenance=provenance))


def report_of(run: Federated, *rows: Evaluation) -> Report:
    names = ("zero-shot", "the federation")
    figures = [Figures(name, item, {}, 1.0) for name, item in zip(names, rows, strict=False)]
    verdicts = [compare("The federation", rows[1], "zero-shot", rows[0].hits)] if rows else []
    rows_by_client = {"north": tiny.examples(12)}
    sample = "a [bold] <b>text</b>", Prediction("good", {"good": 0.75, "bad": 0.25})
    return Report("mood", run.adapter, run.outcome, rows_by_client, figures, verdicts, [sample], 1.0)


def test_the_page_begins_with_the_paired_test_and_names_the_label_that_fell(backbone: Backbone, tmp_path: Path) -> None:
    report = report_of(run_of(backbone, "rounds"), evaluation((28, 2), (2, 28)), evaluation((25, 29), (5, 1)))
    page = Page(write(report, tmp_path))
    text = page.text
    verdict, fall = (
        "The federation beats zero-shot: +40.0 points",
        "Recognised less often than by the raw model: good (25 of 30 instead of 28)",
    )
    assert (
        text.index("mood")
        < text.index(verdict)
        < text.index("90.0% of 60 test texts")
        < text.index(fall)
        < text.index("Gate: ")
    )
    assert ["good", "30", "93.3% (28)", "83.3% (25)", "-10.0 points"] in page.rows
    assert ["bad", "1", "29"] in page.rows  # the confusion matrix
    assert text.index(fall) < text.index("Examples of each client")


def test_where_no_label_fell_the_page_says_so() -> None:
    rows = by_label(evaluation((5, 5), (1, 1)), evaluation((5, 4), (1, 2)))
    assert [row.change for row in rows] == pytest.approx([0, 1 / 6])
    assert by_label(evaluation((5, 0), (1, 0)), evaluation((5, 0), (1, 0)))[1].change is None  # no test text of it


def test_many_labels_give_a_list_of_mistakes_instead_of_a_matrix() -> None:
    labels = [f"label {number}" for number in range(MOST_LABELS + 1)]
    wrong = evaluation([3] * len(labels), [2, *[0] * (len(labels) - 2), 1], labels)
    table = evaluation_tables(wrong, wrong)[-1]
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [("label 0", "label 1", "2"), (labels[-1], "label 0", "1")]


def test_without_test_text_the_answer_says_what_its_figure_is_worth(backbone: Backbone) -> None:
    first, second = answer_of(report_of(run_of(backbone, "no gate")))
    assert re.fullmatch(r"\d+\.\d% of the held-out examples are labelled right against \d+\.\d% of the raw model\.", first)
    assert "also chose the round" in second
    (only,) = answer_of(report_of(run_of(backbone, "rounds")))
    assert "the gate below" in only
    (none,) = answer_of(report_of(run_of(backbone, "one-shot")))
    assert "nothing says how good this adapter is" in none


def test_the_readout_is_used_rejected_or_behind_a_shut_gate(backbone: Backbone) -> None:
    report = report_of(run_of(backbone, "one-shot"))
    assert report.outcome.readout is not None
    fitted = replace(report.outcome.state, readout=report.outcome.readout)

    def said(**parts: object) -> list[str]:
        own = replace(report, outcome=replace(report.outcome, **parts))  # type: ignore[arg-type]
        return [sentence for sentence in details_of(own) if sentence.startswith("Readout")]

    assert "used, it scores" in said(readout=fitted.readout, state=fitted)[0]
    assert "gate is shut" in said(readout=None, state=fitted)[0]
    assert "REJECTED" in said(readout=None, state=replace(fitted, readout=None))[0]
    assert not any(sentence.startswith("Readout") for sentence in details_of(report_of(run_of(backbone, "no gate"))))


@pytest.mark.parametrize("is_open", [True, False])
def test_the_gate_is_told_open_or_shut(backbone: Backbone, is_open: bool) -> None:
    report = report_of(run_of(backbone, "rounds"))
    ours, raw = Tally(40, 38, 4.0), Tally(40, 20, 40.0)
    gate = Comparison(*((ours, raw) if is_open else (raw, ours)), 60.0, 18, (20, 20), (20, 20))
    own = replace(report, outcome=replace(report.outcome, gate=gate))
    assert any((": open, the adapter" if is_open else "SHUT, the raw model") in sentence for sentence in details_of(own))


# Every kind of run


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", ["rounds", "no gate", "one-shot", "private"])
@pytest.mark.parametrize("tested", [True, False])
def test_every_kind_of_run_reads_well(backbone: Backbone, tmp_path: Path, kind: str, tested: bool) -> None:
    run = as_private(run_of(backbone, "no gate")) if kind == "private" else run_of(backbone, kind)
    report = report_of(run, *((evaluation((3, 3), (1, 1)), evaluation((4, 3), (0, 1))) if tested else ()))
    content = write(report, tmp_path)
    page = Page(content)
    assert "nan" not in page.text
    assert not re.search(r" ,|\(\)|None", page.text)  # no gap where a run has no such fact
    assert "0 rounds" not in page.text
    assert ("one message of each client" in page.text) == (kind == "one-shot")
    assert ("a round up" in page.text) == (kind != "one-shot")
    assert ("Rounds: NOT USED" in page.text) == (report.outcome.chosen_round == 0 and kind != "one-shot")
    if kind == "private":
        assert "Privacy mode private: the coordinator sees noisy sums" in page.text
        assert "About 71.4% of the held-out examples are labelled right against about 71.4%" in page.text or tested
        assert ["1 *", "4", "", "", "71.4%", ""] in page.rows
    assert all(len({len(row) for row in rows}) == 1 for rows in page.tables)
    assert "&lt;b&gt;text" in content  # a text is not markup


def test_noisy_counts_have_no_picture_of_losses(backbone: Backbone) -> None:
    run = run_of(backbone, "no gate")
    assert [picture.title for picture in rounds_pictures(run.outcome)] == [
        f"Held-out {name} of all clients" for name in ("loss", "accuracy")
    ]
    assert [picture.title for picture in rounds_pictures(as_private(run).outcome)] == ["Held-out accuracy of all clients"]
    assert rounds_pictures(run_of(backbone, "one-shot").outcome) == []


def test_the_page_adapts_to_dark_and_phones_and_covers_no_plot(backbone: Backbone, tmp_path: Path) -> None:
    content = write(report_of(run_of(backbone, "rounds"), evaluation((3, 3), (1, 1)), evaluation((4, 3), (0, 1))), tmp_path)
    assert "@media (prefers-color-scheme: dark)" in content
    assert 'name="viewport" content="width=device-width' in content
    pictures = re.findall(r"<svg.*?</svg>", content, flags=re.DOTALL)
    assert len(pictures) == 8  # accuracy, labels, confidence, loss, accuracy by round, λ, β, Γ
    for picture in pictures:
        assert "legend" not in picture
        drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", picture))
        assert drawn == set()  # every colour follows the scheme
        assert float(re.search(r'<svg[^>]* width="([\d.]+)pt"', picture)[1]) < 360  # type: ignore[index]
    cells = [row for row in re.findall(r"<tr>(.*?)</tr>", content) if "<td data-name" in row]
    assert all("data-name" in cell for row in cells for cell in re.findall(r"<td[^>]*>", row) if "shaded" not in cell)


def test_report_and_page_have_one_colour_scale() -> None:
    sheets = [path.read_text() for path in (SOURCE / "templates" / "page.css", SOURCE / "serve" / "page" / "style.css")]
    for name in {*VARIABLES.values()} - {"pale"}:
        values = [re.findall(rf"--{name}: (#[0-9a-f]{{6}})", sheet) for sheet in sheets]
        assert values[0] == values[1], name
        assert len(values[0]) == 2, name  # light and dark
        assert values[0][0] in VARIABLES


def test_a_terminal_and_the_page_have_the_same_tables(backbone: Backbone) -> None:
    report = report_of(run_of(backbone, "rounds"), evaluation((3, 3), (1, 1)), evaluation((4, 3), (0, 1)))
    titles = [table.title for table in tables_of(report)]
    assert titles[:2] == ["Accuracy on everyone's test text", "Right answers by label (recall)"]
    assert label_sentences(report) == ["No label lost: each is recognised at least as often as by the raw model."]


def write(report: Report, folder: Path) -> str:
    write_report(report, folder / "report.html")
    return (folder / "report.html").read_text()


class Page(HTMLParser):
    """The text of a page outside its pictures, and the cells of its tables."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._outside: list[str] = []
        self._in_cell = False
        self.feed(content)

    @property
    def rows(self) -> list[list[str]]:
        return [row for table in self.tables for row in table]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("svg", "style"):
            self._outside.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if self._outside and tag == self._outside[-1]:
            self._outside.pop()
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._outside:
            return
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()
