"""``ifedicl tasks``: what the task cache holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        help="A file, or postgresql://USER@HOST/DATABASE. Default: a file of yours.",
    ),
]
Version = Annotated[int, typer.Argument(metavar="ID", help="Of a version, as `ifedicl tasks list` shows it.")]

_SIGNATURE = "signature.json"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The task cache: adapters of calibrated tasks, found again by what was asked.\n\n"
    "`ifedicl run --store` looks there first and stores what it calibrates. Needs: pip install 'ifedicl[store]'.",
)


@app.command("list")
def list_tasks(
    federation: Annotated[str | None, typer.Option(help="Of this federation only.")] = None,
    store: Url = None,
    as_json: Json = False,
) -> None:
    """Show every version of every task."""
    with _opened(store) as opened:
        _print(opened.entries(federation=federation), as_json=as_json)


@app.command()
def show(version: Version, store: Url = None, as_json: Json = False) -> None:
    """Show one version: figures, prompt and how it came to be."""
    with _opened(store) as opened:
        stored = opened.get(version)
    facts = _facts(stored.entry) | {
        "prompt": stored.adapter.task.model_dump(mode="json"),
        "coefficients": stored.adapter.coefficients.count,
        "has_signature": stored.signature is not None,
        "provenance": dict(stored.adapter.provenance),
    }
    print(json.dumps(facts, indent=None if as_json else 2, ensure_ascii=False))


@app.command()
def search(
    version: Version,
    count: Annotated[int, typer.Option(min=1, help="So many at most.")] = 5,
    store: Url = None,
    as_json: Json = False,
) -> None:
    """Show the versions nearest to one, with the cosine of their signatures: same federation and model only."""
    from ifedicl.store.records import TaskKey

    with _opened(store) as opened:
        stored = opened.get(version)
        if stored.signature is None:
            raise AdapterError(
                f"version {version} was stored without a signature, so nothing can be near it; calibrate it again"
            )
        key = TaskKey.of_adapter(stored.entry.federation, stored.adapter)
        found = [item for item in opened.nearest(key, stored.signature, count + 1) if item.entry.id != version][:count]
    if as_json:
        print(json.dumps([_facts(item.entry) | {"cosine": item.cosine} for item in found], ensure_ascii=False))
        return
    for item in found:
        print(f"{item.cosine:.3f}\t{_line(item.entry)}")


@app.command("export")
def export_task(
    version: Version,
    folder: Annotated[Path, typer.Argument(help="The adapter folder to write.")],
    store: Url = None,
) -> None:
    """Write one version as an adapter folder, which `ifedicl classify` and `ifedicl tasks import` read."""
    from ifedicl import files

    with _opened(store) as opened:
        stored = opened.get(version)
    stored.adapter.save(folder)
    if stored.signature is not None:
        files.write_json(folder / _SIGNATURE, stored.signature.tolist())
    print(f"wrote {folder}")


@app.command("import")
def import_task(
    folder: Annotated[Path, typer.Argument(help="An adapter folder, as `run` or `tasks export` wrote it.")],
    federation: Annotated[str, typer.Option(help="The federation that may find it.")] = "default",
    store: Url = None,
) -> None:
    """Store an adapter folder as a new version: the one way from one federation to another."""
    from ifedicl.adapter import Adapter
    from ifedicl.store.records import TaskKey

    adapter = Adapter.load(folder)
    with _opened(store, make=True) as opened:
        entry = opened.put(
            TaskKey.of_adapter(federation, adapter), adapter, _signature(folder / _SIGNATURE), {"found": "import"}
        )
    print(f"stored as id {entry.id}: {entry.task}, version {entry.version}, federation {entry.federation}")


@app.command("rm")
def remove(versions: Annotated[list[int], typer.Argument(metavar="ID...", help="Of versions.")], store: Url = None) -> None:
    """Delete versions for good; a task goes with its last one."""
    with _opened(store) as opened:
        for version in versions:
            opened.remove(version)
    print(f"removed {len(versions)}")


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="Versions of each task that stay, the newest.")] = 3, store: Url = None
) -> None:
    """Delete old versions of every task, and give their space back."""
    with _opened(store) as opened:
        print(f"removed {opened.collect(keep)}")


@contextmanager
def _opened(url: str | None, *, make: bool = False) -> Iterator[Store]:
    """Whoever only looks makes no empty store where a path is wrong."""
    from ifedicl.store import open_store

    store = open_store(url, make=make)
    try:
        yield store
    finally:
        store.close()


def _signature(path: Path) -> Any:
    import numpy as np

    from ifedicl.store.signature import SIZE

    if not path.exists():
        return None
    try:
        signature = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: not a list of numbers ({error}); export the task again") from error
    norm = float(np.linalg.norm(signature)) if signature.shape == (SIZE,) else float("nan")
    if not abs(norm - 1) < 1e-3:
        raise AdapterError(
            f"{path}: shape {signature.shape}, norm {norm:.3f}; it must be {SIZE} numbers of norm 1. Export again"
        )
    return signature


def _print(entries: Sequence[Entry], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], ensure_ascii=False))
        return
    for entry in entries:
        print(_line(entry))


def _line(entry: Entry) -> str:
    loss = entry.metrics.get("held_out_loss")
    when = datetime.fromtimestamp(entry.created, UTC).strftime("%Y-%m-%d %H:%M")
    figures = "" if loss is None else f"\tloss {loss:.3f}"
    return (
        f"{entry.id}\t{entry.task}\tversion {entry.version}\t{entry.federation}\tmodel {entry.fingerprint[:8]}\t"
        f"{entry.size / 1e3:.0f} KB\t{when}{figures}"
    )


def _facts(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "metrics": dict(entry.metrics)}
