"""Memory, launches, copies and waits of a calibration step on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from _pairs import TASK, Bench
from ifedicl.backbone.prompts import EncodedExamples, Prompts
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate

_LONG = 55  # tokens of a prompt where memory is measured
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def peak(bench: Bench) -> dict[str, object]:
    """Bytes above the weights in a step of ``bench``, of 64 prompts of 55 tokens: planned passes, and one pass of all."""
    device = bench.backbone.device
    if device.type != "cuda":
        return {"not measured": f"the device is {device}; torch counts the memory of a GPU only"}
    draw = np.random.default_rng(0)
    prompts = tuple(tuple(map(int, draw.integers(1, 500, _LONG))) for _ in range(64))
    examples = EncodedExamples(Prompts(prompts, 0), tuple(number % 2 for number in range(64)))
    found = dict[str, object]()
    for name, tokens in (("planned passes", bench.backbone.trained_tokens), ("one pass", None)):
        scorer = Scorer(replace(bench.backbone, trained_tokens=tokens), TASK)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        calibrate(scorer, examples, bench.context, bench.coefficients, bench.method, ClientRound("bench", 0, 0, 1))
        found[name] = {"tokens in a pass": tokens, "bytes": torch.cuda.max_memory_allocated() - before}
    return {**found, "goal": "planned passes at most 4 GiB"}


def profiled(bench: Bench, bare_pass: Callable[[int], None]) -> dict[str, object]:
    """Launches, copies and waits of a step of 16 and of a bare pass, and where the step's time goes."""
    step, bare = _profile(bench.step), _profile(bare_pass)
    goal = "1 wait, no item, at most 1.2 times the launches"
    return {"step of 16": step[0], "bare pass": bare[0], "goal": goal, "longest of the step": step[1]}


def _profile(work: Callable[[int], object]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    work(0)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as seen:
        work(0)
    events = seen.key_averages()
    calls = {event.key: int(event.count) for event in events}
    counts = {
        "launches": sum(calls.get(name, 0) for name in _LAUNCHES),
        "waits": sum(calls.get(name, 0) for name in _WAITS),
        "copies": calls.get("cudaMemcpyAsync", 0),
        "item": calls.get("aten::item", 0),
        "operations": sum(count for name, count in calls.items() if name.startswith("aten::")),
    }
    longest = sorted(events, key=lambda event: -(event.self_device_time_total or event.self_cpu_time_total))[:20]
    return counts, [
        {
            "name": event.key[:80],
            "calls": int(event.count),
            "device_us": round(float(event.self_device_time_total)),
            "cpu_us": round(float(event.self_cpu_time_total)),
        }
        for event in longest
    ]
