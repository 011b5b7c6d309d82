"""Seconds and memory of 150 labels against ten, and of long texts: `python benchmarks/many_labels.py FOLDER`.

FOLDER holds the sets clinc_domain, clinc150, pubmedqa, boolq and mnli. A process of its own reads each, with SmolLM2-135M in
float32: processor seconds of a prompt, with its label words and without, and of an example scored for training; peak memory
above the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from _sets import load_labelled
from _victims import demo_backbone
from ifedicl.backbone.losses import LABELS
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import SetSettings

SETS = ("clinc_domain", "clinc150", "pubmedqa", "boolq", "mnli")
_ROWS, _STEP = 12, 4


def measured(folder: Path, name: str) -> dict[str, float | int | str]:
    """The figures of one set."""
    backbone = demo_backbone("float32")
    data = load_labelled(name, SetSettings(source=str(folder / name)))
    scorer = Scorer(backbone, data.task)
    rows = scorer.encoded(data.train[:_ROWS])
    tokens = rows.prompts.tokens
    scorer.read(rows.prompts, (15,), words=False)  # the weights are in memory from here on
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def seconds(count: int, work: object) -> float:
        start = time.process_time()
        assert callable(work)
        work()
        return round((time.process_time() - start) / count, 3)

    bare = seconds(_ROWS, lambda: scorer.read(rows.prompts, (15,), words=False))
    words = seconds(_ROWS, lambda: scorer.read(rows.prompts, (15,)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scoring = seconds(_STEP, lambda: scorer.losses(LABELS, tokens[:_STEP], rows.labels[:_STEP]))
    return {
        "set": name,
        "labels": len(data.task.labels),
        "tokens": round(sum(map(len, tokens)) / len(tokens)),
        "tokens_of_words": sum(len(tail.tokens) for tail in scorer.layout(tokens).tails),
        "cut": rows.prompts.truncated,
        "seconds_text_alone": bare,
        "seconds_with_words": words,
        "seconds_scored_for_training": scoring,
        "mib_of_reading": round((peak - before) / 1024),
    }


def main() -> None:
    """One line of JSON a set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=SETS)
    arguments = parser.parse_args()
    if arguments.set:
        print(json.dumps(measured(arguments.folder, arguments.set)), flush=True)
        return
    for name in SETS:
        subprocess.run([sys.executable, __file__, str(arguments.folder), "--set", name], check=True)


if __name__ == "__main__":
    main()
