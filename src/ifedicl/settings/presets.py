"""Reads config files and presets (shipped settings files)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ifedicl.errors import ConfigError, Fault
from ifedicl.rows import HUB_PREFIX
from ifedicl.settings.config import ModelSettings, RunSettings
from ifedicl.settings.method import Method
from ifedicl.settings.validation import read_toml, toml_of, validated


def anchored(source: str, folder: Path) -> str:
    """``source`` as a path relative to the settings file's ``folder``; an id of the hub is unchanged."""
    return source if source.startswith(HUB_PREFIX) else str(folder / Path(source).expanduser())


def anchored_model(model: ModelSettings, folder: Path) -> ModelSettings:
    """The model in the settings file's ``folder`` if it exists there; otherwise unchanged, for instance an id of the hub."""
    local = folder / Path(model.source).expanduser()
    return model.model_copy(update={"source": str(local)}) if local.exists() else model


def load_settings(path: str | Path) -> RunSettings:
    """Read a config file; its paths are relative to its own folder.

    Raises:
        ConfigError: it is absent, not TOML, or wrong; the message has every fault.
    """
    path = Path(path)
    values = _with_preset(read_toml(path, "ifedicl init"), str(path))
    settings = validated(RunSettings, values, str(path))
    try:
        return _in_folder(settings, path.resolve().parent)
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, an unknown user, a NUL
        fault = Fault("model or data", "a path that is impossible", "paths of files", f"{error}. Correct the path.")
        raise ConfigError(str(path), [fault]) from error


def load_preset(name: str) -> Method:
    """The method of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    return validated(Method, _preset(name, f"preset {name}"), f"preset {name}")


def changed(method: Method, sections: Mapping[str, Any], source: str) -> Method:
    """``method`` with fields of some sections replaced, as in a config file; ``source`` names them in an error.

    Raises:
        ConfigError: a field is wrong.
    """
    return validated(Method, _merged(method.model_dump(exclude_none=True), sections), source)


def presets() -> tuple[str, ...]:
    """The names of the presets."""
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
        section = result.get(key)
        result[key] = _merged(section, value) if isinstance(section, dict) and isinstance(value, dict) else value
    return result


def _in_folder(settings: RunSettings, folder: Path) -> RunSettings:
    data = settings.data
    files = {name: anchored(file, folder) for name in ("train", "test", "public") if (file := getattr(data, name)) is not None}
    clients = data.clients and {name: anchored(file, folder) for name, file in data.clients.items()}
    data = data.model_copy(update={**files, "clients": clients})
    return settings.model_copy(update={"data": data, "model": anchored_model(settings.model, folder)})
