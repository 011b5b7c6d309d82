"""Keys of the secure sum: X25519, HKDF, ChaCha20-Poly1305 and Ed25519 of ``cryptography``, keyed BLAKE2b of ``hashlib``."""

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
_NONCE_SIZE = 12
LOCK_SIZE = _NONCE_SIZE + 16
"""Bytes that :func:`lock` adds to a text."""


def digest(*parts: bytes) -> bytes:
    """SHA-256 of parts, each with its length in front, so that two different lists of parts never give the same input."""
    content = hashlib.sha256()
    for part in parts:
        content.update(len(part).to_bytes(8, "big") + part)
    return content.digest()


def derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    """A 32-byte key for one purpose (HKDF-SHA256, RFC 5869)."""
    return HKDF(SHA256(), KEY_SIZE, salt, purpose).derive(key)


def agreed(own: X25519PrivateKey, other: bytes) -> bytes:
    """The X25519 shared secret of a pair of clients.

    Raises:
        SecureSumError: the other side's key is invalid or of low order.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise SecureSumError("a public key is invalid; no honest client sends it") from error


def keyed(key: bytes, purpose: bytes, *parts: bytes, size: int = KEY_SIZE) -> bytes:
    """Pseudorandom bytes of ``parts`` under a key, or a tag of them: keyed BLAKE2b (RFC 7693), five times as fast as HKDF.

    Args:
        key: of 64 bytes at most.
        purpose: of 16 bytes at most, with none of which another use of the key begins.
        parts: of fixed lengths for each purpose.
        size: bytes of the result, 64 at most.
    """
    return hashlib.blake2b(b"".join(parts), key=key, person=purpose, digest_size=size).digest()


def lock(key: bytes, text: bytes) -> bytes:
    """Encrypt a text for the client itself. One key may lock many texts: the nonce is random and stands in front."""
    nonce = os.urandom(_NONCE_SIZE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, None)


def unlock(key: bytes, locked: bytes) -> bytes:
    """The text that :func:`lock` locked.

    Raises:
        SecureSumError: it was changed, or locked with another key.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(locked[:_NONCE_SIZE], locked[_NONCE_SIZE:], None)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError("a locked text was changed, or is not this client's own") from error


class Identity:
    """A client's signing key (Ed25519). It is derived from the client's secret and lasts as long as that."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derived(secret, b"", b"ifedicl identity 1"))

    @property
    def public(self) -> bytes:
        """The public key, which the other clients pin."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, content: bytes) -> bytes:
        """Signature of ``content``."""
        return self._key.sign(content)


def check_signature(public: bytes, signature: bytes, content: bytes) -> None:
    """Verify that the holder of ``public`` signed ``content``.

    Raises:
        SecureSumError: the signature does not verify.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError) as error:
        raise SecureSumError("a signature does not verify under the pinned key of the client that it names") from error
