"""What the ledger says was sent: a policy's limits are counted against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ifedicl.ledger.entries import Entry, Head
from ifedicl.ledger.ledger import REPLY, SUMMED, Ledger

_COUNTED = ("update_reply", "gradient_reply")


@dataclass(frozen=True)
class Spent:
    """What was sent in one job.

    Attributes:
        rounds: updates and gradient sums.
        bytes: sent, with those that the transport adds.
        epsilon: ε of all of it for one example; 0 without a DP guarantee.
    """

    rounds: int = 0
    bytes: int = 0
    epsilon: float = 0.0


@dataclass(frozen=True)
class ExampleSet:
    """The training examples behind a reply, in digests that reveal nothing without the client's secret.

    Attributes:
        question: digest of task and model: replies to two questions cannot be subtracted from each other.
        split: digest of the settings that choose and group the examples.
        cursor: keyed digest of the examples.
        examples: their number.
    """

    question: str
    split: str
    cursor: str
    examples: int


class History:
    """What was sent by job, and the last example set of each question and kind of reply."""

    def __init__(self) -> None:
        self._spent: dict[str, Spent] = {}
        self._sets: dict[tuple[str, str], ExampleSet] = {}

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """The history of a whole ledger."""
        history = cls()
        for entry in entries:
            if entry.event in (REPLY, SUMMED):
                history.note(entry.facts)
        return history

    def note(self, facts: Mapping[str, Any]) -> None:
        """Count one more reply, by the facts of its entry."""
        if facts["kind"] == "failure":
            return
        job = self.spent(facts["run"])
        rounds = job.rounds + (facts["kind"] in _COUNTED)
        epsilon = max(job.epsilon, facts["epsilon"] or 0.0)  # an entry states that of the whole job so far
        sent = job.bytes + facts["bytes"] + facts["engine_bytes"]
        self._spent[facts["run"]] = Spent(rounds, sent, epsilon)
        if facts.get("examples") is not None:
            examples = ExampleSet(**facts["examples"])
            self._sets[examples.question, facts["kind"]] = examples

    def spent(self, run: str) -> Spent:
        """What was sent in the job with this digest."""
        return self._spent.get(run, Spent())

    def epsilon_without(self, run: str) -> float:
        """The sum of ε over all other jobs."""
        return sum(spent.epsilon for name, spent in self._spent.items() if name != run)

    def last_set(self, question: str, kind: str) -> ExampleSet | None:
        """The example set of the last reply of this kind to a question."""
        return self._sets.get((question, kind))

    @property
    def jobs(self) -> frozenset[str]:
        """Digests of all jobs that were answered."""
        return frozenset(self._spent)


class CountedLedger(Ledger):
    """A ledger that counts each line in its history as it is written."""

    def __init__(self, path: Path, owner: str) -> None:
        """Open the file, or make one, as :class:`Ledger` does, and count its lines."""
        super().__init__(path, owner)
        self.history = History.of(self)

    def append(self, event: str, facts: Mapping[str, Any]) -> Head:
        """Write one line as :meth:`Ledger.append` does, and count it."""
        head = super().append(event, facts)
        self.history.note(facts)
        return head
