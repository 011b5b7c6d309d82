"""``ifedicl serve`` and ``ifedicl key``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ifedicl.cli.adapters import folder_argument
from ifedicl.cli.options import ModelSource, Telemetry
from ifedicl.errors import ConfigError, Fault, ServeError

if TYPE_CHECKING:
    from ifedicl.serve.catalog import Catalog, Source
    from ifedicl.serve.traces import Traces
    from ifedicl.settings import ModelSettings
    from ifedicl.store.protocol import Store

_PACKAGES = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]FOLDER]...", help="Adapter folders, or hub:OWNER/NAME[@REVISION]; RUN/adapter is called RUN."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="A task cache: also serve the newest version of each task, and new versions later.")
    ] = None,
    federation: Annotated[str | None, typer.Option(help="With --store: tasks of this federation only.")] = None,
    model: ModelSource = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="File of API keys, made by `ifedicl key`; /v1/ requires one.")] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Allow requests from other machines without a key.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which others reach the server, such as that of a service or a proxy; repeat it."),
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="A folder of runs, whose progress the page shows.")] = None,
    most_waiting: Annotated[
        int,
        typer.Option(
            min=2, help="Maximum number of waiting texts (of choices: options), with zero-shot counted twice; beyond it: 429."
        ),
    ] = 512,
    most_texts: Annotated[int, typer.Option(min=1, help="Maximum number of texts in a request (of choices: options).")] = 256,
    most_bytes: Annotated[int, typer.Option(min=1024, help="Maximum bytes of a request; beyond it: 413.")] = 1 << 20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Maximum seconds to answer a request; beyond it: 503.")] = 30.0,
    arrival: Annotated[float, typer.Option(min=0.1, help="Maximum seconds to receive a request; beyond it: 408.")] = 10.0,
    per_address: Annotated[
        int, typer.Option(min=1, help="Maximum connections of one address. A proxy is one address: give it 2048.")
    ] = 512,
    telemetry: Telemetry = False,
    refresh: Annotated[float, typer.Option(min=0.1, help="Seconds between checks for new versions.")] = 5.0,
) -> None:
    """Serve adapters over one model: a page at /, a path for each kind, as POST /v1/classify, and their description at /docs.

    Needs: pip install 'ifedicl[serve]'. Ctrl-C or SIGTERM stops it after the current requests. Texts are never logged.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ServeError(f"packages: {', '.join(missing)} is not installed. Install it: pip install 'ifedicl[serve]'")
    from ifedicl.serve.hosts import check_names
    from ifedicl.tracking.choice import Trackers

    _check_open(host, keys, allowed=without_keys)
    check_names(allowed_host or ())
    Trackers(telemetry=telemetry).check()
    if most_texts > most_waiting:
        remedy = f"Give --most-waiting {most_texts} or more, or a smaller --most-texts."
        fault = Fault("most-waiting", str(most_waiting), f"at least --most-texts, {most_texts}", remedy)
        raise ConfigError("serve", [fault])
    adapters = [folder_argument(named) for named in adapters or ()]
    _check_adapters(adapters, model)

    # From here on torch, transformers and the web framework are imported.
    from ifedicl.backbone.load import load_backbone
    from ifedicl.progress import LOADING, waiting
    from ifedicl.serve.api_keys import Keys
    from ifedicl.serve.catalog import Folder, StoreSource
    from ifedicl.serve.limits import Limits
    from ifedicl.serve.server import bound
    from ifedicl.serve.server import serve as run_server
    from ifedicl.store import open_store

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    known = None if keys is None else Keys(keys)
    limits = Limits(
        texts=most_texts,
        body_bytes=most_bytes,
        waiting=most_waiting,
        seconds=timeout,
        arrival_seconds=arrival,
        refresh_seconds=refresh,
        per_address=per_address,
    )
    with ExitStack() as stack:
        opened = None if store is None else stack.enter_context(closing(open_store(store)))
        settings, shown = _model(adapters, opened, federation, model)
        listener = bound(host, port)
        stack.enter_context(listener.socket)
        with waiting(LOADING):
            backbone = load_backbone(settings)
        sources: list[Source] = [Folder.of(folder) for folder in adapters]
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
            allowed_hosts=allowed_host or (),
            traces=stack.enter_context(_traces()) if telemetry else None,
            on_start=_print_start,
        )


def key(
    file: Annotated[
        Path, typer.Argument(help="The file of hashes for `ifedicl serve --keys`; it is made if it does not exist.")
    ],
    name: Annotated[str, typer.Argument(help="Name of the key's user.")],
) -> None:
    """Make an API key for `ifedicl serve`: it is printed once, and only its hash is stored.

    To revoke a key, delete its line; a running server notices.
    """
    from ifedicl.serve.api_keys import new_key

    print(new_key(file, name))
    print(f"its hash is in {file}; send the key as: Authorization: Bearer KEY. It is not shown again", file=sys.stderr)


@contextmanager
def _traces() -> Iterator[Traces]:
    """What a server tells OpenTelemetry, until the block ends."""
    from ifedicl.serve.traces import Traces
    from ifedicl.tracking.telemetry import otlp

    with otlp("ifedicl-serve") as sent:
        yield Traces(sent)


def _print_start(url: str, catalog: Catalog) -> None:
    names = ", ".join(f"{served.name} (version {served.loaded.version})" for served in catalog) or "no adapter yet"
    print(f"serving {names} at {url}", file=sys.stderr, flush=True)


def _check_adapters(folders: Sequence[str], source: str | None) -> None:
    """Read each adapter and look for the model, before torch and the web framework are imported."""
    from ifedicl.adapter import Adapter
    from ifedicl.backbone.source import check_source

    for folder in folders:
        check_source(Adapter.load(_path_of(folder)).with_model_source(source).model)


def _path_of(named: str) -> Path:
    """The folder of ``[NAME=]FOLDER``."""
    return Path(named.rpartition("=")[2]).expanduser()


def _check_open(host: str, keys: Path | None, *, allowed: bool) -> None:
    """Refuse an address that other machines reach, unless there are keys or requests without a key are ``allowed``."""
    from ifedicl.serve.hosts import is_loopback

    if is_loopback(host) or keys is not None or allowed:
        return
    remedy = "Make a key (ifedicl key keys.txt NAME) and give --keys keys.txt, or allow all requests with --without-keys."
    raise ConfigError("serve", [Fault("host", host, "127.0.0.1, ::1 or localhost without keys", remedy)])


def _model(
    folders: Sequence[str], store: Store | None, federation: str | None, source: str | None
) -> tuple[ModelSettings, str]:
    """The model of the first adapter, or of the newest version in the store; and the name to show."""
    from ifedicl.adapter import Adapter
    from ifedicl.settings import ModelSettings

    if folders:
        adapter = Adapter.load(_path_of(folders[0]))
    elif store is not None and (entries := store.entries(federation=federation)):
        adapter = store.get(max(entry.id for entry in entries)).adapter
    elif store is not None and source is not None:
        return ModelSettings(source=source), Path(source).name
    else:
        remedy = "Give a folder that `ifedicl run` or `ifedicl demo` wrote, or --store; with an empty store also --model."
        raise ConfigError("serve", [Fault("adapters", "none", "adapter folders, a task cache, or both", remedy)])
    return adapter.with_model_source(source).model, adapter.model_name
