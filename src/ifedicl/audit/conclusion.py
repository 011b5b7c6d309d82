"""What an audit's figures mean for an owner: how large the risk is, in a word, and which limit to set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ifedicl.audit.suite import Row

GUESSING, SURE = 0.6, 0.8
"""Fractions of pairs (half is guessing): below the first an attack does little better, from the second it mostly wins."""
FEW_WORDS, MANY_WORDS = 0.05, 0.2
"""The same for rare words that come back, beyond those that the same guess gets right in other texts."""


def conclusion(tables: Mapping[str, Sequence[Row]], limit: int) -> list[str]:
    """Two sentences from the tables of :func:`ifedicl.audit.suite.run_attacks`.

    Args:
        tables: all of them.
        limit: the smallest number of examples behind a reply that the default rules allow.
    """
    risks = {size: _risk(tables, size) for size in _sizes(tables["membership"])}
    shown = max((size for size in risks if size <= limit), default=min(risks))
    auc, words = _worst(tables, shown)
    said = (
        f"Conclusion: with {shown} examples behind a reply (the default limit is {limit}) the risk for a single text is "
        f"{risks[shown]}: whether it is there is found out in {auc:.0%} of pairs (50% is guessing), and {words:.0%} of its "
        "rare words come back, beyond chance."
    )
    low = [size for size in risks if all(risks[other] == "LOW" for other in risks if other >= size)]
    if risks[shown] == "LOW":
        return [said, "These attacks do little better than guessing there. Another attack may do better; only ε is a bound."]
    if low:
        remedy = f"From {min(low)} examples on they do little better than guessing: set least.examples = {min(low)}, and "
        return [said, f"{remedy}least.new_examples to the same, in client.toml."]
    return [
        said,
        f"Up to {max(risks)} examples no limit on their number helps. Answer jobs in secure mode ([sums]) or with noise only "
        "(most.epsilon above 0), or only jobs of a coordinator whom you trust with single texts.",
    ]


def _risk(tables: Mapping[str, Sequence[Row]], size: int) -> str:
    auc, words = _worst(tables, size)
    if auc >= SURE or words >= MANY_WORDS:
        return "HIGH"
    return "LOW" if auc < GUESSING and words < FEW_WORDS else "MODERATE"


def _worst(tables: Mapping[str, Sequence[Row]], size: int) -> tuple[float, float]:
    """The best attack without noise on a mean of this number of examples: fraction of pairs, and words beyond chance."""
    games = [row for row in _plain(tables["membership"]) if row["examples"] == size and row["attacker"] == "outsider"]
    words = [row["recall"] - row["baseline"] for row in _plain(tables["words"]) if row["examples"] == size]
    return max(float(row["auc"]) for row in games), max([0.0, *map(float, words)])


def _sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({int(row["examples"]) for row in _plain(rows) if row["attacker"] == "outsider"})


def _plain(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["epsilon"] is None]
