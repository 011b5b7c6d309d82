"""For the API reference: docstrings name other objects by Sphinx roles, and the site shows the bare names."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


class PlainNames(Extension):
    """Replaces each role in a docstring by the name at its end."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Replace the roles of one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
