"""What several commands do first: check for optional packages, and write a template."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from ifedicl import files
from ifedicl.errors import ConfigError, Fault


def require(command: str, extra: str, *packages: str) -> None:
    """Check that a command's packages, by the names of their modules, are installed; ``extra`` installs them.

    Raises:
        ConfigError: a package is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        remedy = f"Install them: pip install 'ifedicl[{extra}]'."
        fault = Fault("packages", f"no {', '.join(missing)}", f"with {', '.join(packages)} installed", remedy)
        raise ConfigError(command, [fault])


def write_template(command: str, name: str, path: Path, *, force: bool, **values: str) -> None:
    """Write the shipped template ``name`` to ``path``, with ``@key@`` replaced by each value.

    Raises:
        ConfigError: ``path`` exists, and ``force`` is not set.
    """
    if path.exists() and not force:
        fault = Fault("path", str(path), "a file that does not exist", "Choose another name, or replace it with --force.")
        raise ConfigError(command, [fault])
    text = (resources.files("ifedicl") / "templates" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    files.write_text(path, text)
