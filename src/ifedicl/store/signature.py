"""A task in a few hundred numbers: its context vectors, centred, evened out over layers, and projected.

Global vectors are ``2Ld`` numbers, 262,144 at 8B, far too wide for an index, and dominated by what the model writes whatever it
reads, so that every cosine is near 1. Subtracting what it writes for neutral text leaves what is of the task.
"""

from __future__ import annotations

import numpy as np

from ifedicl import seeds
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.extract import context_vectors
from ifedicl.settings import Method, VectorSettings
from ifedicl.task import Task

SIZE = 256
"""Numbers of a signature: a cosine of random directions is then 0 with a standard deviation of 1/16."""

_NEUTRAL = Task(name="neutral", labels=("one", "two"), template="Text: {text}\nLabel:")
_SENTENCES = (
    "The train leaves at noon.",
    "There is a table in the room.",
    "She wrote the number on a sheet of paper.",
    "Water boils at a hundred degrees.",
    "The shop on the corner sells bread and milk.",
    "He walked from the station to the river.",
    "The second chapter has twenty pages.",
    "A letter arrived in the morning.",
)


def reference(backbone: Backbone, read_position: str) -> Array32:
    """``(L, 2, d)``: the context vectors of neutral text, which a backbone's signatures are centred on.

    Args:
        backbone: the model, loaded.
        read_position: ``label`` or ``prompt``, as in the settings of the tasks.
    """
    scorer = Scorer(backbone, _NEUTRAL)
    method = Method(vectors=VectorSettings.model_validate({"read_position": read_position}))
    texts = [text for text in _SENTENCES for _ in _NEUTRAL.labels]
    labels = [position for _ in _SENTENCES for position in range(len(_NEUTRAL.labels))]
    return context_vectors(scorer, scorer.encoder.prompts(texts).tokens, labels, method).mean().astype(np.float32)


def signature(context: Context, centre: Array32) -> Array32:
    """``(SIZE,)`` float32 of norm 1; of the injected layers, so that it compares with signatures of the same ones only.

    Args:
        context: the global vectors of a task.
        centre: ``(L, 2, d)``, the :func:`reference` of its model, of all layers.

    Raises:
        ValueError: the two have different shapes, or do not differ: there is no direction then.
    """
    vectors, centre = context.vectors, centre[context.first_layer : context.layers.stop]
    if vectors.shape != centre.shape:
        raise ValueError(f"vectors {vectors.shape} and reference {centre.shape} are not of one model")
    # Deep layers write hundreds of times more than early ones; relative to the reference's norm each write counts alike.
    norms = np.linalg.norm(centre, axis=2, keepdims=True)
    relative = (vectors - centre) / np.maximum(norms, np.finfo(np.float32).tiny)
    _, writes, width = vectors.shape
    projected = np.zeros(SIZE)
    for row, layer in enumerate(context.layers):
        for write in range(writes):
            draw = seeds.generator(0, "signature", layer, write)
            projected += relative[row, write] @ draw.standard_normal((width, SIZE), dtype=np.float32)
    norm = np.linalg.norm(projected)
    if not np.isfinite(norm) or norm == 0:
        raise ValueError("vectors that do not differ from the reference, or are not finite, have no signature")
    return (projected / norm).astype(np.float32)
