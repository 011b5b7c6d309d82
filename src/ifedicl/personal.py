"""Personal coefficients: an owner calibrates the federation's adapter further on its own examples.

The federation's adapter suits all its clients together; a client with different text may profit from a few more steps. Nothing
is sent. The personal coefficients are used only if they are better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scorers import scorer_of
from ifedicl.calibrate import ClientRound, calibrate
from ifedicl.data import Role, split_roles
from ifedicl.errors import DataError
from ifedicl.inputs import fraction, whole_number
from ifedicl.kinds.examples import AnyExample
from ifedicl.metrics import Comparison
from ifedicl.settings import Method, changed, method_of

_STEPS_AT_ONCE = 4
_FEWEST_HELD_OUT = 2  # the paired bound needs a variance


@dataclass(frozen=True)
class Personal:
    """The result of :func:`personalise`.

    Attributes:
        adapter: the adapter with personal coefficients, or the federation's if they are not better.
        comparison: the personal adapter against the federation's (in place of zero-shot) on held-out examples.
        trained: the number of training examples.
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
    examples: Sequence[AnyExample],
    backbone: Backbone,
    *,
    steps: int = 40,
    held_out: float = 0.3,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Personal:
    """Calibrate an adapter's coefficients further on one owner's examples.

    Context vectors, basis and readout do not change. Optimizer, learning rate, batch size and injected layers are those in the
    adapter's provenance.

    Args:
        adapter: a federation's adapter.
        examples: the owner's examples, labelled with the adapter's labels.
        backbone: the adapter's model.
        steps: optimizer steps; rounded up to a multiple of 4.
        held_out: fraction of the examples that is held out and decides, in (0, 1).
        seed: of the split and the batches.
        on_progress: called with the number of steps just done.

    Raises:
        InputError: ``steps``, ``held_out`` or ``seed`` is not in its range.
        DataError: too few examples for training or for the decision.
        FingerprintError: the adapter was made with another model.
    """
    steps = whole_number(steps, "steps", least=1, remedy="40 are usual")
    held_out = fraction(held_out, "held_out", remedy="0.3 is usual")
    seed = whole_number(seed, "seed", least=0, remedy="0 is usual")
    adapter.on_model(backbone)  # refuses another model
    roles = split_roles(examples, selection=held_out, gate=0.0, seed=seed)
    train, decide = roles[Role.TRAIN], roles[Role.SELECTION]
    if not train or len(decide) < _FEWEST_HELD_OUT:
        raise DataError(
            f"examples: received {len(examples)}, {len(train)} to train on and {len(decide)} held out; allowed: at least 1 and "
            f"{_FEWEST_HELD_OUT}. Give more examples"
        )
    sections = {"seed": seed, "calibration": {"local_steps": _STEPS_AT_ONCE}}
    stated = method_of(adapter.provenance) if "method" in adapter.provenance else Method()
    method = changed(stated, sections, "the adapter's settings")
    scorer = scorer_of(backbone, adapter.task, first_layer=method.injected_layers(backbone.layers).start)
    encoded = scorer.encoded(train)
    coefficients, rounds = adapter.coefficients, math.ceil(steps / _STEPS_AT_ONCE)
    for number in range(rounds):
        turn = ClientRound("personal", number, 0, rounds)
        coefficients = calibrate(scorer, encoded, adapter.context, coefficients, method, turn).coefficients
        if on_progress is not None:
            on_progress(_STEPS_AT_ONCE)
    personal = replace(adapter, coefficients=coefficients)
    ours, theirs = (candidate.on_model(backbone).scores(decide) for candidate in (personal, adapter))
    comparison = adapter.task.comparison(ours, theirs, scorer.encoded(decide).labels)
    facts = {"examples": len(train), "steps": rounds * _STEPS_AT_ONCE, "held_out": asdict(comparison)}
    chosen = replace(personal, provenance={**adapter.provenance, "personal": facts}) if comparison.is_better else adapter
    return Personal(chosen, comparison, len(train))
