"""A client on its owner's own machine: data, model, policy and ledger out of one ``client.toml``."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from ifedicl import files
from ifedicl.backbone.load import load_backbone
from ifedicl.data import read_labelled
from ifedicl.federation.client import Client
from ifedicl.privacy.guard import GuardedClient
from ifedicl.privacy.ledger import Ledger
from ifedicl.privacy.policy import load_client_settings


def open_site(path: Path, name: str, *, overhead: Callable[[int], int] = lambda _frame: 0) -> GuardedClient:
    """Load the model once, read the data, and stand guard.

    Args:
        path: the ``client.toml``.
        name: how the federation knows this client.
        overhead: how many bytes the engine adds to a frame of so many.

    Raises:
        IfediclError: settings, data, model or ledger cannot be used; the message is for the owner and stays on its machine.
    """
    settings = load_client_settings(path)
    ledger = Ledger(Path(settings.ledger.file), name)
    data = settings.data
    examples = read_labelled(data.file, text=data.text_column, label=data.label_column)
    client = Client(name, examples, load_backbone(settings.model), secret=_secret(Path(settings.ledger.secret)))
    return GuardedClient(client, settings.policy, ledger, overhead=overhead)


def _secret(path: Path) -> bytes:
    """The owner's key, made at the first start. It must stay the same, or earlier cursors say nothing any more."""
    if not path.exists():
        files.write_bytes(path, secrets.token_bytes(32), private=True)
    return path.read_bytes()
