"""Facts about files and rules for people: tables and sentences from what ``--json`` prints for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ifedicl.progress import duration

Facts = Mapping[str, Any]


def print_inspected(facts: Facts) -> None:
    """What ``ifedicl inspect`` found, of any kind of file."""
    console = Console(markup=False, highlight=False, emoji=False)
    {"adapter": _adapter, "config": _config, "data": _data}[facts["kind"]](facts, console)


def print_policy(facts: Facts) -> None:
    """What ``ifedicl policy check`` found."""
    console = Console(markup=False, highlight=False, emoji=False)
    data, model = facts["data"], facts["model"]
    console.print(f"data: {data['file']}, {data['examples']} examples ({_counts(data['labels'])})", soft_wrap=True)
    console.print(f"model: {model['source']}, fingerprint {model['fingerprint'][:16]}", soft_wrap=True)
    for run, spent in facts["left_so_far"]["jobs"].items():
        console.print(f"has left for job {run[:8]}: {spent['rounds']} rounds, {spent['bytes']:,} bytes")
    if "task" not in facts:
        policy = facts["policy"]
        for section in ("allow", "least", "most", "work"):
            console.print(f"[{section}] " + ", ".join(f"{name} = {_toml(value)}" for name, value in policy[section].items()))
        console.print("to see what a job would get from you: --config JOB.manifest.json")
        return
    task, job = facts["task"], facts["job"]
    console.print(f"job {job['digest']}, {'approved' if job['approved'] else 'not approved'}", soft_wrap=True)
    if task["rows_with_other_labels"]:
        console.print(f"{task['rows_with_other_labels']} examples have labels that are not in the task; they are not used")
    if facts["breaks"]:
        console.print("refused, all of it:")
        for reason in facts["breaks"]:
            console.print(f"  - {reason}", soft_wrap=True)
        return
    table = _table("what leaves", "when", "times", "bytes each", "bytes", "your rules", right=(2, 3, 4))
    allowed = 0
    for step in facts["would_leave"].values():
        total = step["times"] * step["bytes"] if step["leaves"] else 0
        allowed += total
        verdict = "allowed" if step["leaves"] else "REFUSED"
        table.add_row(step["what"], step["when"], str(step["times"]), f"{step['bytes']:,}", f"{total:,}", verdict)
    table.add_row("in all", "", "", "", f"{allowed:,}", "", style="bold")
    console.print(table)
    for step in facts["would_leave"].values():
        if not step["leaves"]:
            console.print(f"refused, {step['what']}: {step['why']}", soft_wrap=True)


def is_refused(facts: Facts) -> bool:
    """Whether the policy refuses the job or a step of it."""
    return not all(step["leaves"] for step in facts.get("would_leave", {}).values())


def _adapter(facts: Facts, console: Console) -> None:
    task = facts["task"]
    table = _table("adapter", "")
    for name, value in (
        ("task", f"{task['name']}: {facts['does']}"),
        ("prompt", f"{task['template']!r} ({task['turn']}), then {facts['asks']}"),
        ("model", f"{facts['model']}, fingerprint {facts['fingerprint'][:16]}"),
        ("layers", f"{facts['layers']} from layer {facts['first_layer']} on, width {facts['width']}"),
        ("subspace", f"rank {facts['rank']}" if facts["rank"] else "none"),
        ("coefficients", f"{facts['calibrated_coefficients']:,}"),
        ("size", f"{facts['bytes']:,} bytes"),
        *((name.replace("_", " "), _short(value)) for name, value in facts["provenance"].items() if name != "method"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print("all settings of the run: --json")


def _config(facts: Facts, console: Console) -> None:
    console.print(f"model: {facts['model']} in {facts['dtype']}, fingerprint {facts['fingerprint'][:16]}", soft_wrap=True)
    clients = _table("client", "train", "selection", "gate", "labels", right=(1, 2, 3))
    for name, roles in facts["clients"].items():
        counts = [str(roles[role]) for role in ("train", "selection", "gate")]
        clients.add_row(name, *counts, _counts(facts["labels"][name]))
    console.print(clients)
    console.print("the prompt, as the model sees it, and then " + facts["asks"] + ":")
    for line in facts["prompt"].splitlines():
        console.print(f"  | {line}", soft_wrap=True)
    steps = _table("what a client sends", "when", "times", "bytes up", "bytes down", right=(2, 3, 4))
    for step in facts["steps"]:
        up, down = (f"{step['times'] * step[way]:,}" for way in ("bytes_up", "bytes_down"))
        steps.add_row(step["what"], step["when"], str(step["times"]), up, down)
    total = facts["bytes_in_all"]
    steps.add_row("in all, for each client", "", "", f"{total['up']:,}", f"{total['down']:,}", style="bold")
    console.print(steps)
    memory = {name: f"{facts['memory'][name] / 2**30:.1f} GiB" for name in ("weights", "peak", "gpu")}
    console.print(
        f"memory of a calibration: {memory['peak']} at its peak, of which the weights take {memory['weights']}; on a GPU "
        f"{memory['gpu']} with what its driver takes. model.max_pass_tokens bounds a pass"
    )
    seconds = facts["seconds"]
    console.print(
        f"time on this machine: about {duration(seconds['simulation'])} for all clients in one process (`ifedicl run`), "
        f"{duration(seconds['one_client'])} for the largest client alone. Timed on {seconds['texts_timed']} of the texts: "
        "within a factor of two, if the machine does nothing else. Loading the model and networks come on top"
    )
    console.print(f"mode {facts['mode']}. Sentences on each line, for scripts and reviews: --json")
    console.print(f"each owner: {facts['for_each_owner']['policy']}")


def _data(facts: Facts, console: Console) -> None:
    table = _table("data", "")
    table.add_row("rows", str(facts["rows"]))
    table.add_row("columns", ", ".join(facts["columns"]))
    if "labels" in facts:
        table.add_row("labels", _counts(facts["labels"]))
    if "words" in facts:
        table.add_row("words in a text", f"median {facts['words']['median']}, at most {facts['words']['most']}")
        table.add_row("repeated texts", str(facts["repeated_texts"]))
    console.print(table)
    if "note" in facts:
        console.print(f"note: {facts['note']}")


def _table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", overflow="fold")
    return table


def _counts(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{label} {count}" for label, count in labels.items())


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: object) -> str:
    """A fact of the provenance, which may be nested, in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_short(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)
