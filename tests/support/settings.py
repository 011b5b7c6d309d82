"""Names of settings."""

from __future__ import annotations

from pydantic import BaseModel

from ifedicl.settings.validation import section_in


def settings_of(model: type[BaseModel]) -> list[str]:
    """Full names of all settings that hold a value."""
    names = []
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        names += [name] if inner is None else [f"{name}.{below}" for below in settings_of(inner)]
    return names
