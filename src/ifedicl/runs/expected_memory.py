"""The memory that a run's calibration needs on one machine, before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ifedicl.backbone.families import writes_of
from ifedicl.backbone.layer_cache import MOST_BYTES
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.memory import RESERVE, ModelMemory
from ifedicl.backbone.scorers import scorer_of
from ifedicl.kinds.examples import AnyExample
from ifedicl.settings import RunSettings

_SAMPLE = 64  # texts of each client


def expected_memory(settings: RunSettings, backbone: Backbone, clients: Mapping[str, Sequence[AnyExample]]) -> dict[str, int]:
    """Bytes that calibration needs on one machine, planned from the model's configuration and a sample of the texts.

    ``weights`` are those of ``model.quantisation``, if there is one. ``peak`` is the weights, one pass of a step, and what is
    kept of the lower layers for all clients; ``gpu`` is that and what a GPU's driver and allocator take. The setting
    ``model.max_pass_tokens`` bounds ``tokens_in_a_pass``. On a GPU more is kept where there is room, and then on the host.
    """
    config = backbone.model.config
    writes = writes_of(config.model_type, settings.model.writes)
    memory = ModelMemory.of(config, writes, backbone.model.dtype, backbone.quantisation)
    scorer = scorer_of(backbone, settings.task)
    sample = scorer.encoded([example for examples in clients.values() for example in examples[:_SAMPLE]])
    lengths = [backbone.padded(width) for width in scorer.widths(sample)]
    step = settings.calibration.batch_size * max(lengths)
    bound = scorer.budget.tokens if backbone.trained_tokens is None else min(scorer.budget.tokens, backbone.trained_tokens)
    in_a_pass = max(max(lengths), min(step, bound))
    kept = 0
    if settings.method.injected_layers(backbone.layers).start:
        examples = sum(map(len, clients.values()))
        kept = min(MOST_BYTES // memory.kept_token, examples * sum(lengths) // len(lengths))
    peak = memory.peak(in_a_pass, kept)
    return {
        "weights": memory.weights,
        "token_of_a_step": memory.trained_token,
        "tokens_in_a_pass": in_a_pass,
        "kept_states": kept * memory.kept_token,
        "peak": peak,
        "gpu": peak + RESERVE,
    }
