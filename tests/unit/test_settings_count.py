"""A method stays small enough to be read."""

from __future__ import annotations

from ifedicl.settings import Method
from tests.support.settings import settings_of


def test_a_method_has_at_most_36_settings() -> None:
    assert len(settings_of(Method)) <= 36
