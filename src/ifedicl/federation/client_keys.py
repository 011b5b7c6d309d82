"""What a client derives from its owner's secrets: seeds and keys, each for one purpose."""

from __future__ import annotations

import hashlib
import hmac

from ifedicl.settings import Method


def split_seed(key: bytes, method: Method) -> int:
    """The seed that divides a client's examples into roles: by the owner's key, one for all jobs.

    Without a key it is the job's, as in a simulation.
    """
    return _seed_for(key, "roles") if key else method.seed


def order_seed(key: bytes, method: Method) -> int | None:
    """The seed of the order in which the examples are trained on, which the coordinator must not know. None: no key.

    Jobs that take other numbers of examples have unrelated orders: two updates never differ by a few examples.
    """
    taken = method.calibration.batch_size, method.calibration.local_steps
    return _seed_for(key, f"order {taken}") if key else None


def _seed_for(key: bytes, purpose: str) -> int:
    return int.from_bytes(key_for(key, purpose)[:8], "little")


def key_for(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, from a client's secret."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)
