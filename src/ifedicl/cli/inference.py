"""An adapter at work: ``ifedicl classify``, ``evaluate`` and ``personalise``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from ifedicl.cli.options import AdapterFolder, Json, ModelSource
from ifedicl.errors import DataError

T = TypeVar("T")


def classify(
    adapter: AdapterFolder,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none: one a line from standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="A .txt (one a line), .jsonl, .csv, .tsv or .parquet file.")] = None,
    column: Annotated[str, typer.Option(help="The column of FILE that holds the text.")] = "text",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Label texts given as arguments, in a file, or on standard input.

    Prints label, probability and text, separated by tabs; with --json one object a line, with all probabilities.
    """
    from ifedicl.adapter import Adapter
    from ifedicl.progress import LOADING, waiting

    loaded = Adapter.load(adapter)
    wanted = _texts(texts, file, column)
    with waiting(LOADING):
        classifier = loaded.with_model_source(model).classifier()
    predictions = _counted("texts", len(wanted), lambda done: classifier.classify(wanted, on_progress=done))
    for text, prediction in zip(wanted, predictions, strict=True):
        if as_json:
            print(json.dumps({"text": text, **asdict(prediction)}, ensure_ascii=False))
        else:
            print(f"{prediction.label}\t{prediction.probabilities[prediction.label]:.3f}\t{' '.join(text.split())}")


def evaluate(
    adapter: AdapterFolder,
    file: Annotated[Path, typer.Argument(help="Labelled text: .jsonl, .csv, .tsv or .parquet.")],
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column that holds the label.")] = "label",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Measure an adapter on labelled text: accuracy with its 95% interval, macro-F1 and confusion, beside zero-shot."""
    from ifedicl import runs
    from ifedicl.adapter import Adapter
    from ifedicl.data import read_examples
    from ifedicl.metrics import paired_p
    from ifedicl.progress import LOADING, waiting
    from ifedicl.report import evaluation_tables

    loaded = Adapter.load(adapter)
    examples = read_examples(file, loaded.task, text=text_column, label=label_column)
    with waiting(LOADING):
        classifier = loaded.with_model_source(model).classifier()
    raw = runs.zero_shot_adapter(classifier.backbone, loaded.model, loaded.task).classifier(classifier.backbone)
    zero_shot = _counted("zero-shot", len(examples), lambda done: raw.evaluate(examples, on_progress=done))
    result = _counted("adapter", len(examples), lambda done: classifier.evaluate(examples, on_progress=done))
    p = paired_p(result.hits, zero_shot.hits)
    if as_json:
        print(json.dumps({"adapter": result.summary(), "zero_shot": zero_shot.summary(), "paired_p": p}))
        return
    console = Console(markup=False)
    for table in evaluation_tables(result, zero_shot):
        console.print(table)
    console.print(f"paired p that both are equally accurate: {p:.4f}", highlight=False)


def personalise(
    adapter: AdapterFolder,
    file: Annotated[Path, typer.Argument(help="Your own labelled text: .jsonl, .csv, .tsv or .parquet.")],
    out: Annotated[Path, typer.Option(help="Where the personal adapter goes.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, rounded up to a multiple of 4.")] = 40,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.95, help="Fraction of FILE that decides.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of split and batches.")] = 0,
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column that holds the label.")] = "label",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Take a federation's adapter a few steps further on your own text; nothing leaves this machine.

    It is kept only where it beats the federation's adapter on examples of yours that it was not trained on.
    """
    from ifedicl.adapter import Adapter
    from ifedicl.data import read_examples
    from ifedicl.personal import personalise as personalised
    from ifedicl.progress import LOADING, counted, waiting

    loaded = Adapter.load(adapter)
    examples = read_examples(file, loaded.task, text=text_column, label=label_column)
    with waiting(LOADING):
        backbone = loaded.with_model_source(model).classifier().backbone
    with counted("calibrating", steps) as advance:
        result = personalised(loaded, examples, backbone, steps=steps, held_out=held_out, seed=seed, on_progress=advance)
    own, federation = result.comparison.adapter, result.comparison.zero_shot
    if result.is_used:
        result.adapter.save(out)
    if as_json:
        figures = {"personal": own.accuracy, "federation": federation.accuracy, "examples": own.examples}
        print(json.dumps({"used": result.is_used, "accuracy": figures, "adapter": str(out) if result.is_used else None}))
        return
    console = Console(markup=False)
    console.print(
        f"on {own.examples} examples that were not trained on: loss {own.loss:.3f}, {own.accuracy:.1%} right, against "
        f"{federation.loss:.3f} and {federation.accuracy:.1%} of the federation's adapter",
        highlight=False,
    )
    verdict = (
        f"written to {out}" if result.is_used else "no better by a paired 95% bound: nothing is written, use the federation's"
    )
    console.print(verdict, highlight=False)


def _texts(texts: Sequence[str] | None, file: Path | None, column: str) -> list[str]:
    if texts and file:
        raise DataError("texts and --file were both given; give one of them")
    from ifedicl.data import read_texts
    from ifedicl.rows import has_lone_surrogate

    if file is not None:
        return list(read_texts(file, text=column))
    if texts:
        if any(map(has_lone_surrogate, texts)):
            raise DataError("a text on the command line is not UTF-8; set the terminal to UTF-8, or give a file with --file")
        return list(texts)
    if sys.stdin.isatty():
        print("reading texts from the keyboard, one a line; end with Ctrl-D", file=sys.stderr)
    try:
        piped = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from error
    lines = [line.rstrip("\r") for line in piped.split("\n") if line.strip()]
    if not lines:
        raise DataError("no texts: none as arguments, none in a file, none on standard input. See: ifedicl classify --help")
    return lines


def _counted(name: str, total: int, work: Callable[[Callable[[int], None]], T]) -> T:
    from ifedicl.progress import counted

    with counted(name, total) as advance:
        return work(advance)
