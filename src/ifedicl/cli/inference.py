"""``ifedicl classify``, ``evaluate`` and ``personalise``: uses of an adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from ifedicl.cli.adapters import read_adapter
from ifedicl.cli.options import AnyAdapter, IdColumn, Json, LabelColumn, MinConfidence, ModelSource, TextColumn
from ifedicl.errors import DataError

if TYPE_CHECKING:
    from ifedicl.kinds.any_task import AnyTask
    from ifedicl.kinds.examples import AnyEvaluation, AnyExample

T = TypeVar("T")


def classify(
    adapter: AnyAdapter,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts. Default: one a line from standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="A .txt (one a line), .jsonl, .csv, .tsv or .parquet file.")] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    min_confidence: MinConfidence = 0.0,
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Label texts given as arguments, in a file, or on standard input.

    Prints label, probability and text, separated by tabs; with --json one object a line, with all probabilities. Below
    --min-confidence the label is empty, and null with --json. An adapter that chooses takes a file of texts with options.
    """
    from ifedicl.progress import LOADING, waiting

    loaded = read_adapter(adapter, model)
    asked = _questions(texts, file, text_column, loaded.task)
    ids = _ids(file, id_column)
    with waiting(LOADING):
        ready = loaded.on_model()
    answers = _counted("texts", len(asked), lambda done: ready.answers(asked, on_progress=done))
    for number, (example, answer) in enumerate(zip(asked, answers, strict=True)):
        named = None if ids is None else ids[number]
        is_sure = answer.confidence >= min_confidence
        if as_json:
            facts = {} if named is None else {"id": named}
            given = {"label": answer.value if is_sure else None, **answer.facts}
            print(json.dumps({**facts, "text": example.text, **given}, ensure_ascii=False))
        else:
            columns = [] if named is None else [named]
            shown = " ".join(answer.shown.split()) if is_sure else ""
            columns += [shown, f"{answer.confidence:.3f}", " ".join(example.text.split())]
            print("\t".join(columns))


def evaluate(
    adapter: AnyAdapter,
    file: Annotated[Path, typer.Argument(help="Labelled text: .jsonl, .csv, .tsv or .parquet.")],
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    min_confidence: MinConfidence = 0.0,
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Measure an adapter on labelled text: accuracy with its 95% interval, macro-F1 and confusion, compared with zero-shot.

    With --min-confidence also: how many texts get an answer, and how many of these answers are right.
    """
    from ifedicl import runs
    from ifedicl.data import read_examples
    from ifedicl.metrics import paired_p
    from ifedicl.progress import LOADING, waiting

    loaded = read_adapter(adapter, model)
    examples = read_examples(file, loaded.task, text=text_column, label=label_column)

    from ifedicl.report import evaluation_tables

    with waiting(LOADING):
        ready = loaded.on_model()
    raw = runs.zero_shot_adapter(ready.backbone, loaded.model, loaded.task).on_model(ready.backbone)
    zero_shot = _counted("zero-shot", len(examples), lambda done: raw.evaluate(examples, on_progress=done))
    result = _counted("adapter", len(examples), lambda done: ready.evaluate(examples, on_progress=done))
    p = paired_p(result.hits, zero_shot.hits)
    if as_json:
        both = {name: _summary(each, min_confidence) for name, each in (("adapter", result), ("zero_shot", zero_shot))}
        print(json.dumps({**both, "paired_p": p}))
        return
    console = Console(markup=False)
    for table in evaluation_tables(result, zero_shot):
        console.print(table)
    console.print(f"paired p-value of equal accuracy: {p:.4f}", highlight=False)
    if min_confidence > 0:
        for name, each in (("zero-shot", zero_shot), ("adapter", result)):
            given = each.confidence.answered(min_confidence)
            right = "" if given.accuracy is None else f", {given.accuracy:.1%} of these right"
            answered = f"{given.coverage:.1%} answered ({given.examples}){right}"
            console.print(f"{name} at a confidence of {min_confidence:g} or more: {answered}", highlight=False)


def personalise(
    adapter: AnyAdapter,
    file: Annotated[Path, typer.Argument(help="Your own labelled text: .jsonl, .csv, .tsv or .parquet.")],
    out: Annotated[Path, typer.Option(help="The folder of the personal adapter.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, rounded up to a multiple of 4.")] = 40,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.95, help="Fraction of FILE to compare both adapters on.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split and batches.")] = 0,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    model: ModelSource = None,
    as_json: Json = False,
) -> None:
    """Calibrate a federation's adapter further on your own text; nothing is sent.

    The result is written only if it is better than the federation's adapter on held-out examples of FILE.
    """
    from ifedicl.data import read_examples
    from ifedicl.progress import LOADING, counted, waiting

    loaded = read_adapter(adapter, model)
    examples = read_examples(file, loaded.task, text=text_column, label=label_column)

    from ifedicl.personal import personalise as personalised

    with waiting(LOADING):
        backbone = loaded.on_model().backbone
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
        f"on {own.examples} held-out examples: loss {own.loss:.3f}, accuracy {own.accuracy:.1%}; the federation's adapter: "
        f"{federation.loss:.3f}, {federation.accuracy:.1%}",
        highlight=False,
    )
    refused = "not better by a paired 95% bound: nothing was written; use the federation's adapter"
    console.print(f"wrote {out}" if result.is_used else refused, highlight=False)


def _summary(evaluation: AnyEvaluation, min_confidence: float) -> dict[str, Any]:
    """The figures as JSON, with those of a least confidence if one is given."""
    given = {"answered": asdict(evaluation.confidence.answered(min_confidence))} if min_confidence > 0 else {}
    return evaluation.summary() | given


def _ids(file: Path | None, column: str | None) -> list[str] | None:
    """The values of the id column, row by row; None: none is asked for."""
    if column is None:
        return None
    from ifedicl.data import read_texts

    if file is None or file.suffix.lower() == ".txt":
        raise DataError(
            f"--id-column: received {column!r} without a table. Give a .jsonl, .csv, .tsv or .parquet file with --file"
        )
    return [" ".join(value.split()) for value in read_texts(file, text=column)]


def _questions(texts: Sequence[str] | None, file: Path | None, column: str, task: AnyTask) -> Sequence[AnyExample]:
    from ifedicl.data import read_questions

    if texts and file:
        raise DataError("texts: received texts and --file. Give one of them")
    if file is not None:
        return read_questions(file, task, text=column)
    return [task.question_of({column: text}, column) for text in _texts(texts)]


def _texts(texts: Sequence[str] | None) -> list[str]:
    from ifedicl.rows import has_lone_surrogate

    if texts:
        if any(map(has_lone_surrogate, texts)):
            raise DataError("texts: a text on the command line is not UTF-8. Set the terminal to UTF-8, or use --file")
        return list(texts)
    if sys.stdin is None:  # closed
        raise DataError("texts: received none, and standard input is closed. Give them as arguments or with --file")
    if sys.stdin.isatty():
        print("type texts, one a line; end with Ctrl-D", file=sys.stderr)
    try:
        piped = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text (byte {error.start}). Convert it first") from error
    lines = [line.rstrip("\r") for line in piped.split("\n") if line.strip()]
    if not lines:
        raise DataError("texts: received none, as arguments, with --file or on standard input. See: ifedicl classify --help")
    return lines


def _counted(name: str, total: int, work: Callable[[Callable[[int], None]], T]) -> T:
    from ifedicl.progress import counted

    with counted(name, total) as advance:
        return work(advance)
