"""Every type in a public signature can be imported from a public place.

The rule: whatever the signature of a public name tells of (parameters, result, public fields, properties and methods) is
exported by ``ifedicl`` itself or by one of ``PACKAGES``. ``HANDLES`` are types that one call gives and another takes: they are
exported, and their own members are for the modules that make them, so those are not followed.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import pytest

import ifedicl

PACKAGES = ("ifedicl", "ifedicl.federation.messages", "ifedicl.settings", "ifedicl.store")
HANDLES = {"Backbone", "Client", "Coefficients", "Context", "Readout", "State"}
INTERNAL = {
    "ifedicl.adapter.classifier.Classifier.__init__",
    "ifedicl.adapter.on_model.OnModel.__init__",
    "ifedicl.adapter.on_model.OnModel.placed",
}
"""Methods that only other modules of ifedicl call."""


def exported() -> dict[int, str]:
    """Where each public object is exported, by identity."""
    return {
        id(getattr(import_module(package), name)): f"{package}.{name}"
        for package in reversed(PACKAGES)
        for name in import_module(package).__all__
    }


def named_types(hint: Any) -> Iterator[type]:
    """The ifedicl classes within a type hint."""
    for part in (*typing.get_args(hint), typing.get_origin(hint), hint):
        if part is hint:
            if isinstance(hint, type) and not typing.get_args(hint) and hint.__module__.split(".")[0] == "ifedicl":
                yield hint
        elif isinstance(part, (list, tuple)):
            for inner in part:
                yield from named_types(inner)
        elif part is not None:
            yield from named_types(part)


def hints(signature: Any) -> dict[str, Any]:
    """Its type hints. A name that its module imports for type checkers only is looked up among the public ones."""
    try:
        return typing.get_type_hints(signature)
    except NameError:
        return typing.get_type_hints(signature, localns={name: getattr(ifedicl, name) for name in ifedicl.__all__})


def signatures(public: Any) -> Iterator[tuple[str, Any]]:
    """The functions of a public object, and the object itself where it has fields, each with a name for the message."""
    name = f"{public.__module__}.{public.__qualname__}"
    if not inspect.isclass(public):
        yield name, public
        return
    if public.__name__ in HANDLES or issubclass(public, Exception):
        return
    yield name, public
    # A dataclass's __init__ takes the fields, which are read above.
    special = {"__call__", "__iter__"} | (set() if is_dataclass(public) else {"__init__"})
    for member, value in vars(public).items():
        if member.startswith("_") and member not in special:
            continue
        function = value.fget if isinstance(value, property) else value.func if isinstance(value, cached_property) else value
        function = getattr(function, "__func__", function)  # of a class method or a static one
        if inspect.isfunction(function) and f"{name}.{member}" not in INTERNAL:
            yield f"{name}.{member}", function


PUBLIC = [
    name for name in ifedicl.__all__ if callable(getattr(ifedicl, name)) and hasattr(getattr(ifedicl, name), "__module__")
]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "Event"])
def test_every_type_in_the_signature_of_a_public_name_is_exported(name: str) -> None:
    places = exported()
    missing = {
        f"{where} names {kind.__module__}.{kind.__qualname__}"
        for where, signature in signatures(getattr(ifedicl, name))
        for member, hint in hints(signature).items()
        if not member.startswith("_")
        for kind in named_types(hint)
        if id(kind) not in places
    }
    assert not missing, "export these, or make them private"


def test_every_kind_of_event_is_exported() -> None:
    assert {id(kind) for kind in typing.get_args(ifedicl.Event)} <= set(exported())


def test_the_check_sees_a_type_that_is_not_exported() -> None:
    from ifedicl.core.coefficients import Form

    def public(form: list[Form | None], *, other: typing.Callable[[Form], int]) -> None: ...

    found = [kind for hint in typing.get_type_hints(public, localns={"Form": Form}).values() for kind in named_types(hint)]
    assert found == [Form, Form]
    assert id(Form) not in exported()


def test_every_exemption_is_of_something_that_exists() -> None:
    assert set(ifedicl.__all__) >= HANDLES
    for path in INTERNAL:
        module, name, member = path.rsplit(".", 2)
        assert member in vars(getattr(import_module(module), name))
