"""A task's signature: its context vectors, centred, scaled by layer, and projected to a few hundred numbers.

Global vectors are ``2Ld`` numbers (262,144 at 8B), too many for an index. Most of each vector is the same for any text, so all
cosines are near 1. Subtracting the vectors of neutral text leaves the part that depends on the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ifedicl import seeds
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method, VectorSettings

if TYPE_CHECKING:
    from ifedicl.backbone.load import Backbone

SIZE = 256
"""Numbers of a signature. The cosine of two random directions has mean 0 and standard deviation 1/16."""

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
    """``(L, 2, d)``: the context vectors of neutral text; ``read_position`` is that of the tasks' settings."""
    from ifedicl.backbone.scoring import Scorer  # torch takes seconds to import, and most uses of a store need no model
    from ifedicl.extract import context_vectors

    scorer = Scorer(backbone, _NEUTRAL)
    method = Method(vectors=VectorSettings.model_validate({"read_position": read_position}))
    texts = [text for text in _SENTENCES for _ in _NEUTRAL.labels]
    labels = [position for _ in _SENTENCES for position in range(len(_NEUTRAL.labels))]
    return context_vectors(scorer, scorer.encoder.prompts(texts).tokens, labels, method).mean().astype(np.float32)


def signature(context: Context, centre: Array32) -> Array32:
    """``(SIZE,)`` float32 of norm 1: the signature of a task's global vectors, comparable with those of the same layers only.

    ``centre`` is ``(L, 2, d)``, the :func:`reference` of the model, of all layers.

    Raises:
        ValueError: the two have different shapes, or do not differ.
    """
    vectors, centre = context.vectors, centre[context.first_layer : context.layers.stop]
    if vectors.shape != centre.shape:
        raise ValueError(f"vectors: received shape {vectors.shape}; the reference has {centre.shape}")
    # Writes of deep layers are hundreds of times larger than early ones. Divided by the reference's norm, all count alike.
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
        raise ValueError("vectors: they are not finite, or equal to the reference, and have no signature")
    return (projected / norm).astype(np.float32)
