"""Aggregation that a minority of lying clients cannot steer at will: past the paper, whose mean one client can move anywhere.

Three ways, each of ``K`` clients' numbers, of which at most a known fraction lies:

- **trimmed**: of every number the largest and smallest are left out, as many on each side as there may be liars; the rest is
  averaged. **median**: the middle one of every number. Both lie within the honest range of every number (Yin et al. 2018).
- **bounded**: every client's change counts up to a length, that of the median client's change; longer ones are shortened to it
  (norm bounding, Sun et al. 2019). Context vectors have no "before", so their changes are from the median vector (centred
  clipping, Karimireddy et al. 2021).
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
"""A client that claims more examples than so many times the median has no say: numbers of examples are claims too."""


@dataclass(frozen=True)
class Trust:
    """Whom to expect among the clients.

    Attributes:
        liars: fraction of the clients that may lie, below a half.
    """

    liars: float

    def among(self, clients: int) -> int:
        """How many liars there may be among so many; always fewer than half of them."""
        return max(0, min(ceil(self.liars * clients - 1e-9), (clients - 1) // 2))


def trimmed_mean(values: Array64, cut: int) -> Array64:
    """``(N,)``: of ``(K, N)`` numbers, the mean of each column without its ``cut`` largest and smallest."""
    kept = np.sort(values, axis=0)[cut : len(values) - cut]
    mean: Array64 = kept.mean(axis=0)
    return mean


def median(values: Array64) -> Array64:
    """``(N,)``: of ``(K, N)`` numbers, the median of each column."""
    middle: Array64 = np.median(values, axis=0)
    return middle


def bounded_mean(values: Array64, centre: Array64) -> Array64:
    """``(N,)``: the mean of ``(K, N)`` rows, each moved to within the median distance of ``centre``."""
    changes = values - centre
    lengths = np.linalg.norm(changes, axis=1)
    longest = float(np.median(lengths))
    shrink = np.ones(len(lengths))
    np.divide(longest, lengths, out=shrink, where=lengths > longest)
    mean: Array64 = centre + (changes * shrink[:, None]).mean(axis=0)
    return mean


def _trimmed(values: Array64, _centre: Array64 | None, trust: Trust) -> Array64:
    return trimmed_mean(values, trust.among(len(values)))


def _median(values: Array64, _centre: Array64 | None, _trust: Trust) -> Array64:
    return median(values)


def _bounded(values: Array64, centre: Array64 | None, _trust: Trust) -> Array64:
    return bounded_mean(values, median(values) if centre is None else centre)


_RULES: Mapping[Rule, Callable[[Array64, Array64 | None, Trust], Array64]] = {
    "trimmed": _trimmed,
    "median": _median,
    "bounded": _bounded,
}


def robust_coefficients(before: Coefficients, updates: Sequence[Coefficients], rule: Rule, trust: Trust) -> Coefficients:
    """Stage 2b: the clients' coefficients to the new ones, in place of their mean (Eq. 7).

    Args:
        before: what all of them began with.
        updates: the clients' coefficients, in client order.
        rule: one of the three.
        trust: how many may lie.
    """
    values = np.stack([_flat(update) for update in updates])
    return _shaped(_RULES[rule](values, _flat(before), trust), before)


def robust_vectors(vectors: Sequence[ContextVectors], rule: Rule, trust: Trust) -> ContextVectors:
    """Stage 2a: clients' vectors to one client's, whose counts are 1 where a group is known and 0 elsewhere.

    A group that fewer clients hold than can out-vote the liars among all of them (``2 m + 1``, ``m`` liars) is left out: there,
    liars could be the majority.

    Args:
        vectors: of each client, in client order.
        rule: one of the three; every write of every layer is a vector of its own.
        trust: how many may lie.
    """
    needed = 2 * trust.among(len(vectors)) + 1
    groups, layers, writes, _ = vectors[0].means.shape
    means, counts = np.zeros(vectors[0].means.shape), np.zeros(groups, dtype=np.int64)
    for group in range(groups):
        holders = [vector.means[group] for vector in vectors if vector.counts[group] > 0]
        if len(holders) < needed:
            continue
        counts[group] = 1
        for layer in range(layers):
            for write in range(writes):
                rows = np.stack([own[layer, write] for own in holders]).astype(np.float64)
                means[group, layer, write] = _RULES[rule](rows, None, trust)
    return ContextVectors(means, counts)


def trusted(scores: Mapping[str, tuple[float, ...]], examples: Mapping[str, int], trust: Trust) -> list[str]:
    """Whose held-out figures count, in the order given: not the best and worst ones, as many of each as there may be liars.

    Args:
        scores: of each client, whichever way is better.
        examples: that each claims to have.
        trust: how many may lie.
    """
    most = _LARGEST_SHARE * float(np.median(list(examples.values()))) if examples else 0.0
    modest = [name for name in scores if examples[name] <= most]
    believed = [name for name in _middle(list(scores), scores, trust) if name in modest]
    # Where the few in the middle all claim too many, the others are all there is.
    return believed or _middle(modest, scores, trust)


def _middle(names: Sequence[str], scores: Mapping[str, tuple[float, ...]], trust: Trust) -> list[str]:
    cut = trust.among(len(names))
    kept = set(sorted(names, key=lambda name: scores[name])[cut : len(names) - cut])
    return [name for name in names if name in kept]


def _flat(coefficients: Coefficients) -> Array64:
    flat: Array64 = np.concatenate([array.ravel() for array in coefficients.arrays.values()]).astype(np.float64)
    return flat


def _shaped(values: Array64, like: Coefficients) -> Coefficients:
    """:func:`_flat`, back."""
    arrays, start = {}, 0
    for name, array in like.arrays.items():
        arrays[name] = values[start : start + array.size].reshape(array.shape).astype(np.float32)
        start += array.size
    return Coefficients.of(arrays)
