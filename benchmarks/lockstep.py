"""For information: a step of ten clients in lockstep, against the same steps one after another, and against one of them.

Clients in lockstep share each pass, every row with its own client's coefficients. That saves what a pass costs whatever
its size: on a GPU the launches, which `gpu.py` measures. A processor computes as long for the rows of ten clients as for
ten times the rows of one, so only a small model gains. Two models: SmolLM2-135M, and a random one of 30 thin layers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from _gpu_shapes import TINY, backbone_of
from _pairs import Bench, Claim, bench, bench_of, compare, parser, report, timed
from ifedicl.backbone.lockstep import Lockstep
from ifedicl.backbone.prompts import EncodedExamples
from ifedicl.calibrate import ClientRound, calibrate

CLIENTS = 10
_THIN_LAYERS = 30


def in_turn(setup: Bench, clients: int) -> Callable[[int], None]:
    """A step of each client, one after another."""

    def steps(pair: int) -> None:
        for number in range(clients):
            _step(setup, number, pair, None)

    return steps


def in_lockstep(setup: Bench, clients: int) -> Callable[[int], None]:
    """A step of each client, all in one pass."""
    lockstep = Lockstep()

    def member(number: int, pair: int) -> None:
        with lockstep.member(number):
            _step(setup, number, pair, lockstep)

    def steps(pair: int) -> None:
        lockstep.begin(clients)
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(member, range(clients), [pair] * clients))

    return steps


def _step(setup: Bench, number: int, pair: int, shared: Lockstep | None) -> None:
    turn = ClientRound(f"client {number}", pair, 0, pair + 1)
    examples = EncodedExamples(setup.prompts, setup.labels)
    calibrate(setup.scorer, examples, setup.context, setup.coefficients, setup.method, turn, lockstep=shared)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    real = bench(arguments)
    thin = bench_of(backbone_of(TINY, torch.device("cpu"), torch.float32, layers=_THIN_LAYERS), real.method, arguments.examples)
    comparisons = [
        compare(
            Claim(f"{name}: {CLIENTS} clients in lockstep / {others}"),
            timed(in_lockstep(setup, CLIENTS)),
            timed(in_turn(setup, count)),
            arguments.pairs,
        )
        for name, setup in (("SmolLM2-135M" if arguments.model is None else arguments.model, real), ("30 thin layers", thin))
        for others, count in (("ten in turn", CLIENTS), ("one", 1))
    ]
    report("lockstep", arguments, comparisons, batch=real.method.calibration.batch_size)


if __name__ == "__main__":
    main()
