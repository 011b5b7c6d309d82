"""``ifedicl tasks``: the task cache."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.cli.options import Json
from ifedicl.errors import AdapterError

if TYPE_CHECKING:
    from ifedicl.store.protocol import Store
    from ifedicl.store.records import Entry

Url = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="IFEDICL_STORE",
        show_envvar=True,
        help="A file, or postgresql://USER@HOST/DATABASE. Default: a file in your data folder.",
    ),
]
Version = Annotated[int, typer.Argument(metavar="ID", help="Id of a version; `ifedicl tasks list` shows them.")]

_SIGNATURE = "signature.json"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The task cache: adapters of calibrated tasks, for reuse by equal or similar tasks.\n\n"
    "`ifedicl run --store` uses its adapters and stores new ones. Needs: pip install 'ifedicl[store]'.",
)


@app.command("list", short_help="List every version of every task.")
def list_tasks(
    federation: Annotated[str | None, typer.Option(help="Show this federation only.")] = None,
    store: Url = None,
    as_json: Json = False,
) -> None:
    """List every version of every task."""
    with _opened(store) as opened:
        entries = opened.entries(federation=federation)
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], ensure_ascii=False))
        return
    for entry in entries:
        print(_line(entry))


@app.command(short_help="Show one version.")
def show(version: Version, store: Url = None, as_json: Json = False) -> None:
    """Show one version: metrics, prompt and provenance."""
    with _opened(store) as opened:
        stored = opened.get(version)
    facts = _facts(stored.entry) | {
        "prompt": stored.adapter.task.model_dump(mode="json"),
        "coefficients": stored.adapter.coefficients.count,
        "has_signature": stored.signature is not None,
        "provenance": dict(stored.adapter.provenance),
    }
    print(json.dumps(facts, indent=None if as_json else 2, ensure_ascii=False))


@app.command(short_help="Show the nearest versions.")
def search(
    version: Version,
    count: Annotated[int, typer.Option(min=1, help="Maximum number of versions.")] = 5,
    store: Url = None,
    as_json: Json = False,
) -> None:
    """Show the nearest versions of the same federation and model, with the cosine of their signatures."""
    from ifedicl.store.records import TaskKey

    with _opened(store) as opened:
        stored = opened.get(version)
        if stored.signature is None:
            raise AdapterError(f"id: version {version} has no signature to compare. Calibrate its task again")
        key = TaskKey.of_adapter(stored.entry.federation, stored.adapter)
        found = [item for item in opened.nearest(key, stored.signature, count + 1) if item.entry.id != version][:count]
    if as_json:
        print(json.dumps([_facts(item.entry) | {"cosine": item.cosine} for item in found], ensure_ascii=False))
        return
    for item in found:
        print(f"{item.cosine:.3f}\t{_line(item.entry)}")


@app.command("export", short_help="Write a version as an adapter folder.")
def export_task(
    version: Version,
    folder: Annotated[Path, typer.Argument(help="The adapter folder to write.")],
    store: Url = None,
) -> None:
    """Write one version as an adapter folder, for `ifedicl classify` and `ifedicl tasks import`."""
    from ifedicl import files

    with _opened(store) as opened:
        stored = opened.get(version)
    stored.adapter.save(folder)
    if stored.signature is not None:
        files.write_json(folder / _SIGNATURE, stored.signature.tolist())
    print(f"wrote {folder}")


@app.command("import", short_help="Store an adapter folder.")
def import_task(
    folder: Annotated[Path, typer.Argument(help="An adapter folder that `run` or `tasks export` wrote.")],
    federation: Annotated[str, typer.Option(help="The federation that can use it.")] = "default",
    store: Url = None,
) -> None:
    """Store an adapter folder as a new version. This is the only way to share one between federations."""
    from ifedicl.adapter import Adapter
    from ifedicl.adapter.format import adapter_folder
    from ifedicl.store.records import TaskKey

    adapter = Adapter.load(folder)
    key, signature = TaskKey.of_adapter(federation, adapter), _signature(adapter_folder(folder) / _SIGNATURE)
    with _opened(store, make=True) as opened:
        entry = opened.put(key, adapter, signature, {"found": "import"})
    print(f"stored as id {entry.id}: {entry.task}, version {entry.version}, federation {entry.federation}")


@app.command("rm", short_help="Delete versions.")
def remove(versions: Annotated[list[int], typer.Argument(metavar="ID...", help="Ids of versions.")], store: Url = None) -> None:
    """Delete versions permanently; a task without versions is deleted too."""
    with _opened(store) as opened:
        for version in versions:
            opened.remove(version)
    print(f"removed {len(versions)}")


@app.command(short_help="Delete old versions of every task.")
def gc(
    keep: Annotated[int, typer.Option(min=1, help="Number of newest versions of each task to keep.")] = 3, store: Url = None
) -> None:
    """Delete old versions of every task and free their space."""
    with _opened(store) as opened:
        print(f"removed {opened.collect(keep)}")


def _opened(url: str | None, *, make: bool = False) -> closing[Store]:
    """A store for a ``with`` block. Only commands that write make one, so that a wrong path is an error."""
    from ifedicl.store import open_store

    return closing(open_store(url, make=make))


def _signature(path: Path) -> Any:
    import numpy as np

    from ifedicl.store.signature import SIZE

    if not path.exists():
        return None
    try:
        signature = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: not a list of numbers ({error}). Export the task again") from error
    norm = float(np.linalg.norm(signature)) if signature.shape == (SIZE,) else float("nan")
    if not abs(norm - 1) < 1e-3:
        raise AdapterError(
            f"{path}: received shape {signature.shape}, norm {norm:.3f}; allowed: {SIZE} numbers of norm 1. Export again"
        )
    return signature


def _line(entry: Entry) -> str:
    loss = entry.metrics.get("held_out_loss")
    when = datetime.fromtimestamp(entry.created, UTC).strftime("%Y-%m-%d %H:%M")
    columns = [entry.id, entry.task, f"version {entry.version}", entry.federation, f"model {entry.fingerprint[:8]}"]
    columns += [f"{entry.size / 1e3:.0f} KB", when] + ([] if loss is None else [f"loss {loss:.3f}"])
    return "\t".join(map(str, columns))


def _facts(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "metrics": dict(entry.metrics)}
