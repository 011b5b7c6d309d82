"""``ifedicl serve`` and ``ifedicl key``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ifedicl.errors import ConfigError, Fault, ServeError

if TYPE_CHECKING:
    from ifedicl.serve.catalog import Catalog, Source
    from ifedicl.settings import ModelSettings
    from ifedicl.store.protocol import Store


def serve(
    adapters: Annotated[
        list[str] | None, typer.Argument(metavar="[[NAME=]FOLDER]...", help="Adapter folders; RUN/adapter is called RUN.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Also the newest version of each task of a task cache, as new ones land.")
    ] = None,
    federation: Annotated[str | None, typer.Option(help="With --store: tasks of this federation only.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the model lies here, if not where the adapter says.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="API keys, as `ifedicl key` makes them; asked for under /v1/.")] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Let everybody ask who reaches an address other than this machine's own.")
    ] = False,
    runs: Annotated[Path | None, typer.Option(help="A folder of runs; the page shows them while they go on.")] = None,
    most_waiting: Annotated[
        int, typer.Option(min=2, help="Texts that may wait, one with zero-shot counting twice; more are answered 429.")
    ] = 512,
    most_texts: Annotated[int, typer.Option(min=1, help="Texts in one request.")] = 256,
    most_bytes: Annotated[int, typer.Option(min=1024, help="Of one request; larger ones are answered 413.")] = 1 << 20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is given up, 503.")] = 30.0,
    arrival: Annotated[float, typer.Option(min=0.1, help="Seconds for a request to arrive, 408.")] = 10.0,
    refresh: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks for new versions.")] = 5.0,
) -> None:
    """Serve adapters over one model: a page at /, POST /v1/classify, and the API's description at /docs.

    Needs: pip install 'ifedicl[serve]'. Stops at Ctrl-C or SIGTERM, after the requests under way. Texts are never logged.
    """
    try:
        from ifedicl.serve.api_keys import Keys
        from ifedicl.serve.catalog import Folder, StoreSource
        from ifedicl.serve.limits import Limits
        from ifedicl.serve.server import bound
        from ifedicl.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        raise ServeError(
            f"serving needs the package {error.name}, which is not installed: pip install 'ifedicl[serve]'"
        ) from error
    from ifedicl.backbone.load import load_backbone
    from ifedicl.progress import LOADING, waiting

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    _check_open(host, keys, allowed=without_keys)
    _check_room(most_texts, most_waiting)
    known = None if keys is None else Keys(keys)
    limits = Limits(
        texts=most_texts,
        body_bytes=most_bytes,
        waiting=most_waiting,
        seconds=timeout,
        arrival_seconds=arrival,
        refresh_seconds=refresh,
    )
    with ExitStack() as stack:
        opened = None if store is None else stack.enter_context(closing(_opened(store)))
        settings, shown = _model(adapters or (), opened, federation, model)
        listener = bound(host, port)
        stack.enter_context(listener.socket)
        with waiting(LOADING):
            backbone = load_backbone(settings)
        sources: list[Source] = [Folder.of(folder) for folder in adapters or ()]
        if opened is not None:
            sources.append(StoreSource(opened, backbone.fingerprint, federation))
        run_server(
            backbone,
            sources,
            name=shown,
            listener=listener,
            limits=limits,
            keys=known,
            runs=runs,
            on_start=_started,
        )


def key(
    file: Annotated[
        Path, typer.Argument(help="The file of hashes that `ifedicl serve --keys` reads; made if it is not there.")
    ],
    name: Annotated[str, typer.Argument(help="Of whoever will use the key.")],
) -> None:
    """Make an API key for `ifedicl serve`: it is printed once, and only its hash is kept.

    To withdraw a key, remove its line; a running server notices.
    """
    from ifedicl.serve.api_keys import new_key

    made = new_key(file, name)
    print(made)
    print(f"kept as a hash in {file}; send it as: Authorization: Bearer KEY. It is not shown again", file=sys.stderr)


def _started(url: str, catalog: Catalog) -> None:
    names = ", ".join(f"{served.name} (version {served.loaded.version})" for served in catalog) or "no adapter yet"
    print(f"serving {names} at {url}", file=sys.stderr, flush=True)


def _check_open(host: str, keys: Path | None, *, allowed: bool) -> None:
    """Refuse to answer strangers by oversight."""
    from ifedicl.serve.hosts import is_loopback

    if is_loopback(host) or keys is not None or allowed:
        return
    remedy = "Make a key (ifedicl key keys.txt NAME) and give --keys keys.txt, or let everybody in with --without-keys."
    raise ConfigError("serve", [Fault("host", host, "127.0.0.1, ::1 or localhost where there are no keys", remedy)])


def _check_room(texts: int, waiting: int) -> None:
    """A request of as many texts as are allowed must fit in."""
    if texts > waiting:
        remedy = f"Give --most-waiting {texts} or more, or a smaller --most-texts."
        raise ConfigError("serve", [Fault("most-waiting", str(waiting), f"at least --most-texts, {texts}", remedy)])


def _opened(store: str) -> Store:
    from ifedicl.store import open_store

    return open_store(store)


def _model(
    folders: Sequence[str], store: Store | None, federation: str | None, source: str | None
) -> tuple[ModelSettings, str]:
    """Which model: that of the first adapter, or of the newest version in the store; and its name for people."""
    from ifedicl.adapter import Adapter
    from ifedicl.settings import ModelSettings

    if folders:
        adapter = Adapter.load(Path(folders[0].rpartition("=")[2]).expanduser())
    elif store is not None and (entries := store.entries(federation=federation)):
        adapter = store.get(max(entry.id for entry in entries)).adapter
    elif store is not None and source is not None:
        settings = ModelSettings(source=source)
        return settings, Path(source).name
    else:
        remedy = (
            "Give the folder that `ifedicl run` or `ifedicl demo` wrote, or --store with --model for a store that is empty."
        )
        raise ConfigError("serve", [Fault("adapters", "none", "adapter folders, a task cache, or both", remedy)])
    return adapter.with_model_source(source).model, adapter.model_name
