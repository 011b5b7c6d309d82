"""What ifedicl costs on a GPU: parity with the CPU first, then each ratio of the goals with its spread, then profiles.

No weights are needed: the models have the shapes of Llama-3-8B, Qwen2.5-7B and SmolLM2-135M and random numbers. Text is made
up, about 30 tokens a prompt. One file for each shape is written to ``--out``. On one GPU all of it should take less than 8
minutes: a shape that reaches ``--seconds`` leaves its last rows out and says so. ``--tiny`` runs everything on a CPU with a
model of two small layers. The exit code is 1 if numbers differ from the CPU's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.optim import AdamW

import _gpu_parity
from _gpu_profile import peak, profiled
from _gpu_shapes import SHAPES, TINY, backbone_of
from _pairs import TASK, Bench, Claim, Comparison, as_json, bench_of, compare, machine, sentences, timed
from ifedicl.backbone.capture import Captures, CudaGraphs
from ifedicl.backbone.losses import LABELS
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.methods.lora import lora_layers
from ifedicl.calibrate import ClientRound, batches_of, calibrate
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.subspace import Context, subspace_basis
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Role
from ifedicl.extract import context_vectors
from ifedicl.federation.client_task import ClientTask, ExampleSums
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.public_text import PublicText
from ifedicl.federation.reference_text import REFERENCE_TEXTS
from ifedicl.kinds.classify import Example
from ifedicl.settings import CalibrationSettings, Method, load_preset
from ifedicl.settings.presets import changed
from lockstep import in_lockstep, in_turn

_OWNED, _ROUNDS, _STEPS, _BATCH = 64, 4, 2, 16  # of a client whose seconds are compared
_BATCHES = (4, 16, 64)
_LOSSES = {"labels": 1.10, "vocabulary": 1.15}  # most times a bare pass


@dataclass(frozen=True)
class Card:
    """A shape on a device, with as much text as its rows need.

    Attributes:
        bench: model, text and the paper's form at all layers.
        examples: the same text, labelled.
    """

    bench: Bench
    examples: tuple[Example, ...]

    @classmethod
    def of(cls, shape: str, device: torch.device, examples: int) -> Card:
        """Random weights in the dtype that the device is good at."""
        backbone = backbone_of(shape, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
        method = Method(calibration=CalibrationSettings(local_steps=1))
        return cls(bench_of(backbone, method, examples), sentences(examples))

    def steps_of(self, batch_size: int, loss: str) -> Bench:
        """The bench with steps of another size and loss."""
        settings = self.bench.method.calibration.model_copy(update={"batch_size": batch_size, "loss": loss})
        return replace(self.bench, method=self.bench.method.model_copy(update={"calibration": settings}))


Row = Callable[[Card, int], Comparison]
"""Measures one ratio in so many pairs."""


def extraction(card: Card, pairs: int) -> Comparison:
    """The bare body over the demonstrations, against context vectors of them."""
    bench, batches = card.bench, card.bench.batches(card.bench.demonstrations())

    @torch.inference_mode()
    def body(_: int) -> None:
        for batch in batches:
            bench.backbone.hidden_states(batch)

    def ours(_: int) -> None:
        context_vectors(bench.scorer, bench.prompts.tokens, bench.labels, bench.method)

    return compare(Claim("body / extraction", at_least=0.95), timed(body), timed(ours), pairs)


def inference(card: Card, pairs: int) -> Comparison:
    """The raw model, against the paper's form at every write."""

    def zero_shot(_: int) -> None:
        card.bench.scorer.log_probabilities(card.bench.prompts)

    def adapted(_: int) -> None:
        with card.bench.injected():
            card.bench.scorer.log_probabilities(card.bench.prompts)

    return compare(Claim("zero-shot / injected", at_least=0.98), timed(zero_shot), timed(adapted), pairs)


def bare_step(bench: Bench) -> Callable[[int], None]:
    """The body forward, and backward to the embeddings: the same rows in the same passes as ``bench.step``."""
    embed = bench.backbone.model.get_input_embeddings()

    def bare(pair: int) -> None:
        for batch in bench.step_batches(pair):
            embedded = embed(batch).requires_grad_()
            states = bench.backbone.model.base_model(inputs_embeds=embedded, use_cache=False)[0]
            states.backward(torch.ones_like(states))

    return bare


def steps(batch_size: int, loss: str) -> Row:
    """A calibration step of the paper's form, against a bare pass."""

    def row(card: Card, pairs: int) -> Comparison:
        bench = card.steps_of(batch_size, loss)
        claim = Claim(f"step of {batch_size}, {loss} / bare pass", at_most=_LOSSES[loss])
        return compare(claim, timed(bench.step), timed(bare_step(bench)), pairs)

    return row


def together(clients: int) -> Row:
    """One step of several clients whose rows share a pass, against one step of one of them."""

    def row(card: Card, pairs: int) -> Comparison:
        bench = card.steps_of(4, "labels")
        claim = Claim(f"{clients} clients of 4 in lockstep / one", at_most=1.5)
        return compare(claim, timed(in_lockstep(bench, clients)), timed(in_turn(bench, 1)), pairs)

    return row


def launched(batch_size: int, launches: str) -> Row:
    """A step with fused injections (auto), or also replayed as a CUDA graph (captured), against the same step with neither."""

    def row(card: Card, pairs: int) -> Comparison:
        bench = card.steps_of(batch_size, "labels")
        plain, other = _launching(bench, "plain"), _launching(bench, launches)
        for _ in range(2):  # the first step of a shape runs plainly, the second is captured
            for pair in range(pairs + 1):
                other.step(pair)
        return compare(Claim(f"step of {batch_size}, launches {launches} / plain"), timed(other.step), timed(plain.step), pairs)

    return row


def captured_extraction(card: Card, pairs: int) -> Comparison:
    """Context vectors with passes replayed as CUDA graphs, against plain ones."""

    def extract(bench: Bench) -> Callable[[int], None]:
        def run(_: int) -> None:
            context_vectors(bench.scorer, bench.prompts.tokens, bench.labels, bench.method)

        return run

    plain, other = extract(_launching(card.bench, "plain")), extract(_launching(card.bench, "captured"))
    for pair in range(2):
        other(pair)
    return compare(Claim("extraction, launches captured / plain"), timed(other), timed(plain), pairs)


def _launching(bench: Bench, launches: str) -> Bench:
    """The bench with another ``model.launches``; on a CPU there is nothing to capture."""
    backbone = bench.backbone
    captures = Captures(CudaGraphs()) if launches == "captured" and backbone.device.type == "cuda" else None
    return replace(bench, scorer=Scorer(replace(backbone, launches=launches, captures=captures), TASK))


def lora_steps(batch_size: int) -> Row:
    """A step of LoRA, r=8 on queries and values, against a bare pass."""

    def row(card: Card, pairs: int) -> Comparison:
        bench = card.steps_of(batch_size, "labels")

        def step(pair: int) -> None:
            with lora_layers(bench.backbone) as layers:
                _lora(bench, list(layers.parameters.values()), [bench.step_positions(pair)])

        return compare(Claim(f"LoRA step of {batch_size} / bare pass"), timed(step), timed(bare_step(bench)), pairs)

    return row


def _lora(bench: Bench, weights: Sequence[torch.nn.Parameter], batches: Sequence[Sequence[int]]) -> None:
    optimizer = AdamW(weights, 1e-3, weight_decay=0.0, fused=True)
    for rows in batches:
        optimizer.zero_grad()
        for part in bench.scorer.batches([bench.prompts.tokens[row] for row in rows], trains=True):
            chosen = [rows[place] for place in part]
            tokens, labels = [bench.prompts.tokens[row] for row in chosen], [bench.labels[row] for row in chosen]
            (bench.scorer.losses(LABELS, tokens, labels).sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def client(preset: str, rounds: int, goal: float) -> Row:
    """All that a client computes in a run (vectors, rounds, readout sums), against LoRA's steps of the same examples."""

    def row(card: Card, pairs: int) -> Comparison:
        settings = {"batch_size": _BATCH, "local_steps": _STEPS}
        method = changed(load_preset(preset), {"calibration": settings, "rounds": {"rounds": max(rounds, 1)}}, preset)
        backbone = card.bench.backbone
        layers = method.injection.active_layers(backbone.layers)
        given, start = _given(card, method, layers)
        manifest, owned = Manifest.of(TASK, method, backbone.shape), card.examples[:_OWNED]

        def ours(_: int) -> None:
            scorer = Scorer(backbone, TASK, first_layer=layers.start)
            task = ClientTask(manifest, scorer, owned, ExampleSums(PublicText(REFERENCE_TEXTS)), 0)
            task.vectors(0)
            now = start
            for number in range(rounds):
                rows = task.part(Role.TRAIN)
                now = calibrate(scorer, rows, given, now, method, ClientRound("bench", number, 0, rounds)).coefficients
            if method.readout is not None:
                task.statistics(given, now)

        def theirs(_: int) -> None:
            batches = batches_of(0, _ROUNDS * _STEPS, len(owned), _BATCH, 0, "bench")
            with lora_layers(backbone) as adapted:
                _lora(card.bench, list(adapted.parameters.values()), batches)

        name = f"client, preset {preset}, {rounds} rounds / LoRA, {_ROUNDS} rounds"
        return compare(Claim(name, at_most=goal), timed(ours), timed(theirs), pairs)

    return row


def _given(card: Card, method: Method, layers: range) -> tuple[Context, Coefficients]:
    """What the coordinator would send: a context of the bench's vectors, and where the rounds begin."""
    rank = method.subspace.rank if method.subspace else 0
    vectors = card.bench.context.vectors[layers.start :]
    draw = np.random.default_rng(0)
    means = ContextVectors.zeros(1, len(layers), vectors.shape[2]).present_means
    basis = subspace_basis(means, rank, draw, first_layer=layers.start) if rank else None
    return Context(vectors, basis, layers.start), cold_start(Form(len(layers), rank), method.injection)


ROWS: dict[str, Row] = {
    "extraction": extraction,
    "inference": inference,
    **{f"step {size} {loss}": steps(size, loss) for size in _BATCHES for loss in _LOSSES},
    "ten clients in lockstep": together(10),
    "client, paper's form": client("paper", _ROUNDS, 0.8),
    "client, default": client("subspace", _ROUNDS, 0.4),
    "client, one shot": client("readout", 0, 0.1),
    **{f"step {size}, {kind}": launched(size, kind) for size in (4, 16) for kind in ("auto", "captured")},
    "extraction, captured": captured_extraction,
    **{f"LoRA step {size}": lora_steps(size) for size in _BATCHES},
}


def measured(shape: str, device: torch.device, arguments: argparse.Namespace) -> dict[str, object]:
    """Parity, all rows, memory and profile of one shape."""
    begun = time.perf_counter()
    parity = _gpu_parity.parity(arguments.parity, device)
    card = Card.of(shape, device, arguments.examples)
    facts: dict[str, object] = {
        "shape": {"name": shape, **SHAPES[shape]},
        "day": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **machine(),
        "dtype": card.bench.backbone.dtype,
        "examples": arguments.examples,
        "tokens a prompt": round(float(np.mean([len(tokens) for tokens in card.bench.prompts.tokens])), 1),
        "parity": {"model": arguments.parity, "kinds": [asdict(item) for item in parity]},
        "parity holds": all(item.holds for item in parity),
    }
    rows = dict(_rows(card, arguments, begun))
    facts |= {"rows": rows, "left out for time": [name for name in ROWS if name not in rows]}
    return facts | {
        "peak": peak(card.steps_of(64, "labels")),
        "profile": profiled(card.steps_of(_BATCH, "labels"), bare_step(card.steps_of(_BATCH, "labels"))),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _rows(card: Card, arguments: argparse.Namespace, begun: float) -> Iterator[tuple[str, dict[str, object]]]:
    for name, row in ROWS.items():
        if time.perf_counter() - begun > arguments.seconds:
            return
        comparison = row(card, arguments.pairs)
        print(f"  {comparison.claim.ratio}: {comparison.ratio}  {comparison.claim.bound}  {comparison.verdict}", flush=True)
        yield name, as_json(comparison)


def main(words: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in SHAPES if name != TINY]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on a CPU, to see that this script works")
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of each row (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=256, help="made-up sentences (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=140.0, help="most for a shape's rows (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"), help="(default: %(default)s)")
    arguments = parser.parse_args(words)
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("torch finds no GPU. With --tiny the script runs on a CPU, with a model that says nothing about speed")
    device = torch.device("cpu" if arguments.tiny else "cuda")
    arguments.parity = TINY if arguments.tiny else "smollm2-135m"
    arguments.out.mkdir(parents=True, exist_ok=True)
    differs = False
    for shape in [TINY] if arguments.tiny else arguments.shapes:
        print(shape)
        facts = measured(shape, device, arguments)
        (arguments.out / f"{shape}.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(f"  {facts['parity']}\n  {facts['peak']}\n  {facts['left out for time'] or 'no row left out'}")
        differs = differs or not facts["parity holds"]
    if differs:
        raise SystemExit("the device computes other numbers than the CPU: see parity")


if __name__ == "__main__":
    main()
