"""Configs with their data, and what a run leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ifedicl.federation import checkpoint
from ifedicl.federation.run_folder import RunFolder
from ifedicl.federation.state import RoundRecord
from tests.support import tiny

OPEN = "[rounds]\nrounds = 2\n"
SECURE = f'{OPEN}[privacy]\nmode = "secure"\nmin_examples = 4\n'
"""The same run in secure mode."""
FOUR = ("north", "south", "east", "west")


def write_run(
    folder: Path,
    model: Path,
    rows: Mapping[str, int],
    sections: str,
    *,
    seed: int = 0,
    name: str = "config",
    weighting: str = "uniform",
) -> Path:
    """A config and its data.

    Args:
        folder: of all files.
        model: its folder.
        rows: how many each client has; those of ``test`` are the test file.
        sections: the rest of the config, as TOML.
        seed: of the run.
        name: of the config.
        weighting: of the clients.
    """
    for number, (owner, count) in enumerate(rows.items()):
        tiny.write_rows(folder / f"{owner}.jsonl", tiny.rows(count, seed=number))
    clients = [owner for owner in rows if owner != "test"]
    test = "test.jsonl" if "test" in rows else None
    return tiny.write_config(folder / f"{name}.toml", model, clients, sections, test=test, seed=seed, weighting=weighting)


def short_run(folder: Path, model: Path, *, rounds: int = 2, learning_rate: float = 0.05) -> Path:
    """Three clients of few examples, and a test file."""
    counts = {name: 8 + number for number, name in enumerate(("a", "b", "c", "test"))}
    sections = f"""
        [holdout]
        selection = 0.3
        gate = 0.2
        [calibration]
        batch_size = 2
        local_steps = 1
        learning_rate = {learning_rate}
        [rounds]
        rounds = {rounds}
        """
    return write_run(folder, model, counts, sections, seed=5)


def run_of_four(folder: Path, model: Path, sections: str, *, name: str = "config", weighting: str = "examples") -> Path:
    """The clients :data:`FOUR`, 24 examples each, and a test file; ``sections`` end the config."""
    base = "[holdout]\nselection = 0.2\ngate = 0.2\n[calibration]\nbatch_size = 2\nlocal_steps = 1\n"
    return write_run(folder, model, dict.fromkeys((*FOUR, "test"), 24), base + sections, name=name, weighting=weighting)


def contents(folder: Path) -> dict[str, bytes]:
    """Each file's bytes."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def history(folder: Path) -> tuple[RoundRecord, ...]:
    """The rounds of a run, as its checkpoint has them."""
    saved = checkpoint.load(RunFolder(folder).checkpoint)
    assert saved is not None
    return saved.history
