"""What a command needs beyond the core packages."""

from __future__ import annotations

from importlib.util import find_spec

from ifedicl.errors import ConfigError, Fault


def require(command: str, extra: str, *packages: str) -> None:
    """Refuse to begin without a command's packages, with the command that installs them.

    Args:
        command: as the user wrote it.
        extra: the extra of ifedicl that holds the packages.
        packages: by the names that they are imported under.

    Raises:
        ConfigError: a package is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        remedy = f"Install them: pip install 'ifedicl[{extra}]'."
        fault = Fault("packages", f"no {', '.join(missing)}", f"with {', '.join(packages)} installed", remedy)
        raise ConfigError(command, [fault])
