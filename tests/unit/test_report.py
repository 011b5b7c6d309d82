"""What a report says that a client sent and received."""

from __future__ import annotations

from ifedicl.federation.state import Traffic
from ifedicl.report import traffic_by_client


def exchange(client: str, step: str, number: int, down: int, up: int, failure: str | None = None) -> Traffic:
    return Traffic(client=client, step=step, round=number, bytes_down=down, bytes_up=up, seconds=1.0, failure=failure)


def test_what_comes_once_and_what_comes_each_round_are_shown_apart() -> None:
    traffic = []
    for client in ("a", "b"):
        traffic += [exchange(client, "vectors", 0, 1, 100), exchange(client, "context", 0, 50, 1)]
        for number in (0, 1):
            traffic += [exchange(client, "update", number, 10, 20), exchange(client, "evaluate", number + 1, 10, 2)]
        traffic += [exchange(client, "statistics", 2, 10, 1000), exchange(client, "evaluate", 2, 500, 4)]  # its readouts' trial
        traffic += [exchange(client, "compare", 2, 30, 3)]
    for row in traffic_by_client(traffic, rounds=2):
        assert (row.setup_up, row.setup_down) == (100 + 1 + 1000 + 4 + 3, 1 + 50 + 10 + 500 + 30)
        assert (row.round_up, row.round_down) == (22.0, 20.0)
        assert row.seconds == 9.0


def test_failures_are_counted_but_for_a_client_that_was_started_again() -> None:
    traffic = [
        exchange("a", "update", 0, 1, 1, "late"),
        exchange("a", "update", 1, 1, 1, "late"),
        exchange("a", "update", 2, 1, 1, "no_context"),
        exchange("a", "update", 2, 1, 1),
    ]
    (row,) = traffic_by_client(traffic, rounds=3)
    assert row.failures == {"late": 2}
