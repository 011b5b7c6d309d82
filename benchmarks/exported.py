"""Claim: an exported checkpoint runs at no less than 0.95 of the plain model's speed.

First side: the plain model. Second side: the checkpoint of `ifedicl export`, with λ and β at every write of every
layer folded in (a Llama gets biases for it). Both label the same prompts without any hook.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from _pairs import TASK, Claim, bench, compare, model_settings, parser, report, timed
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import load_backbone
from ifedicl.backbone.scoring import Scorer


def main() -> None:
    arguments = parser(__doc__).parse_args()
    setup, settings = bench(arguments), model_settings(arguments)
    adapter = Adapter(TASK, setup.context, setup.coefficients, settings, setup.backbone.fingerprint)
    with tempfile.TemporaryDirectory() as folder:
        adapter.export(Path(folder) / "checkpoint", setup.backbone)
        scorer = Scorer(load_backbone(settings.model_copy(update={"source": f"{folder}/checkpoint"})), TASK)
    with setup.injected():
        adapted = setup.scorer.log_probabilities(setup.prompts)
    if arguments.dtype == "float32":
        np.testing.assert_allclose(scorer.log_probabilities(setup.prompts), adapted, atol=1e-4)

    def plain(_: int) -> None:
        setup.scorer.log_probabilities(setup.prompts)

    def exported(_: int) -> None:
        scorer.log_probabilities(setup.prompts)

    comparison = compare(Claim("plain / exported", at_least=0.95), timed(plain), timed(exported), arguments.pairs)
    report("exported", arguments, [comparison])


if __name__ == "__main__":
    main()
