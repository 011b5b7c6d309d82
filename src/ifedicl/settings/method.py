"""What travels to the clients and decides the numbers."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from ifedicl.settings.contradictions import check_method
from ifedicl.settings.method_fields import MethodFields


class Method(MethodFields):
    """Everything that decides the numbers, as it travels to the clients. Its sections go together."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        check_method(self)
        return self
