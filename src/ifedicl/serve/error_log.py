"""How the server logs an unexpected error."""

from __future__ import annotations

import traceback


def happened(error: Exception) -> str:
    """Type and place of an error. Its message may quote a text and is not logged."""
    return f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1][:3]}"
