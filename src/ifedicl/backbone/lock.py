"""One lock for each loaded model: its hooks change every pass, whichever thread runs it."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from ifedicl.backbone.load import Backbone

_locks: WeakKeyDictionary[Any, AbstractContextManager[Any]] = WeakKeyDictionary()
_making = threading.Lock()


def exclusive(backbone: Backbone) -> AbstractContextManager[Any]:
    """The lock of the backbone's model. Whoever hooks the model, runs it or uses its tokenizer holds it.

    It is re-entrant: the thread that has it may take it again. Backbones that share a model share its lock. Nothing yields to
    other code while it holds the lock, except the context managers of :mod:`~ifedicl.backbone.hooks`.
    """
    with _making:
        return _locks.setdefault(backbone.model, threading.RLock())
