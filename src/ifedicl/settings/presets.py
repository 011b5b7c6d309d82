"""Config files and shipped settings files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ifedicl.errors import ConfigError, Fault
from ifedicl.settings.config import RunSettings
from ifedicl.settings.method import Method
from ifedicl.settings.paths import anchored, anchored_model
from ifedicl.settings.validation import read_toml, toml_of, validated


def load_settings(path: str | Path) -> RunSettings:
    """Read a config file.

    Relative paths of files within it are taken from its own folder.

    Raises:
        ConfigError: it is absent, not TOML, or wrong; every fault is in the message.
    """
    path = Path(path)
    values = _with_preset(read_toml(path, "ifedicl init"), str(path))
    settings = validated(RunSettings, values, str(path))
    try:
        return _in_folder(settings, path.resolve().parent)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no such user, a NUL
        fault = Fault("model or data", "a path that cannot be", "paths of files", f"{error}. Correct the path.")
        raise ConfigError(str(path), [fault]) from error


def load_preset(name: str) -> Method:
    """A shipped settings file as a :class:`Method`.

    Raises:
        ConfigError: there is no such preset.
    """
    return validated(Method, _preset(name, f"preset {name}"), f"preset {name}")


def changed(method: Method, sections: Mapping[str, Any], source: str) -> Method:
    """``method`` with some fields of some sections replaced, as a config file would give them.

    Raises:
        ConfigError: they do not fit; ``source`` names them in the message.
    """
    return validated(Method, _merged(method.model_dump(exclude_none=True), sections), source)


def presets() -> tuple[str, ...]:
    """Names of the shipped settings files."""
    folder = resources.files("ifedicl") / "presets"
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def _preset(name: str, source: str) -> dict[str, Any]:
    if name not in presets():
        fault = Fault("preset", repr(name), ", ".join(presets()), "Choose one of these or leave the line out.")
        raise ConfigError(source, [fault])
    shipped = toml_of(resources.files("ifedicl") / "presets" / f"{name}.toml")
    return {key: value for key, value in _with_preset(shipped, source).items() if key != "preset"}


def _with_preset(values: dict[str, Any], source: str) -> dict[str, Any]:
    name = values.get("preset")
    return values if not isinstance(name, str) else _merged(_preset(name, source), values)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _in_folder(settings: RunSettings, folder: Path) -> RunSettings:
    data = settings.data
    files = {name: anchored(file, folder) for name in ("train", "test", "public") if (file := getattr(data, name)) is not None}
    clients = data.clients and {name: anchored(file, folder) for name, file in data.clients.items()}
    data = data.model_copy(update={**files, "clients": clients})
    return settings.model_copy(update={"data": data, "model": anchored_model(settings.model, folder)})
