"""The table of thresholds in docs/secure-sum.md is what the code computes."""

from __future__ import annotations

import re
from pathlib import Path

from ifedicl.settings import PrivacySettings

PAGE = Path(__file__).parents[2] / "docs" / "secure-sum.md"
SIZES = (3, 5, 10, 20, 50, 100, 200, 500, 1000)
RULES = PrivacySettings(mode="secure")


def withstood(clients: int) -> int:
    """The most colluders against whom the default threshold holds: found by trying, not by the formula of the page."""
    threshold = RULES.threshold(clients)
    return max(c for c in range(clients) if 2 * threshold > clients + c and threshold >= c + 2)


def expected_row(clients: int) -> list[int]:
    threshold = RULES.threshold(clients)
    spare = clients - threshold
    return [clients, threshold, spare, withstood(clients), threshold - RULES.colluders, spare // 2]


def test_the_table_of_thresholds_is_what_the_settings_compute() -> None:
    table = PAGE.read_text().partition("| clients `n` | threshold `t` |")[2].split("\n\n")[0]
    rows = [[int(cell.replace(",", "")) for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert rows == [expected_row(clients) for clients in SIZES]


def test_the_page_states_the_defaults_and_the_formula() -> None:
    text = PAGE.read_text()
    stated = dict(re.findall(r"`(min_survivors|dropout|colluders) = ([\d.]+)`", text))
    assert stated == {name: str(getattr(RULES, name)) for name in ("min_survivors", "dropout", "colluders")}
    assert "t = max(min_survivors, n - ⌊dropout · n⌋, ⌊(n + c) / 2⌋ + 1)" in text
