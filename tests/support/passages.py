"""Made-up passages with answers of text, for tiny models."""

from __future__ import annotations

import json
from pathlib import Path

from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.passages import Passage
from tests.support import tiny

TASK = ExtractTask(name="second word", template="Text: {text}\nWord:", most_answer_tokens=16)


def passages(count: int, *, first: int = 0) -> tuple[Passage, ...]:
    """``count`` different sentences; the answer is a slot with the second word."""
    chosen = [(number, tiny.SENTENCES[number % len(tiny.SENTENCES)]) for number in range(first, first + count)]
    return tuple(Passage(f"{sentence} {number}", f"word: {sentence.split()[1]}") for number, sentence in chosen)


def write_files(folder: Path, names: dict[str, int]) -> None:
    """A file of passages ``NAME.jsonl`` for each name."""
    for number, (name, count) in enumerate(names.items()):
        rows = [{"text": own.text, "answer": own.answer} for own in passages(count, first=100 * number)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
