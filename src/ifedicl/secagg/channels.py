"""What a client agrees on with each other client, once for a job: all secrets of its sums follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ifedicl.errors import SecureSumError
from ifedicl.secagg.keys import Identity, agreed, check_signature, derived, digest


@dataclass(frozen=True)
class Introduction:
    """A client's public key for one job.

    Attributes:
        name: of the client.
        key: X25519; fresh each time that the client takes a job. Its private half never leaves the client's memory.
        signature: Ed25519, of key, name and job.
    """

    name: str
    key: bytes
    signature: bytes


class Channels:
    """One client's key for one job, and the secrets that it shares with the peers that were introduced to it."""

    def __init__(self, name: str, identity: Identity, peers: Mapping[str, bytes], job: str) -> None:
        """Draw a fresh key.

        Args:
            name: of this client.
            identity: signs the key.
            peers: the signing keys of all clients that may take part, by name, as this client pins them.
            job: digest of the job's manifest, which has the rules of its sums.
        """
        self._name = name
        self._identity = identity
        self._peers = peers
        self._job = job.encode()
        self._key = X25519PrivateKey.generate()
        public = self._key.public_key().public_bytes_raw()
        self.introduction = Introduction(name, public, identity.sign(self._content(name, public)))
        self._secrets: dict[tuple[str, bytes], bytes] = {}

    def meet(self, other: Introduction) -> None:
        """Check a peer's key, and agree on a secret with it. A peer that is not pinned, or did not sign the key, gets none."""
        try:
            check_signature(self._peers.get(other.name, b""), other.signature, self._content(other.name, other.key))
            ends = sorted((each.name.encode(), each.key) for each in (self.introduction, other))
            secret = derived(agreed(self._key, other.key), b"", digest(b"channel", self._job, *ends[0], *ends[1]))
        except SecureSumError:
            return
        self._secrets[other.name, other.key] = secret

    def secret(self, name: str, key: bytes) -> bytes | None:
        """What this client and a peer with this key agree on; None: the peer is unknown, or its key was wrong."""
        return self._secrets.get((name, key))

    def _content(self, name: str, key: bytes) -> bytes:
        """The bytes that a signature covers."""
        return digest(b"ifedicl channel 1", self._job, name.encode(), key)
