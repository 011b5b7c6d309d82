"""A method stays small enough to be read."""

from __future__ import annotations

from pydantic import BaseModel

from ifedicl.settings import Method
from ifedicl.settings.validation import section_in


def settings_of(model: type[BaseModel]) -> list[str]:
    """Full names of all settings that hold a value."""
    names = []
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        names += [name] if inner is None else [f"{name}.{below}" for below in settings_of(inner)]
    return names


def test_a_method_has_at_most_36_settings() -> None:
    assert len(settings_of(Method)) <= 36
