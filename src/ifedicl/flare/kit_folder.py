"""What a start-up kit's folder says, told without FLARE, which takes a second to import."""

from __future__ import annotations

import json
from pathlib import Path

from ifedicl.errors import FederationError

SIGNATURES = "signature.json"
"""The signatures of the files in ``startup``."""


def check_is_kit(kit: Path) -> None:
    """Check that a folder looks like a kit; :func:`ifedicl.flare.kits.check_kit` also checks that it was not changed.

    Raises:
        FederationError: it is none.
    """
    if not (kit / "startup" / SIGNATURES).is_file():
        raise FederationError(f"{kit} is not a start-up kit: startup/{SIGNATURES} is missing. Name the folder of a kit")


def ports_of(kit: Path) -> tuple[int, ...]:
    """The ports at which the server of a kit listens: for sites and for consoles."""
    facts = json.loads((kit / "startup" / "fed_server.json").read_text(encoding="utf-8"))["servers"][0]
    return int(facts["service"]["target"].rpartition(":")[2]), int(facts["admin_port"])


def party_of(kit: Path) -> tuple[str, str]:
    """("server", host), ("site", name) or ("console", address) of a kit.

    Raises:
        FederationError: it is not a kit.
    """
    startup = kit / "startup"
    if (startup / "fed_server.json").is_file():
        facts = json.loads((startup / "fed_server.json").read_text(encoding="utf-8"))
        return "server", str(facts["servers"][0]["admin_server"])
    if (startup / "fed_client.json").is_file():
        return "site", str(json.loads((startup / "fed_client.json").read_text(encoding="utf-8"))["client"]["fqsn"])
    if (startup / "fed_admin.json").is_file():
        return "console", str(json.loads((startup / "fed_admin.json").read_text(encoding="utf-8"))["admin"]["username"])
    raise FederationError(f"{kit} is not a start-up kit. Name a folder that `ifedicl flare provision` made")


def is_console(kit: Path) -> bool:
    """Whether the kit is the coordinator's."""
    return (kit / "startup" / "fed_admin.json").is_file()
