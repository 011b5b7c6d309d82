"""Writes the figures of attacks.py and privacy_cost.py into the tables of docs/attacks.md, between their marks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ifedicl import files
from ifedicl.audit.markdown import table

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("docs/results/privacy"))
    parser.add_argument("--page", type=Path, default=Path("docs/attacks.md"))
    arguments = parser.parse_args()
    page = arguments.page.read_text(encoding="utf-8")
    for name, (kind, make) in TABLES.items():
        files_ = sorted(arguments.results.glob(f"{kind}-*.json"), reverse=True)
        rows = [row for file in files_ for row in make(json.loads(file.read_text(encoding="utf-8")))]
        mark = f"<!-- {name} -->"
        before, _, after = page.partition(mark)
        page = f"{before}{mark}\n\n{table(rows)}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    files.write_text(arguments.page, page)


def words(figures: Row) -> list[Row]:
    """All attackers without a defence, and the trained inverter with one."""
    chosen = [row for row in figures["words"] if row["epsilon"] is None or row["attacker"] == "trained inverter"]
    rows = []
    for attacker, budget in dict.fromkeys((row["attacker"], row["epsilon"]) for row in chosen):
        matching = [row for row in chosen if (row["attacker"], row["epsilon"]) == (attacker, budget)]
        shares = {f"n = {row['examples']}": f"{row['recall']:.1%} / {row['baseline']:.1%}" for row in matching}
        rows.append({"set": figures["set"], "attacker": attacker, "epsilon": budget, **shares})
    return rows


def membership(figures: Row) -> list[Row]:
    rows = []
    for attacker in ("outsider", "insider"):
        by_attacker = [row for row in figures["membership"] if row["attacker"] == attacker]
        for budget in dict.fromkeys(row["epsilon"] for row in by_attacker):
            matching = [row for row in by_attacker if row["epsilon"] == budget]
            shares = {f"n = {row['examples']}": f"{row['auc']:.2f} (ε ≥ {row['bound']:.2f})" for row in matching}
            rows.append({"set": figures["set"], "attacker": attacker, "epsilon": budget, **shares})
    sizes = max((list(row) for row in rows), key=len)
    return [{name: row.get(name, "") for name in sizes} for row in rows]


def updates(figures: Row) -> list[Row]:
    return [{"set": figures["set"], **row} for row in figures["updates"]]


def mix(figures: Row) -> list[Row]:
    rows = []
    for kind, clients, budget in dict.fromkeys((row["of"], row["clients"], row["epsilon"]) for row in figures["mix"]):
        matching = [row for row in figures["mix"] if (row["of"], row["clients"], row["epsilon"]) == (kind, clients, budget)]
        errors = {f"n = {row['examples']}": f"{row['error']:.2f} / {row['blind']:.2f}" for row in matching}
        rows.append({"set": figures["set"], "of": kind, "clients": clients, "epsilon": budget, **errors})
    return rows


def differencing(figures: Row) -> list[Row]:
    """The rows with one added example. The result files have the others."""
    rows = []
    for row in figures["differencing"]:
        if row["added"] == 1:
            named = {"the added example is named": f"{row['named']:.0%}", "by chance": f"{row['chance']:.1%}"}
            rows.append(
                {
                    "set": figures["set"],
                    "n before": row["examples"],
                    "epsilon": row["epsilon"],
                    "cosine": row["cosine"],
                    **named,
                }
            )
    return rows


def cost(figures: Row) -> list[Row]:
    return [
        {
            "set": figures["set"],
            "run": row["plan"],
            "ε spent": "-" if row.get("epsilon") is None else f"{row['epsilon']:.2f}",
            "noise of a round": f"{row.get('noise_multiplier_of_a_round', 0):.1f}",
            "accuracy": f"{row['accuracy']:.3f}",
            "95%": f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
            "loss": f"{row['loss']:.3f}",
        }
        for row in figures["runs"]
    ]


def fidelity(figures: Row) -> list[Row]:
    rows = []
    for size in dict.fromkeys(row["numbers"] for row in figures["vectors"]):
        matching = [row for row in figures["vectors"] if row["numbers"] == size]
        shares = {_budget(row): f"{row['noise_over_clip']:.2f}, {row['cosine']:.2f}" for row in matching}
        rows.append(
            {"set": figures["set"], "directions of a write": matching[0]["directions_of_a_write"], "numbers": size, **shares}
        )
    return rows


def _budget(row: Row) -> str:
    return "no noise" if row["epsilon"] is None else f"ε = {row['epsilon']:g}"


TABLES: dict[str, tuple[str, Callable[[Row], Sequence[Row]]]] = {
    "words": ("attacks", words),
    "membership": ("attacks", membership),
    "updates": ("attacks", updates),
    "mix": ("attacks", mix),
    "differencing": ("attacks", differencing),
    "cost": ("cost", cost),
    "fidelity": ("cost", fidelity),
}

if __name__ == "__main__":
    main()
