"""Claim: labelling text with an adapter runs at no less than 0.95 of zero-shot speed.

First side: ``Scorer.log_probabilities`` of the raw model. Second side: the same prompts inside ``injected``, with λ and β at
every write of every layer.
"""

from __future__ import annotations

from _pairs import Claim, bench, compare, parser, report, timed


def main() -> None:
    arguments = parser(__doc__).parse_args()
    setup = bench(arguments)

    def zero_shot(_: int) -> None:
        setup.scorer.log_probabilities(setup.prompts)

    def adapted(_: int) -> None:
        with setup.injected():
            setup.scorer.log_probabilities(setup.prompts)

    comparison = compare(Claim("zero-shot / injected", at_least=0.95), timed(zero_shot), timed(adapted), arguments.pairs)
    report("inference", arguments, [comparison])


if __name__ == "__main__":
    main()
