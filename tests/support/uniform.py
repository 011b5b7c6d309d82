"""Bytes that tell nothing: a test that they are uniform."""

from __future__ import annotations

from collections import Counter

from scipy import stats

NEVER = 1e-6
"""Keys differ each time: a test may fail once in a million runs."""


def uniform_p(data: bytes) -> float:
    """The p-value of a chi-square test that all byte values are equally likely."""
    counts = Counter(data)
    return float(stats.chisquare([counts[value] for value in range(256)]).pvalue)
