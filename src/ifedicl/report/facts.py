"""What a report is made from: figures of the test text, and what each client sent and received."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ifedicl.adapter import Adapter, Prediction
from ifedicl.federation.coordinator import Outcome
from ifedicl.federation.messages import FailureCode
from ifedicl.federation.state import Traffic
from ifedicl.kinds.examples import AnyEvaluation, AnyExample


@dataclass(frozen=True)
class Figures:
    """The test results of one way to label text: on all test text, and each client's accuracy; ``seconds`` is its cost."""

    name: str
    evaluation: AnyEvaluation
    by_client: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: of the page.
        adapter: the run's result.
        outcome: rounds, choice, gate and traffic.
        clients: each client's examples.
        rows: the ways to label the test text, the federation last; may be empty.
        verdicts: sentences that compare the federation with others by a paired test; the first is the report's answer.
        samples: example sentences and the saved adapter's predictions.
        seconds: of the whole run.
    """

    title: str
    adapter: Adapter
    outcome: Outcome
    clients: Mapping[str, Sequence[AnyExample]]
    rows: Sequence[Figures]
    verdicts: Sequence[str]
    samples: Sequence[tuple[str, Prediction]]
    seconds: float


def percent(fraction: float) -> str:
    """``0.5`` as ``50.0%``."""
    return f"{100 * fraction:.1f}%"


def kilobytes(count: float) -> str:
    """Bytes in KB of 1,024."""
    return f"{count / 1024:,.1f} KB"


@dataclass(frozen=True)
class ClientTraffic:
    """What one client sent (up) and received (down).

    Attributes:
        setup_down: bytes outside the rounds: the task, the vectors, a readout's sums; ``setup_up`` is the same upwards.
        round_down: mean bytes in a round, with evaluations; ``round_up`` is the same upwards.
        seconds: of all its work.
        failures: unusable replies, by code.
    """

    client: str
    setup_down: int
    setup_up: int
    round_down: float
    round_up: float
    seconds: float
    failures: Mapping[str, int]


_STEPS_OF_A_ROUND = {"update", "gradient", "evaluate"}


def traffic_by_client(traffic: Sequence[Traffic], rounds: int) -> list[ClientTraffic]:
    """Sum the exchanges of each client: updates and evaluations as rounds, all others, a readout's trial too, as set-up."""
    table = []
    for client in dict.fromkeys(item.client for item in traffic):
        exchanges = [item for item in traffic if item.client == client]
        setup, rest = list[Traffic](), list[Traffic]()
        is_trial = False  # of a readout: the evaluations after its sums, up to the next other step
        for item in exchanges:
            is_trial = item.step in {"statistics", "noisy_statistics"} or (
                is_trial and item.step in {"products", "evaluate", "context"}
            )
            (rest if item.step in _STEPS_OF_A_ROUND and not is_trial else setup).append(item)
        table.append(
            ClientTraffic(
                client=client,
                setup_down=sum(item.bytes_down for item in setup),
                setup_up=sum(item.bytes_up for item in setup),
                round_down=sum(item.bytes_down for item in rest) / max(rounds, 1),
                round_up=sum(item.bytes_up for item in rest) / max(rounds, 1),
                seconds=sum(item.seconds for item in exchanges),
                # A client that was restarted asks for the vectors again; that is no failure.
                failures=Counter(item.failure for item in exchanges if item.failure and item.failure != FailureCode.NO_CONTEXT),
            )
        )
    return table
