"""A task of lm-evaluation-harness from an adapter's task and labelled text: a YAML file, and its rows beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ifedicl import files
from ifedicl.adapter import Adapter
from ifedicl.kinds.any_task import TEXT_FIELD
from ifedicl.kinds.examples import AnyExample

TEXT, CHOICES, RIGHT = "text", "choices", "right"
"""The columns of the rows."""


def write_task(adapter: Adapter, examples: Sequence[AnyExample], folder: Path) -> str:
    """Write ``NAME.yaml`` and ``NAME.jsonl`` with these rows; earlier ones are replaced.

    The harness then asks the same questions as :meth:`~ifedicl.adapter.on_model.OnModel.evaluate`: the adapter's prompts, and
    behind them its label words or the example's own options. Its library for data keeps a copy of the rows; the file has it do
    so below ``folder`` too.

    Args:
        adapter: whose task it is.
        examples: labelled text.
        folder: is made if it is not there.

    Returns:
        NAME, by which the harness knows the task.

    Raises:
        TaskError: the task has neither labels nor options, or divides by the number of tokens, which the harness cannot.
        BackboneError: the task has chat turns, and the model's tokenizer cannot be read.
        StorageError: as :meth:`~ifedicl.adapter.adapter.Adapter.save`.
    """
    import yaml  # a part of the extra

    task, folder = adapter.task, folder.resolve()
    asked = [task.multiple_choice(example) for example in examples]
    name = "ifedicl_" + re.sub(r"\W+", "_", task.name).strip("_")
    before, _, behind = map(_escaped, _prompt(adapter).partition(TEXT_FIELD))
    rows = [{TEXT: one.text, CHOICES: one.choices, RIGHT: one.right} for one in asked]
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": f"{before}{{{{{TEXT}}}}}{behind}",
        "doc_to_target": RIGHT,
        "doc_to_choice": CHOICES,
        "target_delimiter": task.separator,
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    files.write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    files.write_text(folder / f"{name}.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=1_000_000))
    return name


def _prompt(adapter: Adapter) -> str:
    """The prompt with :data:`TEXT_FIELD` where the text goes, in a chat turn if the task has one."""
    if adapter.task.turn == "raw":
        return adapter.task.template
    from ifedicl.backbone.from_files import read_tokenizer
    from ifedicl.backbone.source import files_of
    from ifedicl.backbone.turn import Turn

    tokenizer = read_tokenizer(files_of(adapter.model)[0], adapter.model.source)
    return Turn(tokenizer, adapter.task, adapter.model_name).prompt(TEXT_FIELD)


def _escaped(part: str) -> str:
    """A part of a prompt as the harness's templates (Jinja) write it: a brace begins no expression."""
    return part.replace("{", "{{ '{' }}")
