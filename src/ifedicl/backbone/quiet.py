"""Keeps transformers from printing."""

from __future__ import annotations

import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

_ALSO = ("torchao", "torch.utils._pytree")
"""Loggers that speak when transformers imports torchao: of kernels for other machines, and of what torch will not allow."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the loading bars and advice of transformers; the user's settings are restored afterwards."""
    others = {python_logging.getLogger(name): python_logging.getLogger(name).level for name in _ALSO}
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for logger in others:
        logger.setLevel(python_logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        for logger, before in others.items():
            logger.setLevel(before)
        if bars:
            logging.enable_progress_bar()
