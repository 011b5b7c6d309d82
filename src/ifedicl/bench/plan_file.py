"""The file of a plan, read and looked through before torch is imported; :mod:`ifedicl.bench.plan` checks its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ifedicl.errors import ConfigError, DataError, Fault
from ifedicl.rows import DATA_ENDINGS, HUB_PREFIX
from ifedicl.settings import anchored, toml_of

DEMO = "demo"
"""The source of a model or a set that stands for the demo's."""
TRAIN, TEST = "train", "test"
"""The files of a set's folder, without their endings, which are those that ``ifedicl run`` reads."""


@dataclass(frozen=True)
class PlanFile:
    """A plan's values, as the file has them, and the folder that its sets are relative to."""

    name: str
    values: Mapping[str, Any]
    folder: Path

    @classmethod
    def read(cls, name: str, data: Path | None = None) -> PlanFile:
        """Read a plan file, or a shipped plan by its name.

        Args:
            name: a path, or for instance ``cpu``.
            data: base folder of the sets' relative folders; default: the plan's folder, or the current one for a shipped plan.

        Raises:
            ConfigError: the plan does not exist, or is not TOML.
        """
        is_shipped = name in shipped()
        folder = data or (Path() if is_shipped else Path(name).resolve().parent)
        try:
            return cls(name, toml_of(_plans() / f"{name}.toml" if is_shipped else Path(name)), folder)
        except (OSError, UnicodeDecodeError) as error:
            allowed = f"a TOML file, or one of {', '.join(shipped())}"
            raise ConfigError(name, [Fault("plan", name, allowed, f"It cannot be read: {error}.")]) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(name, [Fault("file", name, "TOML", f"{error}. Compare with docs/benchmark.md.")]) from error

    def missing_files(self) -> list[str]:
        """The sets' files on this machine that are not there, each behind its set's name."""
        sets = self.values.get("sets")
        missing = []
        for name, value in sets.items() if isinstance(sets, Mapping) else ():
            source = value.get("source") if isinstance(value, Mapping) else value
            if not isinstance(source, str) or source == DEMO or source.startswith(HUB_PREFIX):
                continue
            folder = Path(anchored(source, self.folder))
            absent = [file for file in (TRAIN, TEST) if data_file(folder, file) is None]
            missing += [f"{name}: {folder / file}, ending in {' or '.join(DATA_ENDINGS)}" for file in absent]
        return missing

    def check_sets(self) -> None:
        """Look for the files of all sets on this machine.

        Raises:
            DataError: some are missing; the message names all of them.
        """
        if missing := self.missing_files():
            remedy = "Give the folder that holds the sets with --data, or correct the plan"
            raise DataError(f"sets: {len(missing)} files are not there. {remedy}\n  " + "\n  ".join(missing))


def data_file(folder: Path, name: str) -> Path | None:
    """The file of that name with the first ending that is there; None: there is none."""
    return next((path for ending in DATA_ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def shipped() -> tuple[str, ...]:
    """Names of the shipped plans."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in _plans().iterdir() if file.name.endswith(".toml")))


def _plans() -> Traversable:
    return resources.files("ifedicl") / "bench" / "plans"
