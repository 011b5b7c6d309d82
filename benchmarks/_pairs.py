"""Shared by all benchmarks: arguments, made-up text, interleaved pairs, their spread, and the printed report.

Two sides are measured in turn, A B B A A B …, and compared pair by pair. A machine that becomes slower affects both sides, and
the spread of the ratios shows how reliable their median is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ifedicl import seeds
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.layout import right_padded
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.passes import length_batches
from ifedicl.backbone.prompts import EncodedExamples, Prompts, Tokens
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, batches_of, calibrate
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.extract import context_vectors
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings import CalibrationSettings, Method, ModelSettings

Side: TypeAlias = Callable[[int], float]
"""Measures one side in the pair of the given number."""

TASK = Task(name="made-up moods", labels=("negative", "positive"), template="Sentence: {text}\nMood:")

_CLIENT = "bench"

# Sentences of 10 to 60 words, half of them below 20, as in reviews and tickets.
_FEWEST_WORDS, _MOST_WORDS, _MEDIAN_WORDS, _LOG_SPREAD = 10, 60, 20, 0.5
_VOCABULARY = (
    "the a this that my our every some no one two it they we nobody someone parcel soup room train letter garden phone window "
    "engine blanket ticket meeting kitchen report was is felt seemed arrived broke stayed opened worked smelled waited again "
    "late early warm cold kind rude quiet loud broken fresh cheap careful slow quick and but because although so with without "
    "after before under near than very quite hardly really never always today yesterday"
)


@dataclass(frozen=True)
class Claim:
    """A ratio of two sides, and its claimed bounds.

    Attributes:
        ratio: the two sides, as "first / second".
        unit: of both sides.
        at_least: lower bound of the ratio; None: no bound.
        at_most: upper bound; None: no bound. Without any bound the ratio is for information.
    """

    ratio: str
    unit: str = "s"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """The claim as a formula."""
        bounds = {"≥": self.at_least, "≤": self.at_most}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None) or "for information"

    def is_met(self, ratio: float) -> bool:
        """Whether ``ratio`` is within the bounds."""
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)


@dataclass(frozen=True)
class Spread:
    """Spread of one figure over all pairs."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:8.3f}  ({self.minimum:.3f} to {self.maximum:.3f})"


@dataclass(frozen=True)
class Comparison:
    """Measured pairs. The median of their ratios decides."""

    claim: Claim
    pairs: tuple[tuple[float, float], ...]

    @property
    def first(self) -> Spread:
        """The spread of the numerator."""
        return Spread.of([first for first, _ in self.pairs])

    @property
    def second(self) -> Spread:
        """The spread of the denominator."""
        return Spread.of([second for _, second in self.pairs])

    @property
    def ratio(self) -> Spread:
        """The spread of the ratios of the pairs."""
        return Spread.of([first / second for first, second in self.pairs])

    @property
    def verdict(self) -> str:
        """The word for the table: met, missed, or - without a bound."""
        if self.claim.at_least is None and self.claim.at_most is None:
            return "-"
        return "met" if self.claim.is_met(self.ratio.median) else "missed"


@dataclass(frozen=True)
class Bench:
    """A loaded model and labelled made-up text.

    Attributes:
        scorer: model and task.
        prompts: ``N`` encoded prompts.
        labels: their labels' positions in the task.
        method: the default settings, but with one local step and the slower loss, over the whole vocabulary.
        vectors: ``(L, 2, d)`` context vectors of all prompts.
        coefficients: the initial ones, active at every write of every layer.
    """

    scorer: Scorer
    prompts: Prompts
    labels: tuple[int, ...]
    method: Method
    context: Context
    coefficients: Coefficients

    @property
    def backbone(self) -> Backbone:
        """The model."""
        return self.scorer.backbone

    def batches(self, sequences: Sequence[Tokens]) -> list[Tensor]:
        """``(B, T)`` tokens of the batches in which ifedicl runs ``sequences``."""
        groups = length_batches([len(sequence) for sequence in sequences], self.scorer.budget)
        return [right_padded([sequences[position] for position in group], self.backbone.device) for group in groups]

    def demonstrations(self) -> list[Tokens]:
        """Each prompt with its label word, as in stage 1."""
        words = self.scorer.encoder.tree.words
        return [prompt + words[label] for prompt, label in zip(self.prompts.tokens, self.labels, strict=True)]

    def step_positions(self, pair: int) -> list[int]:
        """Positions of the examples that ``step`` trains on."""
        settings = self.method.calibration
        (batch,) = batches_of(pair, 1, len(self.labels), settings.batch_size, self.method.seed, _CLIENT)
        return batch

    def step_batches(self, pair: int) -> list[Tensor]:
        """``(B, T)`` tokens of each pass of ``step``, without the last token of prompt and label word, which no loss uses."""
        positions, demonstrations = self.step_positions(pair), self.demonstrations()
        groups = self.scorer.batches([self.prompts.tokens[position] for position in positions])
        rows = [[demonstrations[positions[place]][:-1] for place in group] for group in groups]
        return [right_padded(group, self.backbone.device) for group in rows]

    def step(self, pair: int) -> None:
        """One calibration step, as a client takes it in round ``pair``."""
        turn = ClientRound(_CLIENT, round=pair, phase_start=0, phase_rounds=pair + 1)
        calibrate(
            self.scorer, EncodedExamples(self.prompts, tuple(self.labels)), self.context, self.coefficients, self.method, turn
        )

    def injected(self) -> AbstractContextManager[None]:
        """Inject the vectors with the initial coefficients at every write."""
        return applied(self.backbone, self.context, self.coefficients)


def parser(docstring: str | None, *, pairs: int = 20, examples: int = 32) -> argparse.ArgumentParser:
    """The arguments of every benchmark."""
    result = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--model", help="hub id, folder or .gguf file (default: the model of `ifedicl demo`)")
    result.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: %(default)s)")
    result.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    result.add_argument("--threads", type=int, help="threads of torch (default: torch's choice)")
    result.add_argument("--pairs", type=int, default=pairs, help="measured pairs (default: %(default)s)")
    result.add_argument("--examples", type=int, default=examples, help="made-up sentences (default: %(default)s)")
    result.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def use_threads(arguments: argparse.Namespace) -> None:
    """Set torch's number of threads."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)


def model_settings(arguments: argparse.Namespace) -> ModelSettings:
    """The model that the arguments name, downloaded if it is the demo's."""
    source = arguments.model
    if source is None:
        from ifedicl.demo.fetch import demo_model

        source = str(demo_model())
    return ModelSettings(source=source, dtype=arguments.dtype, device=arguments.device)


def bench(arguments: argparse.Namespace, task: Task = TASK) -> Bench:
    """Load the model and encode made-up text, labelled in turn."""
    use_threads(arguments)
    method = Method(calibration=CalibrationSettings(local_steps=1, loss="vocabulary"))
    return bench_of(load_backbone(model_settings(arguments)), method, arguments.examples, task)


def bench_of(backbone: Backbone, method: Method, examples: int, task: Task = TASK) -> Bench:
    """As :func:`bench`, with a model at hand."""
    scorer = Scorer(backbone, task)
    prompts = scorer.encoder.prompts([example.text for example in sentences(examples)])
    labels = tuple(number % len(task.labels) for number in range(examples))
    vectors = context_vectors(scorer, prompts.tokens, labels, method).mean().astype(np.float32)
    return Bench(scorer, prompts, labels, method, Context(vectors), cold_start(Form(backbone.layers), method.injection))


def sentences(count: int, *, seed: int = 0) -> tuple[Example, ...]:
    """``count`` made-up labelled sentences with a skewed distribution of lengths; every label occurs."""
    draw, words = seeds.generator(seed, "benchmark text"), _VOCABULARY.split()
    lengths = np.exp(draw.normal(np.log(_MEDIAN_WORDS), _LOG_SPREAD, count)).round().clip(_FEWEST_WORDS, _MOST_WORDS)
    return tuple(
        Example(" ".join(draw.choice(words, int(length))).capitalize() + ".", TASK.labels[number % len(TASK.labels)])
        for number, length in enumerate(lengths)
    )


def timed(work: Callable[[int], object]) -> Side:
    """Seconds of ``work(pair)``, until the device is done."""

    def side(pair: int) -> float:
        gc.collect()
        _wait()
        start = time.perf_counter()
        work(pair)
        _wait()
        return time.perf_counter() - start

    return side


def compare(claim: Claim, first: Side, second: Side, pairs: int, *, warm_up: bool = True) -> Comparison:
    """Measure both sides in turn.

    Args:
        claim: the ratio and its bounds.
        first: the ratio's numerator.
        second: its denominator. Both sides of a pair do the same work.
        pairs: their number, 1 or more.
        warm_up: run both sides once before, unmeasured.
    """
    if warm_up:
        first(0)
        second(0)
    return Comparison(claim, tuple(_pair(first, second, pair) for pair in range(pairs)))


def _pair(first: Side, second: Side, pair: int) -> tuple[float, float]:
    if pair % 2 == 0:
        return first(pair), second(pair)
    late = second(pair)
    return first(pair), late


def report(title: str, arguments: argparse.Namespace, comparisons: Sequence[Comparison], **facts: object) -> None:
    """Print the measurements and their setting.

    Args:
        title: of the benchmark.
        arguments: from the command line.
        comparisons: the measurements.
        facts: further figures.
    """
    setting = {**machine(), "dtype": arguments.dtype, "device": arguments.device, "examples": arguments.examples, **facts}
    if arguments.json:
        print(json.dumps({"benchmark": title, **setting, "comparisons": [as_json(item) for item in comparisons]}))
        return
    print(f"{title}: median (minimum to maximum) of {arguments.pairs} interleaved pairs")
    print("  " + ", ".join(f"{name} {value}" for name, value in setting.items()))
    for item in comparisons:
        first, second = item.claim.ratio.split(" / ")
        print(f"  {item.claim.ratio}: {item.claim.bound}")
        print(f"    ratio {item.ratio}  {item.verdict}")
        for name, spread in ((first, item.first), (second, item.second)):
            print(f"    {spread} {item.claim.unit}  {name}")


def machine() -> dict[str, object]:
    """Processor, threads and versions: the figures depend on these."""
    return {"cpu": _cpu(), "cores": _cores(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def as_json(item: Comparison) -> dict[str, object]:
    """For a results file."""
    spreads = {"ratio": asdict(item.ratio), "first": asdict(item.first), "second": asdict(item.second)}
    return {"claim": asdict(item.claim), "verdict": item.verdict, **spreads, "pairs": item.pairs}


def _cpu() -> str:
    return next(_cpu_names(), platform.processor() or platform.machine())


def _cpu_names() -> Iterator[str]:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        yield from (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
