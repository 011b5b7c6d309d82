"""Which Host headers a server without keys answers.

A page of any site may have its own name resolved to this machine's address (DNS rebinding); the browser then takes the server
for that site, and lets the page read every answer. The header still says the site's name, so no name but ours is answered.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, that no other reaches."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Hosts:
    """The names of one server. Written here since the web framework's own check answers in plain text, not in our form."""

    def __init__(self, host: str) -> None:
        """Of a server that listens at an address or name."""
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
        # An address cannot be rebound, only a name can; one that others reach may have several.
        return not self._is_near and _address(name) is not None

    @property
    def described(self) -> str:
        """What is answered, for a message."""
        if self._is_near:
            return "localhost, or an address of this machine alone as 127.0.0.1"
        return f"{self._host}, the server's host name, or an address"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
