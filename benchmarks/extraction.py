"""Claim: reading context vectors runs at no less than 0.90 of the speed of the bare model.

First side: the model's body, batched, without LM head, over ready-made batches. Second side: ``context_vectors`` over the same
demonstrations, which makes the very same batches itself, records both writes of every layer and sums them up in float64.
"""

from __future__ import annotations

import torch

from _pairs import Claim, bench, compare, parser, report, timed
from ifedicl.extract import context_vectors


def main() -> None:
    arguments = parser(__doc__).parse_args()
    setup = bench(arguments)
    batches = setup.batches(setup.demonstrations())

    @torch.inference_mode()
    def body(_: int) -> None:
        for batch in batches:
            setup.backbone.hidden_states(batch)

    def extraction(_: int) -> None:
        context_vectors(setup.scorer, setup.prompts.tokens, setup.labels, setup.method)

    comparison = compare(Claim("body / extraction", at_least=0.90), timed(body), timed(extraction), arguments.pairs)
    report("extraction", arguments, [comparison], batches=len(batches))


if __name__ == "__main__":
    main()
