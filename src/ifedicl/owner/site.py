"""Opens a client on its owner's machine: data, model, policy and ledger from one ``client.toml``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ifedicl.backbone.load import load_backbone
from ifedicl.data import read_labelled
from ifedicl.federation.client import Client
from ifedicl.federation.public_text import PublicText
from ifedicl.federation.secure import named_missing_packages
from ifedicl.kinds import KINDS
from ifedicl.owner.endpoint import ClientEndpoint, LedgerRecord, Privacy, build_endpoint, public_texts
from ifedicl.owner.own_files import approved_jobs, open_ledger, secret_of, split_key_of
from ifedicl.owner.policy import load_client_settings
from ifedicl.owner.recorder import no_bytes
from ifedicl.settings import PrivacySettings

_log = logging.getLogger(__name__)


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
    ledger = open_ledger(settings.ledger, name)
    examples = read_labelled(data.file, kind=KINDS[data.kind], text=data.text_column, label=data.label_column)
    client = Client(
        name,
        examples,
        load_backbone(settings.model),
        secret=secret_of(settings.ledger),
        split_key=split_key_of(settings.ledger),
        seconds=settings.work.seconds,
    )
    public = public_texts(data.public, data.text_column)
    if own := len({example.text for example in examples} & set(public)):
        _log.warning(
            "data.public: %d of its texts are among your examples. They are not hidden by noise: name other texts", own
        )
    privacy = None if settings.sum_rules is None else Privacy(settings.sum_rules, PublicText(public) if public else None)
    peers = {} if settings.sums is None else {peer: bytes.fromhex(key) for peer, key in settings.sums.peers.items()}
    approved = partial(approved_jobs, settings.ledger)
    return build_endpoint(client, settings.policy, LedgerRecord(ledger, overhead), privacy, peers, approved=approved)


def identity(path: Path) -> str:
    """The public identity of a client in secure sums, in hex; its peers write it into their ``client.toml``.

    Raises:
        IfediclError: the settings are wrong, the secret cannot be read or created, or a package is missing.
    """
    settings = load_client_settings(path)
    with named_missing_packages(settings.sum_rules or PrivacySettings(mode="secure")):
        from ifedicl.federation.secure.sum_client import identity_from
    return identity_from(secret_of(settings.ledger)).public.hex()
