"""Standard output and error, whatever they are: of any encoding, a pipe whose reader has gone, a full disk."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from io import TextIOWrapper

READER_GONE = 141
"""128 + SIGPIPE, as shells report it."""
_ESCAPES = "ifedicl-json-escapes"


def escape_what_has_no_encoding() -> None:
    r"""Write characters that an output's encoding does not have as JSON does, ``\u00e9``, in JSON and elsewhere."""
    codecs.register_error(_ESCAPES, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_ESCAPES)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (int.from_bytes(wrong[at : at + 2], "big") for at in range(0, len(wrong), 2))
    return "".join(f"\\u{unit:04x}" for unit in units), error.end


def flush() -> None:
    """Write all that was printed.

    Raises:
        BrokenPipeError: the reader has gone.
        OSError: it cannot be written, for instance because the disk is full.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def give_up() -> None:
    """Send the rest nowhere, so that Python does not try again, and complain, at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
                stream.flush()
    os.close(nowhere)
