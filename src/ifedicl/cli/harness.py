"""``ifedicl harness``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ifedicl.cli.adapters import read_adapter
from ifedicl.cli.extras import require
from ifedicl.cli.options import AnyAdapter, LabelColumn, ModelSource, TextColumn


def harness(
    adapter: AnyAdapter,
    file: Annotated[Path, typer.Argument(help="Labelled text: .jsonl, .csv, .tsv or .parquet.")],
    out: Annotated[Path, typer.Argument(help="The folder of the task; it gets a copy of the rows.")],
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    model: ModelSource = None,
) -> None:
    """Write a task of lm-evaluation-harness from labelled text: an adapter's prompts, label words and rows.

    Then prints the command that measures the adapter with it. docs/integrations.md says what else the harness can measure.
    """
    require("ifedicl harness", "lm-eval", "lm_eval", "yaml")
    from ifedicl.data import read_examples
    from ifedicl.lm_evaluation.task_file import write_task

    loaded = read_adapter(adapter, model)
    name = write_task(loaded, read_examples(file, loaded.task, text=text_column, label=label_column), out)
    console = Console(markup=False)
    console.print(f"wrote {out / name}.yaml and its rows. To measure the adapter with it:", highlight=False, soft_wrap=True)
    given = f"adapter={adapter}" if model is None else f"adapter={adapter},backbone={model}"
    words = ["--model", "ifedicl", "--model_args", given, "--tasks", name, "--include_path", str(out)]
    console.print(f"python -m ifedicl.lm_evaluation run {shlex.join(words)}", highlight=False, soft_wrap=True)
