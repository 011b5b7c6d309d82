"""Attack 1: which words stand in the texts behind a mean vector?

All attackers know the model, the prompt and public text. An attacker scores every candidate word; as many of the best as there
are words to be found are its guess.
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
_HELD_OUT = 4  # one public text in so many chooses among an attacker's variants


@dataclass(frozen=True)
class Recovery:
    """How many rare words came back.

    Attributes:
        examples: texts behind each mean.
        recall: mean share of the words of a mean's texts that are among its guess.
        baseline: the same, of the words of *other* texts: what a guess gets right without having seen the texts.
        groups: means that were attacked.
    """

    examples: int
    recall: float
    baseline: float
    groups: int


def recovered(
    attacker: Attacker,
    means: Array32,
    texts: Sequence[frozenset[int]],
    candidates: npt.NDArray[np.int64],
    examples: int,
) -> Recovery:
    """Attack each mean.

    Args:
        attacker: scores the candidates.
        means: ``(M, L, 2, d)``: what the server sees.
        texts: all tokens of the texts behind each mean, in the same order.
        candidates: ``(W,)`` token ids of rare words.
        examples: texts behind each mean.
    """
    scores, wanted = attacker(means), _wanted(texts, candidates)
    hits, misses = [], []
    for place, own in enumerate(wanted):
        if not own.any():
            continue
        best, other = _best(scores[place], int(own.sum())), wanted[(place + 1) % len(wanted)]
        hits.append(own[best].mean())
        misses.append(other[best].sum() / max(1, int(other.sum())))
    return Recovery(examples, float(np.mean(hits or [0.0])), float(np.mean(misses or [0.0])), len(hits))


def lens(backbone: Backbone, candidates: npt.NDArray[np.int64], centre: Array32, layer: int, cumulated: bool) -> Attacker:
    """The model's own head behind its own last norm, on what one layer writes or on all written up to it (logit lens).

    Args:
        backbone: the model that everyone has.
        candidates: token ids.
        centre: ``(L, 2, d)``: public text's mean, taken off.
        layer: which.
        cumulated: whether the layers below are added.
    """
    base = backbone.model.base_model
    norm = next((getattr(base, name) for name in _LAST_NORMS if hasattr(base, name)), torch.nn.Identity())
    words = torch.from_numpy(candidates).to(backbone.device)

    @torch.inference_mode()
    def attack(means: Array32) -> Array32:
        states = torch.from_numpy(_states(means - centre, layer, cumulated)).to(backbone.device, backbone.model.dtype)
        scores: Array32 = backbone.logits(norm(states), words).cpu().numpy()
        return scores

    return attack


def nearest(backbone: Backbone, candidates: npt.NDArray[np.int64], centre: Array32, layer: int, cumulated: bool) -> Attacker:
    """Candidate words whose input embedding points most where the layer's writes do. Arguments as :func:`lens`."""
    embeddings = _directions(backbone, candidates)

    def attack(means: Array32) -> Array32:
        scores: Array32 = _states(means - centre, layer, cumulated) @ embeddings.T
        return scores

    return attack


class Inverter:
    """A linear map, trained on public text, from a vector to the mean direction of its text's words.

    It is linear, so that what it learnt of single texts holds for means of many. Kernel ridge regression: there are far fewer
    public texts than numbers in a vector.
    """

    def __init__(self, backbone: Backbone, candidates: npt.NDArray[np.int64], public: Victims, sizes: Array32) -> None:
        """Train, and choose the penalty on a part of the public text.

        Args:
            backbone: the model that everyone has.
            candidates: token ids.
            public: what it is trained on.
            sizes: ``(L, 2)``: root mean square norm of each write, so that all weigh alike.
        """
        self._directions = _directions(backbone, candidates)
        self._weights = 1 / np.maximum(sizes, np.finfo(np.float32).tiny)[..., None]
        held = np.arange(len(public)) % _HELD_OUT == 0
        self._centre = public.vectors[~held].mean(axis=0)
        self._known = self._features(public.vectors[~held])  # (N, D)
        words = _wanted(public.tokens, candidates)  # (N, W)
        aims = words[~held].astype(np.float32) @ self._directions
        kernel = self._known @ self._known.T
        values, basis = np.linalg.eigh(kernel.astype(np.float64))
        turned = basis.T @ (aims - aims.mean(axis=0))
        trial = self._features(public.vectors[held]) @ self._known.T
        fits = [basis @ (turned / (np.maximum(values, 0) + penalty * values.mean())[:, None]) for penalty in _PENALTIES]
        recalls = [_recall((trial @ fit) @ self._directions.T, words[held]) for fit in fits]
        self._fit = fits[int(np.argmax(recalls))]

    def __call__(self, means: Array32) -> Array32:
        """Scores ``(M, W)`` for means ``(M, L, 2, d)``."""
        scores: Array32 = (((self._features(means) @ self._known.T) @ self._fit) @ self._directions.T).astype(np.float32)
        return scores

    def _features(self, vectors: Array32) -> Array32:
        scaled = (vectors - self._centre) * self._weights
        features: Array32 = scaled.reshape(len(vectors), -1).astype(np.float32)
        return features


def best_layer(
    make: Callable[[int, bool], Attacker], public: Victims, candidates: npt.NDArray[np.int64]
) -> tuple[tuple[int, bool], Mapping[tuple[int, bool], float]]:
    """The layer and form of an attacker that recover most from single public texts, and what each recovers.

    Args:
        make: layer and whether layers below are added, to an attacker.
        public: single texts; the client's are never looked at to choose.
        candidates: token ids.
    """
    some = public.take(np.arange(0, len(public), max(1, len(public) // _CHOOSERS)))
    recalls = {
        (layer, cumulated): recovered(make(layer, cumulated), some.vectors, some.tokens, candidates, 1).recall
        for layer in range(public.vectors.shape[1])
        for cumulated in (False, True)
    }
    return max(recalls, key=lambda form: recalls[form]), recalls


def _states(written: Array32, layer: int, cumulated: bool) -> Array32:
    """``(M, d)`` of ``(M, L, 2, d)`` writes."""
    states: Array32 = written[:, : layer + 1].sum(axis=(1, 2)) if cumulated else written[:, layer].sum(axis=1)
    return states


def _wanted(texts: Sequence[frozenset[int]], candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """``(M, W)``: which candidates stand in each text."""
    wanted = np.zeros((len(texts), len(candidates)), dtype=np.bool_)
    place = {int(token): number for number, token in enumerate(candidates)}
    for row, tokens in enumerate(texts):
        wanted[row, [place[token] for token in tokens if token in place]] = True
    return wanted


def _best(scores: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Positions of the ``count`` highest."""
    best: npt.NDArray[np.int64] = np.argpartition(-scores, count - 1)[:count]
    return best


def _directions(backbone: Backbone, candidates: npt.NDArray[np.int64]) -> Array32:
    """``(W, d)``: input embeddings without their mean, each of norm 1."""
    rows = torch.from_numpy(candidates).to(backbone.device)
    embeddings = backbone.model.get_input_embeddings().weight.float()
    centred = (embeddings[rows] - embeddings.mean(dim=0)).cpu().numpy()
    directions: Array32 = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return directions


def _recall(scores: npt.NDArray[np.floating], wanted: npt.NDArray[np.bool_]) -> float:
    """Mean over texts, as in :func:`recovered`."""
    rows = [(row, own) for row, own in zip(scores, wanted, strict=True) if own.any()]
    return float(np.mean([own[_best(row, int(own.sum()))].mean() for row, own in rows] or [0.0]))
