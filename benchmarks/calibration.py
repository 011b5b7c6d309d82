"""Claim: a step of calibration takes no more than 1.15 times a bare forward and backward pass.

First side: ``calibrate`` with one local step: forward with all 2L writes injected, label read against the whole vocabulary,
backward to the coefficients, optimizer step. Second side: the model's body forward, and backward to the input embeddings, on
the same batch in the same groups of similar length; no LM head, no loss. Every pair takes another batch.
"""

from __future__ import annotations

import torch

from _pairs import Claim, bench, compare, parser, report, timed


def main() -> None:
    arguments = parser(__doc__).parse_args()
    setup = bench(arguments)
    embed = setup.backbone.model.get_input_embeddings()
    batches = [setup.step_batches(pair) for pair in range(arguments.pairs)]

    def bare(pair: int) -> None:
        for batch in batches[pair]:
            embedded = embed(batch).requires_grad_()
            states = setup.backbone.model.base_model(inputs_embeds=embedded, use_cache=False)[0]
            states.backward(torch.ones_like(states))

    claim = Claim("calibration step / bare forward and backward", at_most=1.15)
    comparison = compare(claim, timed(setup.step), timed(bare), arguments.pairs)
    report("calibration", arguments, [comparison], batch=setup.method.calibration.batch_size)


if __name__ == "__main__":
    main()
