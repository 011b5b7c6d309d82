"""Which Host headers a server answers that has no keys, or is told its names.

Any web site can let its own name resolve to this machine's address (DNS rebinding). The browser then takes this server for
that site and lets the site's page read every answer. The Host header still holds the site's name, so only our own names are
answered. The two health paths tell no more than that a server is there, and are answered under any name: a probe uses whatever
name or address it knows.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from ifedicl.errors import ConfigError, Fault

HEALTH = frozenset({"/healthz", "/readyz"})
"""Paths that are answered under any name."""
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no name of a host: patterns, addresses, URLs and ports.

    Raises:
        ConfigError: a name is none.
    """
    wrong = [name for name in names if not _NAME.fullmatch(name.lower()) or _address(name) is not None]
    if wrong:
        remedy = "Give each name by itself, without scheme, port or pattern; addresses need no name."
        faults = [Fault("allowed-host", repr(name), "a host name such as labels.example", remedy) for name in wrong]
        raise ConfigError("serve", faults)


def is_loopback(host: str) -> bool:
    """Whether an address or name is a loopback one, which no other machine reaches."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Hosts:
    """The allowed Host headers of one server. The web framework's own check answers in plain text, not as our other errors."""

    def __init__(self, host: str, allowed: Sequence[str] = ()) -> None:
        """Allow the names of a server that listens at ``host``, and further ``allowed`` names, checked ones.

        Others reach a server through its further names, so addresses are answered as if it listened at a public one.
        """
        self._host = host
        self._allowed = tuple(name.lower() for name in allowed)
        self._is_near = is_loopback(host) and not allowed
        self._names = {host.lower(), *self._allowed} | (set() if is_loopback(host) else {socket.gethostname().lower()})

    def hold(self, header: str) -> bool:
        """Whether a Host header names this server."""
        try:
            name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        except ValueError:  # brackets that do not close
            return False
        if name in self._names or is_loopback(name):
            return True
        # Only names can be rebound, addresses cannot; a machine that others reach may have several addresses.
        return not self._is_near and _address(name) is not None

    @property
    def described(self) -> str:
        """The allowed names, for a message."""
        if self._is_near:
            return "localhost, or a loopback address such as 127.0.0.1"
        return f"{', '.join((self._host, *self._allowed))}, the server's host name, or an address"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
