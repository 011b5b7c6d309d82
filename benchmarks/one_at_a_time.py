"""Claim: batched extraction is at least twice as fast as one example at a time, as the I2CL paper describes it.

I2CL (Li et al., arXiv 2405.14660) runs each demonstration through the whole model with the LM head, and stores both writes of
every layer for every token, though it reads only the last one. Its calibration takes two examples a step and logits at every
token; here it takes as many steps as cover the examples of one step of ours. Its inference labels one prompt at a time, with
logits at every token too. These two ratios are for information. Injection and optimizer are the same on both sides; only the
grouping of examples and the computed states differ.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from _pairs import Bench, Claim, bench, compare, parser, report, timed
from ifedicl.backbone.hooks import injected
from ifedicl.backbone.layout import right_padded
from ifedicl.core.vectors import Array64
from ifedicl.extract import context_vectors

_I2CL_BATCH = 2


def main() -> None:
    arguments = parser(__doc__).parse_args()
    setup = bench(arguments)
    if arguments.dtype == "float32":  # both sides must do the same work; half precision rounds by batch
        np.testing.assert_allclose(slow_vectors(setup), batched_vectors(setup), rtol=1e-3, atol=1e-3)

    def fast_extraction(_: int) -> None:
        batched_vectors(setup)

    def slow_extraction(_: int) -> None:
        slow_vectors(setup)

    def fast_inference(_: int) -> None:
        with setup.injected():
            setup.scorer.log_probabilities(setup.prompts)

    extraction = Claim("one at a time extraction / batched extraction", at_least=2.0)
    calibration = Claim("I2CL calibration steps / calibration step")
    inference = Claim("one at a time inference / batched inference")
    comparisons = [
        compare(extraction, timed(slow_extraction), timed(fast_extraction), arguments.pairs),
        compare(calibration, timed(partial(slow_steps, setup)), timed(setup.step), arguments.pairs),
        compare(inference, timed(partial(slow_inference, setup)), timed(fast_inference), arguments.pairs),
    ]
    report("one at a time", arguments, comparisons)


def batched_vectors(setup: Bench) -> Array64:
    """``(L, 2, d)``, as ifedicl computes it."""
    return context_vectors(setup.scorer, setup.prompts.tokens, setup.labels, setup.method).mean()


@torch.inference_mode()
def slow_vectors(setup: Bench) -> Array64:
    """``(L, 2, d)``, from all writes of each example: a list of ``2L`` tensors ``(1, T, d)``."""
    writes: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        writes.append(output)

    total: Array64 = np.zeros(setup.context.vectors.shape)
    demonstrations = setup.demonstrations()
    with ExitStack() as stack:
        for modules in setup.backbone.writes:
            for module in modules:
                stack.callback(module.register_forward_hook(keep).remove)
        for demonstration in demonstrations:
            writes.clear()
            _logits(setup, right_padded([demonstration], setup.backbone.device))
            last = torch.stack([write.flatten(0, -2)[-1] for write in writes])  # (2L, d), in the order of the layers
            total += last.double().cpu().numpy().reshape(total.shape)
    return total / len(demonstrations)


def slow_steps(setup: Bench, pair: int) -> None:
    """Optimizer steps of two examples each over the examples of ``setup.step(pair)``."""
    positions, settings = setup.step_positions(pair), setup.method.calibration
    scales = torch.from_numpy(setup.coefficients.scales.copy()).requires_grad_()
    optimizer = torch.optim.AdamW([scales], settings.learning_rate, weight_decay=settings.weight_decay)
    context = setup.context.on(setup.backbone.device)
    demonstrations = setup.demonstrations()
    for start in range(0, len(positions), _I2CL_BATCH):
        rows = [demonstrations[position] for position in positions[start : start + _I2CL_BATCH]]
        tokens = right_padded([row[:-1] for row in rows], setup.backbone.device)
        with injected(setup.backbone, context, scales, setup.coefficients.active):
            logits = _logits(setup, tokens)  # (B, T, V)
        read = logits[range(len(rows)), [len(row) - 2 for row in rows]]  # (B, V)
        loss = functional.cross_entropy(read.float(), torch.tensor([row[-1] for row in rows], device=read.device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


@torch.inference_mode()
def slow_inference(setup: Bench, _: int) -> None:
    """Label the prompts, one forward pass each."""
    words = [word[0] for word in setup.scorer.encoder.tree.words]
    with setup.injected():
        for prompt in setup.prompts.tokens:
            _logits(setup, right_padded([prompt], setup.backbone.device))[0, -1, words].log_softmax(dim=-1).tolist()


def _logits(setup: Bench, tokens: Tensor) -> Tensor:
    """``(B, T, V)``: the whole model, LM head at every token."""
    logits: Tensor = setup.backbone.model(input_ids=tokens, use_cache=False).logits
    return logits


if __name__ == "__main__":
    main()
