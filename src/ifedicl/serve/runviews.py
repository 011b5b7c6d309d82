"""Runs as the page shows them, read from their ``metrics.jsonl`` while it grows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifedicl.errors import DataError, ServeError, UnknownRunError
from ifedicl.federation.run_folder import METRICS
from ifedicl.serve.schemas import ClassFigures, ClientFacts, RunFacts, RunLines

_PIECE = 1 << 18


@dataclass(frozen=True)
class Runs:
    """The runs in one folder: itself, or one or two levels below; None: there are no runs."""

    root: Path | None

    def list(self) -> list[RunFacts]:
        """All runs; the one whose file grew last comes first."""
        runs = [RunFacts(name=name, task=_task(path), age_seconds=_age(path)) for name, path in self._files().items()]
        return sorted(runs, key=lambda run: run.age_seconds)

    def lines(self, name: str, since: int, generation: int | None) -> RunLines:
        """Whole lines of a run from byte ``since`` on; from the start if the file was replaced since ``generation``.

        Raises:
            UnknownRunError: there is no such run.
            DataError: no line begins at ``since``.
            ServeError: a line is not JSON.
        """
        files = self._files()
        if name not in files:
            raise UnknownRunError(f"run: received {name[:80]!r}; known: {', '.join(sorted(files)) or 'none'}")
        path = files[name]
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            start = since if generation in (None, stat.st_ino) and since <= stat.st_size else 0
            file.seek(max(0, start - 1))
            before = file.read(min(1, start))
            piece = file.read(_PIECE)
        if before not in (b"", b"\n"):
            raise DataError(f"since: no line begins at byte {since}; give 0, or `next` of the previous answer")
        whole = piece[: piece.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError):
            reason = f"a line of its {METRICS} from byte {start} on is not JSON; the file was changed"
            raise ServeError(f"run {name!r}: {reason}") from None
        return RunLines(lines=lines, next=start + len(whole), generation=stat.st_ino, age_seconds=_age(path))

    def _files(self) -> dict[str, Path]:
        """Runs by name. A name is a path below the root, so a request cannot reach another file."""
        if self.root is None:
            return {}
        found = [path for pattern in (METRICS, f"*/{METRICS}", f"*/*/{METRICS}") for path in self.root.glob(pattern)]
        names = [path.parent.relative_to(self.root).as_posix() for path in found]
        return {self.root.absolute().name if name == "." else name: path for name, path in zip(names, found, strict=True)}


def clients_of(run: Path) -> list[ClientFacts]:
    """Bytes and failures of each client of a run."""
    clients: dict[str, ClientFacts] = {}
    for line in _events(run, "exchange"):
        name, step = str(line["client"]), str(line["step"])
        facts = clients.setdefault(name, ClientFacts(client=name, sent_bytes={}, received_bytes=0, failures=0))
        facts.sent_bytes[step] = facts.sent_bytes.get(step, 0) + int(line["bytes_up"])
        facts.received_bytes += int(line["bytes_down"])
        facts.failures += line.get("failure") is not None
    return list(clients.values())


def per_class_of(run: Path) -> list[ClassFigures]:
    """Figures of each label on the run's test text."""
    tests = {str(line["name"]): line for line in _events(run, "test")}
    if "adapter" not in tests:
        return []
    confusion, raw = tests["adapter"]["confusion"], tests.get("zero-shot")
    return [
        ClassFigures(
            label=label,
            examples=sum(confusion[at]),
            right=confusion[at][at],
            zero_shot_right=None if raw is None else raw["confusion"][at][at],
        )
        for at, label in enumerate(tests["adapter"]["labels"])
    ]


def _events(run: Path, kind: str) -> Iterator[dict[str, Any]]:
    with (run / METRICS).open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n") and (event := json.loads(line)).get("event") == kind:
                yield event


def _task(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(1 << 14).split(b"\n", 1)[0]
    try:
        return str(json.loads(head)["task"])
    except (ValueError, KeyError, TypeError):
        return None


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)
