"""Writes the audit as Markdown: sentences and figures, without any text of the owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ifedicl.audit.suite import Row

Tables = Mapping[str, Sequence[Row]]


def summary(tables: Tables) -> list[str]:
    """The findings as sentences."""
    return [
        *_words(tables["words"]),
        *_membership(tables["membership"]),
        *_updates(tables["updates"]),
        *_mix(tables["mix"]),
        *_differencing(tables["differencing"]),
    ]


def page(title: str, facts: Mapping[str, Any], tables: Tables, ending: Sequence[str] = (), picture: str | None = None) -> str:
    """A Markdown page from the tables of :func:`ifedicl.audit.suite.run_attacks`.

    ``facts`` describe the audited data; ``ending`` is the conclusion, which comes first on the page, and
    ``picture`` the name of the plot's file beside it; None: matplotlib is not installed.
    """
    shown = _NO_PICTURE if picture is None else f"![How well the attacks do, by the number of examples]({picture})"
    parts = [f"# {title}", *ending, shown, ", ".join(f"{name} {value}" for name, value in facts.items()) + "."]
    parts += [f"- {sentence}" for sentence in summary(tables)]
    parts.append(_CAUTION)
    for name, heading in _HEADINGS.items():
        parts += [f"## {heading}", table(tables[name])]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with the columns of the first row."""
    header = [_COLUMNS.get(name, name) for name in rows[0]]
    lines = [header, ["---"] * len(header), *([_shown(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_CAUTION = (
    "These are known attacks on this text and this model. An attack that fails proves nothing about the next one. Only ε is a "
    "proven bound; the lower bounds show how close these attacks come to it. ε is that of one release (for updates, of all "
    "rounds), at δ = 1e-5, with each example clipped. none: no clip and no noise."
)
_NO_PICTURE = "The plot needs matplotlib: pip install 'ifedicl[pictures]'."
_HEADINGS = {
    "words": "Which words come back from a mean vector",
    "membership": "Was this example there? (vectors)",
    "updates": "Was this example there? (updates, one run)",
    "mix": "How many examples each class has",
    "differencing": "What a second reply says about the added examples",
}
_COLUMNS = {
    "where": "read at",
    "epsilon": "ε",
    "recall": "words that come back",
    "baseline": "of other texts",
    "groups": "means",
    "auc": "AUC",
    "caught": "caught at 1% false alarms",
    "bound": "ε at least",
    "right": "guessed right",
    "of": "from",
    "error": "error of the mix",
    "blind": "error of a blind guess",
    "named": "examples named",
}


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["epsilon"] is None]


def _strictest(rows: Sequence[Row]) -> list[Row]:
    least = min((row["epsilon"] for row in rows if row["epsilon"] is not None), default=None)
    return [row for row in rows if least is not None and row["epsilon"] == least]


def _best(rows: Sequence[Row], key: Callable[[Row], float]) -> list[Row]:
    """The most successful attack for each number of examples."""
    sizes = sorted({int(row["examples"]) for row in rows})
    return [max((row for row in rows if row["examples"] == size), key=key) for size in sizes]


def _with_noise(row: Row) -> str:
    return "without noise" if row["epsilon"] is None else f"with noise for ε = {row['epsilon']:g}"


def _words(rows: Sequence[Row]) -> list[str]:
    return [
        f"With {_examples(row)}, {row['recall']:.0%} of their rare words come back ({row['attacker']}); the same guess gets "
        f"{row['baseline']:.0%} of other texts' words right."
        for row in _best(_plain(rows), lambda row: float(row["recall"]) - float(row["baseline"]))
    ]


def _membership(rows: Sequence[Row]) -> list[str]:
    outside = [row for row in rows if row["attacker"] == "outsider"]
    return [
        f"An attacker who knows a text and sees the mean of {_examples(row)} without noise finds out whether it is there in "
        f"{row['auc']:.0%} of pairs (50% is guessing)."
        for row in _best(_plain(outside), lambda row: float(row["auc"]))
    ] + [
        f"With noise for ε = {row['epsilon']:g} that falls to {row['auc']:.0%} with {_examples(row)}."
        for row in _strictest(outside)[:1]
    ]


def _updates(rows: Sequence[Row]) -> list[str]:
    return [
        f"From the sum of {row['canaries']} updates, {row['right']:.0%} of the examples are guessed right (50% is guessing) "
        + _with_noise(row)
        + ("." if row["epsilon"] is None else f" over {row['rounds']} rounds.")
        for row in [*_plain(rows)[:1], *_strictest(rows)[-1:]]
    ]


def _mix(rows: Sequence[Row]) -> list[str]:
    return [
        f"From {row['of']} of {_examples(row)} the mix of classes is guessed to {row['error']:.0%} (a blind guess is off by "
        f"{row['blind']:.0%})."
        for row in _plain(rows)
        if row["clients"] == 1
    ]


def _differencing(rows: Sequence[Row]) -> list[str]:
    single = [row for row in rows if row["added"] == 1]
    return [
        f"If one example was added to {row['examples']}, the difference of the two replies identifies it in "
        f"{row['named']:.0%} of trials {_with_noise(row)}."
        for row in [*_plain(single)[-1:], *_strictest(single)[-1:]]
    ]


def _examples(row: Row) -> str:
    return "1 example" if row["examples"] == 1 else f"{row['examples']} examples"
