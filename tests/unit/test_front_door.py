"""The package's public names."""

from __future__ import annotations

import ifedicl


def test_every_public_name_can_be_had() -> None:
    for name in ifedicl.__all__:
        assert getattr(ifedicl, name) is not None


def test_the_public_names_are_exactly_the_homes_and_the_version() -> None:
    assert set(ifedicl.__all__) == {*ifedicl._HOMES, "__version__"}
    assert dir(ifedicl) == sorted(ifedicl.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ifedicl, "Adaptor")
