"""The tables of docs/privacy.md, from the figures that attacks.py and privacy_cost.py wrote."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ifedicl.privacy.audit.page import table

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("docs/results/privacy"))
    results = parser.parse_args().results
    attacks = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("attacks-*.json"))]
    costs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("cost-*.json"))]
    for name, make in ATTACKS.items():
        print(f"### {name}\n", table([row for figures in attacks for row in make(figures)]), sep="\n", end="\n\n")
    print("### cost\n", table([row for figures in costs for row in cost(figures)]), sep="\n", end="\n\n")
    print("### fidelity\n", table([row for figures in costs for row in fidelity(figures)]), sep="\n")


def words(figures: Row) -> list[Row]:
    """Without a defence every attacker, with one the trained inverter only."""
    chosen = [row for row in figures["words"] if row["epsilon"] is None or row["attacker"] == "trained inverter"]
    rows = []
    for attacker, budget in dict.fromkeys((row["attacker"], row["epsilon"]) for row in chosen):
        own = [row for row in chosen if (row["attacker"], row["epsilon"]) == (attacker, budget)]
        shares = {f"n = {row['examples']}": f"{row['recall']:.1%} / {row['baseline']:.1%}" for row in own}
        rows.append({"set": figures["set"], "attacker": attacker, "epsilon": budget, **shares})
    return rows


def membership(figures: Row) -> list[Row]:
    rows = []
    for attacker in ("outsider", "insider"):
        own = [row for row in figures["membership"] if row["attacker"] == attacker]
        for budget in dict.fromkeys(row["epsilon"] for row in own):
            mine = [row for row in own if row["epsilon"] == budget]
            shares = {f"n = {row['examples']}": f"{row['auc']:.2f} (ε ≥ {row['bound']:.2f})" for row in mine}
            rows.append({"set": figures["set"], "attacker": attacker, "epsilon": budget, **shares})
    sizes = max((list(row) for row in rows), key=len)
    return [{name: row.get(name, "") for name in sizes} for row in rows]


def updates(figures: Row) -> list[Row]:
    return [{"set": figures["set"], **row} for row in figures["updates"]]


def mix(figures: Row) -> list[Row]:
    rows = []
    for kind, clients, budget in dict.fromkeys((row["of"], row["clients"], row["epsilon"]) for row in figures["mix"]):
        own = [row for row in figures["mix"] if (row["of"], row["clients"], row["epsilon"]) == (kind, clients, budget)]
        errors = {f"n = {row['examples']}": f"{row['error']:.2f} / {row['blind']:.2f}" for row in own}
        rows.append({"set": figures["set"], "of": kind, "clients": clients, "epsilon": budget, **errors})
    return rows


def differencing(figures: Row) -> list[Row]:
    names = ("examples", "added", "epsilon", "cosine", "named", "chance")
    return [{"set": figures["set"]} | {name: row[name] for name in names} for row in figures["differencing"]]


def cost(figures: Row) -> list[Row]:
    return [
        {
            "set": figures["set"],
            "run": row["plan"],
            "ε spent": row.get("epsilon"),
            "noise of a round over the sensitivity": row.get("noise_multiplier_of_a_round"),
            "accuracy": f"{row['accuracy']:.3f}",
            "95%": f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
            "loss": f"{row['loss']:.3f}",
        }
        for row in figures["runs"]
    ]


def fidelity(figures: Row) -> list[Row]:
    return [{"set": figures["set"], **row} for row in figures["vectors"]]


ATTACKS: dict[str, Callable[[Row], Sequence[Row]]] = {
    "words": words,
    "membership": membership,
    "updates": updates,
    "mix": mix,
    "differencing": differencing,
}

if __name__ == "__main__":
    main()
