"""One owner's own coefficients on top of the federation's: they never leave, and stay only where they help.

A federation's adapter is the best for all its clients together; a client whose text differs may go a few steps further on its
own examples. Nothing is sent, so nothing is asked of anyone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.data import Example, Role, split_roles
from ifedicl.errors import DataError
from ifedicl.metrics import Comparison
from ifedicl.settings import Method, changed, method_of

_STEPS_AT_ONCE = 4
_FEWEST_HELD_OUT = 2  # a paired bound needs a spread


@dataclass(frozen=True)
class Personal:
    """What personal steps came to.

    Attributes:
        adapter: with personal coefficients, or the federation's own where they are no better.
        comparison: the personal adapter against the federation's (in place of zero-shot) on examples that were not trained on.
        trained: examples that were.
    """

    adapter: Adapter
    comparison: Comparison
    trained: int

    @property
    def is_used(self) -> bool:
        """Whether the personal coefficients are better by the paired bound that the gate uses."""
        return self.comparison.is_better


def personalise(
    adapter: Adapter,
    examples: Sequence[Example],
    backbone: Backbone,
    *,
    steps: int = 40,
    held_out: float = 0.3,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Personal:
    """Calibrate an adapter's coefficients further on one owner's examples.

    Context vectors, basis and readout stay the federation's. Optimizer, rate, batch and injected layers are those of the
    federation, as the adapter tells them.

    Args:
        adapter: of a federation.
        examples: the owner's, labelled with the adapter's labels.
        backbone: the adapter's model.
        steps: optimizer steps; rounded up to a multiple of 4.
        held_out: fraction of the examples that is not trained on and decides, in (0, 1).
        seed: of the split and the batches.
        on_progress: called with the number of steps just done.

    Raises:
        DataError: too few examples to train on some and decide by others.
        FingerprintError: the adapter was made with another model.
    """
    adapter.classifier(backbone)  # they belong together
    roles = split_roles(examples, selection=held_out, gate=0.0, seed=seed)
    train, decide = roles[Role.TRAIN], roles[Role.SELECTION]
    if not train or len(decide) < _FEWEST_HELD_OUT:
        raise DataError(
            f"{len(examples)} examples are {len(train)} to train on and {len(decide)} to decide by; give more, at least 1 and "
            f"{_FEWEST_HELD_OUT} are needed"
        )
    sections = {"seed": seed, "calibration": {"local_steps": _STEPS_AT_ONCE}}
    stated = method_of(adapter.provenance) if "method" in adapter.provenance else Method()
    method = changed(stated, sections, "the adapter's settings")
    scorer = Scorer(backbone, adapter.task, first_layer=method.injection.active_layers(backbone.layers).start)
    encoded = scorer.encoded(train)
    coefficients, rounds = adapter.coefficients, math.ceil(steps / _STEPS_AT_ONCE)
    for number in range(rounds):
        turn = ClientRound("personal", number, 0, rounds)
        coefficients = calibrate(scorer, encoded, adapter.context, coefficients, method, turn).coefficients
        if on_progress is not None:
            on_progress(_STEPS_AT_ONCE)
    own = replace(adapter, coefficients=coefficients)
    texts, truth = [row.text for row in decide], [adapter.task.index(row.label) for row in decide]
    ours, theirs = (candidate.classifier(backbone).log_probabilities(texts) for candidate in (own, adapter))
    comparison = Comparison.of(ours, theirs, truth)
    facts = {"examples": len(train), "steps": rounds * _STEPS_AT_ONCE, "held_out": asdict(comparison)}
    chosen = replace(own, provenance={**adapter.provenance, "personal": facts}) if comparison.is_better else adapter
    return Personal(chosen, comparison, len(train))
