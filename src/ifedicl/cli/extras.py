"""What several commands do first: check for optional packages, and write a template."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ifedicl import files
from ifedicl.errors import ConfigError, Fault, FileExistsAlreadyError


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


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write a file.

    Raises:
        FileExistsAlreadyError: ``path`` exists, and ``force`` is not set.
    """
    if path.exists() and not force:
        raise FileExistsAlreadyError(path)
    files.write_text(path, text)
