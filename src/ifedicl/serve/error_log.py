"""What the server's log says of an error that nobody foresaw."""

from __future__ import annotations

import traceback


def happened(error: Exception) -> str:
    """Kind and place. Its words may be a text's; where it happened never is."""
    return f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1][:3]}"
