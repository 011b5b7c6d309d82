"""What stands in the files that TensorBoard reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of TensorBoard's event files, read by their format: a length, a checksum, an event, a checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event: Any = Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + size :]
    return found
