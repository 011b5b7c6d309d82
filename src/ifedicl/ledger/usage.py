"""What has left already, as the ledger tells it: what the limits of a policy are counted against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ifedicl.ledger.entries import Entry, Head
from ifedicl.ledger.ledger import REPLY, SUMMED, Ledger

_COUNTED = ("update_reply", "gradient_reply")


@dataclass(frozen=True)
class Spent:
    """Of one job.

    Attributes:
        rounds: updates and gradient sums that left.
        bytes: that crossed, the engine's own included.
        epsilon: what all of it tells of one example; 0 where nothing bounded it.
    """

    rounds: int = 0
    bytes: int = 0
    epsilon: float = 0.0


@dataclass(frozen=True)
class ExampleSet:
    """Which training examples sums were of, in words that say nothing without the client's secret.

    Attributes:
        question: digest of task and model: sums of two questions cannot be subtracted from each other.
        split: digest of what decides which examples are in the sums, and how they are grouped.
        cursor: the client's own name for the examples.
        examples: how many.
    """

    question: str
    split: str
    cursor: str
    examples: int


class History:
    """Counts by job, and the last example set of each question and kind of reply."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._spent: dict[str, Spent] = {}
        self._sets: dict[tuple[str, str], ExampleSet] = {}

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """All that a ledger tells."""
        history = cls()
        for entry in entries:
            if entry.event in (REPLY, SUMMED):
                history.note(entry.facts)
        return history

    def note(self, facts: Mapping[str, Any]) -> None:
        """Count one more reply: facts of an entry."""
        if facts["kind"] == "failure":
            return
        job = self.spent(facts["run"])
        rounds = job.rounds + (facts["kind"] in _COUNTED)
        epsilon = max(job.epsilon, facts["epsilon"] or 0.0)  # that of all that left so far
        crossed = job.bytes + facts["bytes"] + facts["engine_bytes"]
        self._spent[facts["run"]] = replace(job, rounds=rounds, bytes=crossed, epsilon=epsilon)
        if facts.get("examples") is not None:
            examples = ExampleSet(**facts["examples"])
            self._sets[examples.question, facts["kind"]] = examples

    def spent(self, run: str) -> Spent:
        """Of one job."""
        return self._spent.get(run, Spent())

    def epsilon_without(self, run: str) -> float:
        """What all other jobs together told of one example: they add up."""
        return sum(spent.epsilon for name, spent in self._spent.items() if name != run)

    def last_set(self, question: str, kind: str) -> ExampleSet | None:
        """Of the last reply of this kind that left for it."""
        return self._sets.get((question, kind))

    @property
    def jobs(self) -> frozenset[str]:
        """Digests of all jobs that got an answer."""
        return frozenset(self._spent)


class CountedLedger:
    """A ledger, and the counts of its entries, which follow each line that is written."""

    def __init__(self, ledger: Ledger) -> None:
        """Count what has left already."""
        self._ledger = ledger
        self.history = History.of(ledger)

    @property
    def head(self) -> Head:
        """Of the last entry."""
        return self._ledger.head

    def knows(self, head: Head) -> bool:
        """Whether the ledger had that head once, or has it now."""
        return self._ledger.knows(head)

    def append(self, event: str, facts: Mapping[str, Any]) -> Head:
        """Write one line of a reply, and count it. The line is on the disk when this returns.

        Raises:
            StorageError: it could not be written, and is not there.
        """
        head = self._ledger.append(event, facts)
        self.history.note(facts)
        return head
