"""Where a store is, told before the database's packages are imported."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path

from ifedicl.errors import StorageError

_FILE = "sqlite:///"


def location_of(url: str | None) -> str:
    """``url``, or by default ``IFEDICL_STORE``, or a file in the user's data folder."""
    return url or os.environ.get("IFEDICL_STORE") or str(user_data_path("ifedicl") / "tasks.sqlite")


def check_exists(location: str) -> None:
    """Check that a store in a file is there. Whether a database answers is seen when it is opened.

    Raises:
        StorageError: there is no such file.
    """
    if "://" in location and not location.startswith(_FILE):
        return
    path = Path(location.removeprefix(_FILE)).expanduser()
    if not path.is_file():
        raise StorageError(
            f"{path}: there is no such task cache. Check the path; `ifedicl run --store` and `ifedicl tasks import` make one"
        )
