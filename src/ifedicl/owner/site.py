"""Opens a client on its owner's machine: data, model, policy and ledger from one ``client.toml``."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from ifedicl import files
from ifedicl.backbone.load import load_backbone
from ifedicl.data import read_labelled
from ifedicl.errors import ConfigError, Fault
from ifedicl.federation.client import Client
from ifedicl.federation.secure import named_missing_packages
from ifedicl.ledger.usage import CountedLedger
from ifedicl.owner.endpoint import ClientEndpoint, LedgerRecord, Privacy, build_endpoint
from ifedicl.owner.policy import load_client_settings
from ifedicl.owner.recorder import no_bytes
from ifedicl.settings import PrivacySettings

_SECRET_BYTES = 32


def open_site(path: Path, name: str, *, overhead: Callable[[int], int] = no_bytes) -> ClientEndpoint:
    """Load the model, read the data, and build the client's endpoint; with [sums], only masked numbers leave.

    Args:
        path: the ``client.toml``.
        name: of the client in the federation.
        overhead: from the size of a message, the bytes that the engine adds to it.

    Raises:
        IfediclError: settings, data, model or ledger cannot be used; the message stays on the owner's machine.
    """
    settings = load_client_settings(path)
    data = settings.data
    ledger = CountedLedger(Path(settings.ledger.file), name)
    examples = read_labelled(data.file, text=data.text_column, label=data.label_column)
    client = Client(name, examples, load_backbone(settings.model), secret=_secret(Path(settings.ledger.secret)))
    privacy = None if settings.sum_rules is None else Privacy(settings.sum_rules)
    peers = {} if settings.sums is None else {peer: bytes.fromhex(key) for peer, key in settings.sums.peers.items()}
    return build_endpoint(client, settings.policy, LedgerRecord(ledger, overhead), privacy, peers)


def identity(path: Path) -> str:
    """The public identity of a client in secure sums, in hex; its peers write it into their ``client.toml``.

    Raises:
        IfediclError: the settings are wrong, the secret cannot be read or created, or a package is missing.
    """
    settings = load_client_settings(path)
    with named_missing_packages(settings.sum_rules or PrivacySettings(mode="secure")):
        from ifedicl.federation.secure.sum_client import identity_from
    return identity_from(_secret(Path(settings.ledger.secret))).public.hex()


def _secret(path: Path) -> bytes:
    """The owner's key, created at the first start. With another key, earlier cursors are void."""
    if not path.exists():
        files.write_bytes(path, secrets.token_bytes(_SECRET_BYTES), private=True)
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        remedy = "Restore it from a copy, or remove it: peers must then pin the new one, and all text counts as not sent."
        raise ConfigError(str(path), [Fault("ledger.secret", f"{len(secret)} bytes", f"{_SECRET_BYTES} bytes", remedy)])
    return secret
