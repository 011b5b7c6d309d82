"""Which Host headers a server without keys answers.

Any web site can let its own name resolve to this machine's address (DNS rebinding). The browser then takes this server for
that site and lets the site's page read every answer. The Host header still holds the site's name, so only our own names are
answered.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address or name is a loopback one, which no other machine reaches."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Hosts:
    """The allowed Host headers of one server. The web framework's own check answers in plain text, not as our other errors."""

    def __init__(self, host: str) -> None:
        """Allow the names of a server that listens at ``host``."""
        self._host = host
        self._is_near = is_loopback(host)
        self._names = {host.lower()} if self._is_near else {host.lower(), socket.gethostname().lower()}

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
        return f"{self._host}, the server's host name, or an address"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
