"""Attack 1: which words occur in the texts behind a mean vector?

All attackers know the model, the prompt and public text. An attacker scores every candidate word and guesses the best ones,
as many as there are to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ifedicl.audit.victims import Victims
from ifedicl.backbone.load import Backbone
from ifedicl.core.vectors import Array32

Attacker: TypeAlias = Callable[[Array32], Array32]
"""``(M, L, 2, d)`` mean vectors to ``(M, W)`` scores of the candidate words."""
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_LAST_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
_CHOOSERS = 100  # public texts that choose the layer
_HELD_OUT = 4  # one public text in four chooses the inverter's penalty


@dataclass(frozen=True)
class Recovery:
    """Share of rare words that an attacker recovers.

    Attributes:
        examples: texts behind each mean.
        recall: mean share of the texts' words in the guess.
        baseline: the same share for the words of *other* texts: what a guess without the texts would get right.
        groups: attacked means.
    """

    examples: int
    recall: float
    baseline: float
    groups: int


def recover_words(
    attacker: Attacker, means: Array32, texts: Sequence[frozenset[int]], candidates: npt.NDArray[np.int64], examples: int
) -> Recovery:
    """Attack each of the ``(M, L, 2, d)`` means.

    ``texts`` are all tokens of the ``examples`` texts behind each mean, ``candidates`` the ``(W,)`` token ids of rare words.
    """
    scores, wanted = attacker(means), _wanted(texts, candidates)
    hits, misses = [], []
    for row, words in enumerate(wanted):
        if not words.any():
            continue
        best, other = _best(scores[row], int(words.sum())), wanted[(row + 1) % len(wanted)]
        hits.append(words[best].mean())
        misses.append(other[best].sum() / max(1, int(other.sum())))
    return Recovery(examples, float(np.mean(hits or [0.0])), float(np.mean(misses or [0.0])), len(hits))


def lens(backbone: Backbone, candidates: npt.NDArray[np.int64], centre: Array32, layer: int, cumulated: bool) -> Attacker:
    """Logit lens: the model's last norm and head on the writes of one layer, or of all layers up to it (``cumulated``).

    ``candidates`` are token ids; ``centre`` is the ``(L, 2, d)`` mean of public text, which is subtracted.
    """
    base = backbone.model.base_model
    norm = next((getattr(base, name) for name in _LAST_NORMS if hasattr(base, name)), torch.nn.Identity())
    words = torch.from_numpy(candidates).to(backbone.device)

    @torch.inference_mode()
    def attack(means: Array32) -> Array32:
        states = torch.from_numpy(_states(means - centre, layer, cumulated)).to(backbone.device, backbone.model.dtype)
        return np.asarray(backbone.logits(norm(states), words).cpu().numpy())

    return attack


def nearest_word(directions: Array32, centre: Array32, layer: int, cumulated: bool) -> Attacker:
    """Candidate words whose input embedding is most similar to the writes.

    ``directions`` are the candidates' (:func:`word_directions`); the other arguments are as in :func:`lens`.
    """
    return lambda means: _states(means - centre, layer, cumulated) @ directions.T


class Inverter:
    """A linear map, trained on public text, from a vector to the mean direction of its text's words.

    It is linear, so a map trained on single texts also fits means of many texts. Kernel ridge regression is used because public
    texts are far fewer than numbers in a vector.
    """

    def __init__(self, directions: Array32, candidates: npt.NDArray[np.int64], public: Victims, sizes: Array32) -> None:
        """Train on public text, and choose the penalty on its held-out part.

        ``directions`` are the candidates' (:func:`word_directions`). ``sizes`` is the ``(L, 2)`` root mean square norm of each
        write: dividing by it gives all writes the same weight.
        """
        self._directions = directions
        self._weights = 1 / np.maximum(sizes, np.finfo(np.float32).tiny)[..., None]
        held_out = np.arange(len(public)) % _HELD_OUT == 0
        self._centre = public.vectors[~held_out].mean(axis=0)
        self._known = self._features(public.vectors[~held_out])  # (N, D)
        words = _wanted(public.tokens, candidates)  # (N, W)
        aims = words[~held_out].astype(np.float32) @ self._directions
        kernel = self._known @ self._known.T
        values, basis = np.linalg.eigh(kernel.astype(np.float64))
        turned = basis.T @ (aims - aims.mean(axis=0))
        trial = self._features(public.vectors[held_out]) @ self._known.T
        fits = [basis @ (turned / (np.maximum(values, 0) + penalty * values.mean())[:, None]) for penalty in _PENALTIES]
        recalls = [_recall((trial @ fit) @ self._directions.T, words[held_out]) for fit in fits]
        self._fit = fits[int(np.argmax(recalls))]

    def __call__(self, means: Array32) -> Array32:
        """Scores ``(M, W)`` for means ``(M, L, 2, d)``."""
        scores = ((self._features(means) @ self._known.T) @ self._fit) @ self._directions.T
        return np.asarray(scores, dtype=np.float32)

    def _features(self, vectors: Array32) -> Array32:
        return np.asarray(((vectors - self._centre) * self._weights).reshape(len(vectors), -1), dtype=np.float32)


def best_layer(
    make: Callable[[int, bool], Attacker], public: Victims, candidates: npt.NDArray[np.int64]
) -> tuple[tuple[int, bool], Mapping[tuple[int, bool], float]]:
    """The layer and form of an attacker with the highest recall on single public texts, and the recall of each.

    ``make`` returns the attacker for a layer and a form (``cumulated`` or not). Public text alone decides.
    """
    some = public.take(np.arange(0, len(public), max(1, len(public) // _CHOOSERS)))
    recalls = {
        (layer, cumulated): recover_words(make(layer, cumulated), some.vectors, some.tokens, candidates, 1).recall
        for layer in range(public.vectors.shape[1])
        for cumulated in (False, True)
    }
    return max(recalls, key=lambda form: recalls[form]), recalls


def _states(written: Array32, layer: int, cumulated: bool) -> Array32:
    """``(M, d)`` of ``(M, L, 2, d)`` writes."""
    return np.asarray(written[:, : layer + 1].sum(axis=(1, 2)) if cumulated else written[:, layer].sum(axis=1))


def _wanted(texts: Sequence[frozenset[int]], candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """``(M, W)``: which candidates occur in each text."""
    wanted = np.zeros((len(texts), len(candidates)), dtype=np.bool_)
    largest = max((max(tokens) for tokens in texts if tokens), default=0)
    column = np.full(max(largest, int(candidates.max(initial=0))) + 1, -1)
    column[candidates] = np.arange(len(candidates))
    for row, tokens in enumerate(texts):
        found = column[list(tokens)] if tokens else column[:0]
        wanted[row, found[found >= 0]] = True
    return wanted


def _best(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Positions of the ``count`` highest scores."""
    return np.argpartition(-scores, count - 1)[:count]


def word_directions(backbone: Backbone, candidates: npt.NDArray[np.int64]) -> Array32:
    """``(W, d)``: input embeddings without their mean, each of norm 1."""
    rows = torch.from_numpy(candidates).to(backbone.device)
    embeddings = backbone.model.get_input_embeddings().weight.float()
    centred = (embeddings[rows] - embeddings.mean(dim=0)).cpu().numpy()
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))


def _recall(scores: npt.NDArray[np.floating], wanted: npt.NDArray[np.bool_]) -> float:
    """Mean recall over texts, as in :func:`recover_words`."""
    rows = [(row, words) for row, words in zip(scores, wanted, strict=True) if words.any()]
    return float(np.mean([words[_best(row, int(words.sum()))].mean() for row, words in rows] or [0.0]))
