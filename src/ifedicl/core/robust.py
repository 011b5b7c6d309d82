"""Robust aggregation: a minority of lying clients has limited influence. The paper's mean has no such limit.

At most a known fraction of the ``K`` clients lies. There are three rules:

- **trimmed**: for every number the largest and smallest values, one on each side for each possible liar, are left out; the rest
  is averaged. **median**: the median of every number. Both lie within the honest range of every number (Yin et al. 2018).
- **bounded**: every client's change is shortened to the length of the median client's change where it is longer (norm bounding,
  Sun et al. 2019). Context vectors have no "before": their changes are measured from the median vector (centred clipping,
  Karimireddy et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

import numpy as np

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.vectors import Array64, ContextVectors

Rule: TypeAlias = Literal["trimmed", "median", "bounded"]
_LARGEST_SHARE = 3
"""A client that claims more than this many times the median number of examples is not trusted: the number is only a claim."""


@dataclass(frozen=True)
class Trust:
    """``liars``: the fraction of the clients that may lie, below one half."""

    liars: float

    def most_liars(self, clients: int) -> int:
        """How many of ``clients`` may lie; always fewer than half."""
        return max(0, min(ceil(self.liars * clients - 1e-9), (clients - 1) // 2))


def trimmed_mean(values: Array64, cut: int) -> Array64:
    """``(N,)``: the mean of each column of ``(K, N)`` numbers without its ``cut`` largest and smallest."""
    mean: Array64 = np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)
    return mean


def median(values: Array64) -> Array64:
    """``(N,)``: the median of each column of ``(K, N)`` numbers."""
    return np.median(values, axis=0)


def bounded_mean(values: Array64, centre: Array64) -> Array64:
    """``(N,)``: the mean of ``(K, N)`` rows, each moved to within the median distance of ``centre``."""
    changes = values - centre
    lengths = np.linalg.norm(changes, axis=1)
    longest = float(np.median(lengths))
    shrink = np.ones(len(lengths))
    np.divide(longest, lengths, out=shrink, where=lengths > longest)
    mean: Array64 = centre + (changes * shrink[:, None]).mean(axis=0)
    return mean


_RULES: Mapping[Rule, Callable[[Array64, Array64 | None, Trust], Array64]] = {
    "trimmed": lambda values, _centre, trust: trimmed_mean(values, trust.most_liars(len(values))),
    "median": lambda values, _centre, _trust: median(values),
    "bounded": lambda values, centre, _trust: bounded_mean(values, median(values) if centre is None else centre),
}


def robust_coefficients(before: Coefficients, updates: Sequence[Coefficients], rule: Rule, trust: Trust) -> Coefficients:
    """Stage 2b: the new coefficients from those of the clients (in client order), in place of their mean (Eq. 7).

    ``before`` are the coefficients that all clients started from.
    """
    values = np.stack([_flat(update) for update in updates])
    return _shaped(_RULES[rule](values, _flat(before), trust), before)


def robust_vectors(vectors: Sequence[ContextVectors], rule: Rule, trust: Trust) -> ContextVectors:
    """Stage 2a: one set of vectors from those of the clients (in client order); its counts are 1 for known groups, else 0.

    The rule is applied to each write of each layer separately. With ``m`` liars, a group that fewer than ``2 m + 1`` clients
    hold is left out: liars could be the majority there.
    """
    needed = 2 * trust.most_liars(len(vectors)) + 1
    groups, layers, writes, _ = vectors[0].means.shape
    means, counts = np.zeros(vectors[0].means.shape), np.zeros(groups, dtype=np.int64)
    for group in range(groups):
        holders = [vector.means[group] for vector in vectors if vector.counts[group] > 0]
        if len(holders) < needed:
            continue
        counts[group] = 1
        for layer in range(layers):
            for write in range(writes):
                rows = np.stack([holder[layer, write] for holder in holders]).astype(np.float64)
                means[group, layer, write] = _RULES[rule](rows, None, trust)
    return ContextVectors(means, counts)


def trusted_clients(scores: Mapping[str, tuple[float, ...]], examples: Mapping[str, int], trust: Trust) -> list[str]:
    """The clients whose held-out figures count, in the order given.

    The clients with the best and the worst scores are left out, one on each side for each possible liar, and so are those that
    claim too many examples.
    """
    most = _LARGEST_SHARE * float(np.median(list(examples.values()))) if examples else 0.0
    modest = [name for name in scores if examples[name] <= most]
    trusted = [name for name in _middle(list(scores), scores, trust) if name in modest]
    # If all clients in the middle claim too many examples, only the others are left.
    return trusted or _middle(modest, scores, trust)


def _middle(names: Sequence[str], scores: Mapping[str, tuple[float, ...]], trust: Trust) -> list[str]:
    cut = trust.most_liars(len(names))
    middle = set(sorted(names, key=lambda name: scores[name])[cut : len(names) - cut])
    return [name for name in names if name in middle]


def _flat(coefficients: Coefficients) -> Array64:
    return np.concatenate([array.ravel() for array in coefficients.arrays.values()]).astype(np.float64)


def _shaped(values: Array64, like: Coefficients) -> Coefficients:
    """The inverse of :func:`_flat`."""
    arrays, start = {}, 0
    for name, array in like.arrays.items():
        arrays[name] = values[start : start + array.size].reshape(array.shape).astype(np.float32)
        start += array.size
    return Coefficients.of(arrays)
