"""Source tree and machine on which a cell is measured."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ifedicl import __version__


@cache
def commit() -> str:
    """The commit of the source tree, with ``-dirty`` if the package has changes; "unknown" outside a tree."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=False)  # noqa: S607
        except OSError:
            return ""
        return done.stdout.strip()

    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if git("status", "--porcelain", "--", str(package)) else "")


@cache
def machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "ifedicl": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
