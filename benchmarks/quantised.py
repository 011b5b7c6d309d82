"""What weights of 8 and 4 bits cost and save beside whole ones on the demo's model: accuracy, processor seconds and bytes.

For each data set a pool of training rows gives context vectors and calibrates the paper's form for a few steps; as many other
training rows measure it, so the test rows are never read. On a CPU a quantised weight is made whole for each product, so it is
slower there, not faster: what it saves is memory. torchao must be importable (`make quantised`, or `pip install
'ifedicl[quantised]'`).
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from _sets import load_labelled
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import load_plan
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.data import draw_pool
from ifedicl.demo.fetch import demo_model
from ifedicl.extract import context_vectors
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings import CalibrationSettings, Method, ModelSettings

_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--sets", nargs="+", default=["sst5", "sms_spam"], help="of the plan `dev` (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=128, help="rows of the pool, and of the measurement")
    parser.add_argument("--steps", type=int, default=24, help="calibration steps of 4 examples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan, whole = load_plan("dev", arguments.data), dict[str, Array32]()
    kinds: tuple[Literal["int8", "int4"] | None, ...] = (None, "int8", "int4")
    for kind in kinds:
        settings = ModelSettings(source=str(demo_model()), dtype="float32", device="cpu", quantisation=kind)
        backbone = load_backbone(settings)
        tensors = chain(backbone.model.parameters(), backbone.model.buffers())
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        for name in arguments.sets:
            data = load_labelled(name, plan.sets[name])
            pool = draw_pool(data.train, arguments.rows, arguments.seed)
            texts = {example.text for example in pool}
            others = draw_pool([row for row in data.train if row.text not in texts], arguments.rows, arguments.seed)
            figures, zero = _measured(backbone, data.task, pool, others, arguments.steps)
            expected = whole.setdefault(name, zero)
            figures["same answers, zero-shot"] = round(float((zero.argmax(axis=1) == expected.argmax(axis=1)).mean()), 3)
            figures["change of P, zero-shot"] = round(float(np.abs(np.exp(zero) - np.exp(expected)).mean()), 4)
            print(json.dumps({"weights": kind or "whole", "MB": round(held / 1e6, 1), "set": name, **figures}), flush=True)


def _measured(
    backbone: Backbone, task: Task, pool: tuple[Example, ...], others: tuple[Example, ...], steps: int
) -> tuple[dict[str, Any], Array32]:
    """Figures, and the ``(N, C)`` log-probabilities of the raw model."""
    scorer, method = Scorer(backbone, task), Method(calibration=CalibrationSettings(local_steps=steps, batch_size=_BATCH))
    examples, unseen = scorer.encoded(pool), scorer.encoded(others)
    times = [time.process_time()]
    vectors = context_vectors(scorer, examples.prompts.tokens, examples.labels, method).mean().astype(np.float32)
    times.append(time.process_time())
    context, start = Context(vectors), cold_start(Form(backbone.layers), method.injection)
    update = calibrate(scorer, examples, context, start, method, ClientRound("pool", 0, 0, 1))
    times.append(time.process_time())
    zero = scorer.log_probabilities(unseen.prompts)
    times.append(time.process_time())
    with applied(backbone, context, update.coefficients):
        adapted = scorer.log_probabilities(unseen.prompts)
    labels = np.array(unseen.labels)
    extraction, calibration, reading = np.diff(times)
    figures = {
        "zero-shot": round(float((zero.argmax(axis=1) == labels).mean()), 3),
        "calibrated": round(float((adapted.argmax(axis=1) == labels).mean()), 3),
        "log-loss": round(float(-adapted[np.arange(len(labels)), labels].mean()), 3),
        "extraction s": round(extraction, 1),
        "a step s": round(calibration / steps, 2),
        "reading s": round(reading, 1),
    }
    return figures, zero


if __name__ == "__main__":
    main()
