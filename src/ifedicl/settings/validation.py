"""Validates settings and reports every fault: field, received value, allowed values, remedy."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from ifedicl.errors import ConfigError, Fault
from ifedicl.kinds import kind_of_task
from ifedicl.kinds.any_task import AnyTask
from ifedicl.settings.moved import REMEDIES

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SINGLE_QUOTES = "Write paths with /, or in single quotes, as in 'C:\\data\\a.jsonl'"
M = TypeVar("M", bound=BaseModel)
_PLAIN = (
    (r"^Input should be greater than or equal to (\S+)", r"it must be \1 or more"),
    (r"^Input should be less than or equal to (\S+)", r"it must be \1 or less"),
    (r"^Input should be greater than (\S+)", r"it must be above \1"),
    (r"^Input should be less than (\S+)", r"it must be below \1"),
    (r"^Input should be a valid (?:integer|int).*", "it must be a whole number"),
    (r"^Input should be a valid number.*", "it must be a number"),
    (r"^Input should be a finite number", "it must be a number that is not nan or inf"),
    (r"^Input should be a valid boolean.*", "it must be true or false"),
    (r"^Input should be a valid (?:dictionary|mapping).*|^Input should be an object", "it must be a table, as in { name = 1 }"),
    (r"^(?:String|Value) should have at least (\d+) \S+.*", r"it must have \1 or more characters"),
    (r"^(?:String|Value) should have at most (\d+) \S+.*", r"it must have \1 or fewer characters"),
    (r"^String should match pattern .*", "it has another form than what is allowed"),
    (r"^(?:Tuple|List|Dictionary|Mapping) should have at least (\d+) \S+.*", r"it must have \1 or more entries"),
    (r"^(?:Tuple|List|Dictionary|Mapping) should have at most (\d+) \S+.*", r"it must have \1 or fewer entries"),
    (r"^Input should be ", "it must be "),
)
"""Messages of pydantic, and what they say to somebody who writes a file."""
_SHOWN_CHARACTERS = 80


def _is_path(value: str) -> str:
    r"""A path without control characters: in double quotes TOML reads ``\t``, ``\n`` and ``\b`` of a Windows path as such."""
    if _CONTROL.search(value):
        raise ValueError(f"a \\ in double quotes makes a control character. {_SINGLE_QUOTES}")
    if not value.strip():
        raise ValueError("name a file")
    return value


PathText: TypeAlias = Annotated[str, AfterValidator(_is_path)]
"""A path or hub id, as text."""


class Section(BaseModel):
    """Settings that belong together: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_converted(cls, value: Any, info: ValidationInfo) -> Any:
        """No type is converted: ``true`` is not 1, ``"3"`` is not 3, ``"no"`` is not false."""
        assert info.field_name is not None
        if (remedy := _conversion_remedy(cls.model_fields[info.field_name].annotation, value)) is not None:
            raise ValueError(remedy)
        return value


def _conversion_remedy(annotation: Any, value: object) -> str | None:
    """The remedy for a value that pydantic would convert to a number or a bool; None: it would convert nothing."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _conversion_remedy(inner[0], value)
    if origin in (Union, UnionType):
        is_one = type(value) in inner or any(get_origin(item) is Literal and value in get_args(item) for item in inner)
        return None if is_one else next(filter(None, (_conversion_remedy(item, value) for item in inner)), None)
    if isinstance(value, list | tuple) and inner:
        return next(filter(None, (_conversion_remedy(inner[0], item) for item in value)), None)
    if annotation in (int, float) and isinstance(value, bool | str):
        return "write a number, without quotes" if isinstance(value, str) else "write a number, not true or false"
    if annotation is bool and not isinstance(value, bool):
        return "write true or false, without quotes"
    return None


def validated(model: type[M], values: Mapping[str, Any], source: str) -> M:
    """Build ``model`` from ``values``; an error reports every fault.

    Raises:
        ConfigError: at least one field is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(source, [_fault(model, dict(item), values) for item in _roots(error.errors())]) from error


def toml_of(file: Traversable) -> dict[str, Any]:
    """The content of a TOML file; a byte order mark is allowed.

    Raises:
        OSError: it cannot be read.
        ValueError, RecursionError: it is not TOML or not UTF-8, or has a number of thousands of digits or is nested too deeply.
    """
    return tomllib.loads(file.read_text(encoding="utf-8-sig"))


def read_toml(path: Path, command: str) -> dict[str, Any]:
    """The content of a TOML file; ``command`` writes a new one.

    Raises:
        ConfigError: it is absent or not TOML.
    """
    try:
        return toml_of(path)
    except OSError as error:
        fault = Fault("file", str(path), "a readable TOML file", f"{error.strerror}. Write one with: {command}")
    except (ValueError, RecursionError) as error:
        fault = Fault("file", str(path), "TOML in UTF-8", f"{error}. {_hint(path, error)}Compare it with a new one: {command}")
    raise ConfigError(str(path), [fault])


def _hint(path: Path, error: Exception) -> str:
    """What is probably wrong with the line at which a TOML file cannot be read; empty if that is not known."""
    if isinstance(error, UnicodeDecodeError):
        return "Save it as UTF-8. "
    place = re.search(r"at line (\d+)", str(error))
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    line = lines[int(place[1]) - 1].strip() if place is not None and int(place[1]) <= len(lines) else ""
    if "\\" in line and '"' in line:
        return f"A \\ in double quotes begins an escape. {_SINGLE_QUOTES}. "
    if re.search(r"=\s*(True|False|None|null|yes|no)\b", line):
        return "Write true or false in lower case; leave the line out for no value. "
    value = re.fullmatch(r"[\w.\"'-]+\s*=\s*([^\s\"'\[{#\d+-][^\"']*)", line)
    return "Write text in quotes. " if value is not None else ""


def _remedy_of(error: Mapping[str, Any], message: str) -> str:
    """What to write in place of a value of a wrong type."""
    value = error["input"]
    if error["type"] == "string_type":
        plain = _shown(value).lower() if isinstance(value, bool) else _shown(value)
        return f'Write it in quotes: "{plain}".' if isinstance(value, bool | int | float) else "Write text, in quotes."
    if error["type"] in ("tuple_type", "list_type"):
        return 'Write a list, as in ["a", "b"].'
    plain = _plain(message)
    return f"{plain[0].upper()}{plain[1:]}."


def _plain(message: str) -> str:
    """A message of pydantic in the words of this file: it speaks of values as Python has them."""
    for pattern, words in _PLAIN:
        message = re.sub(pattern, words, message)
    return message


def _roots(errors: Sequence[Any]) -> list[Any]:
    """Errors without those that another error causes: a list is "too short" when an item of it is wrong."""
    locations = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if not any(location != error["loc"] and location[: len(error["loc"])] == error["loc"] for location in locations)
    ]


def _fault(model: type[BaseModel], error: Mapping[str, Any], values: object) -> Fault:
    location = [str(part) for part in error["loc"]]
    section, name = _section_of(model, location, values)
    field = ".".join(location) or "file"
    missing = error["type"] == "missing"
    received = "nothing" if missing else _shown(error["input"])
    if error["type"] == "extra_forbidden":
        known = list(section.model_fields)
        near = difflib.get_close_matches(location[-1], known, n=1)
        remedy = REMEDIES.get(field) or (f"Did you mean {near[0]!r}?" if near else "Remove the line.")
        return Fault(field, "a name that does not exist", ", ".join(known), remedy)
    described = section.model_fields[name].description if name else None
    message = str(error["msg"]).removeprefix("Value error, ")
    if described is None and error["type"] == "value_error":  # the message names the settings
        return Fault(field, received, "settings that do not contradict each other", f"{message}.")
    remedy = "Add it." if missing else _remedy_of(error, message)
    inner = section_in(section.model_fields[name].annotation) if name else section
    if described is None and inner is not None:
        inner = _of_its_kind(inner, error["input"])
        described = f"a section [{field}] with {', '.join(inner.model_fields)}"
    return Fault(field, received, described or _plain(message).removeprefix("it must be "), remedy)


def _section_of(model: type[BaseModel], location: list[str], values: object) -> tuple[type[BaseModel], str | None]:
    """The innermost section on the way to ``location`` in ``values``, and its field there.

    Sections may be in lists and tables.
    """
    name = None
    for depth, part in enumerate(location, start=1):
        values = values.get(part) if isinstance(values, Mapping) else None
        if part not in model.model_fields:  # an index of a list, a key of a table, or an unknown name
            continue
        name = part
        inner = section_in(model.model_fields[part].annotation)
        if inner is not None and depth < len(location):
            model, name = _of_its_kind(inner, values), None
    return model, name


def _of_its_kind(section: type[BaseModel], values: object) -> type[BaseModel]:
    """The section itself; of a task that of its kind."""
    try:
        return kind_of_task(values) if section is AnyTask else section
    except ValueError:  # there is no such kind
        return section


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section in a field of this type; None: the field has a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as TOML has it
    try:
        text = repr(value)
    except ValueError:  # Python does not print a number of thousands of digits
        text = "a number with too many digits"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
