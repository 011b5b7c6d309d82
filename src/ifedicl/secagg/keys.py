"""Keys of the secure sum, all from the ``cryptography`` library: X25519, HKDF-SHA256, ChaCha20-Poly1305, Ed25519."""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ifedicl.errors import SecureSumError

KEY_SIZE = 32
SIGNATURE_SIZE = 64
SEAL_SIZE = 16
"""What sealing adds to a text."""
_NONCE = bytes(12)  # each key seals once
LOCK_SIZE = len(_NONCE) + SEAL_SIZE
"""What locking adds to a text."""


def digest(*parts: bytes) -> bytes:
    """SHA-256 of parts, each behind its length, so that no two lists of parts read the same."""
    content = hashlib.sha256()
    for part in parts:
        content.update(len(part).to_bytes(8, "big") + part)
    return content.digest()


def derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    """A 32-byte key for one purpose (HKDF-SHA256, RFC 5869)."""
    return HKDF(SHA256(), KEY_SIZE, salt, purpose).derive(key)


def agreed(own: X25519PrivateKey, other: bytes) -> bytes:
    """What both sides of a pair compute, and nobody else.

    Raises:
        SecureSumError: the other side's key is no key, or one that everybody could agree on.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise SecureSumError("a public key that no honest client sends") from error


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
    """Encrypted and authenticated together with ``context``; a key seals one text only."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """The text that :func:`seal` sealed.

    Raises:
        SecureSumError: it was bent, or sealed with another key or in another context: replayed, for instance.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, context)
    except InvalidTag as error:
        raise SecureSumError("a sealed message that was bent on its way, or is of another session") from error


def lock(key: bytes, text: bytes) -> bytes:
    """Encrypted for oneself, any number of texts with one key: the nonce is random and goes in front."""
    nonce = os.urandom(len(_NONCE))
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, None)


def unlock(key: bytes, locked: bytes) -> bytes:
    """The text that :func:`lock` locked.

    Raises:
        SecureSumError: it was bent, or locked by somebody else.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(locked[: len(_NONCE)], locked[len(_NONCE) :], None)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError("a locked text that was bent, or is not this client's own") from error


class Identity:
    """Who a client is to the others: a signing key that lasts as long as its secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derived(secret, b"", b"ifedicl identity 1"))

    @property
    def public(self) -> bytes:
        """What the other clients pin."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, content: bytes) -> bytes:
        """Signature of ``content``."""
        return self._key.sign(content)


def check_signature(public: bytes, signature: bytes, content: bytes) -> None:
    """Refuse what the holder of ``public`` did not sign.

    Raises:
        SecureSumError: it did not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError) as error:
        raise SecureSumError("a signature that is not of the client that it claims to be of") from error
