"""Files of an adapter's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file in the folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def resigned(folder: Path, tensors: dict[str, Any] | None = None, **header: Any) -> None:
    """Change header fields or tensors and make the checksum fit again."""
    if tensors is not None:
        save_file(tensors, folder / "adapter.safetensors")
    digest = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    values = {**json.loads((folder / "adapter.json").read_text()), "tensors_sha256": digest, **header}
    (folder / "adapter.json").write_text(json.dumps(values))
