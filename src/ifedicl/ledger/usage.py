"""What the ledger says was sent: a policy's limits are counted against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from ifedicl.ledger.entries import Entry, Head
from ifedicl.ledger.ledger import REPLY, SUMMED, Ledger

_REPLIES = REPLY, SUMMED
_COUNTED: Mapping[str, str] = {
    "update_reply": "rounds",
    "gradient_reply": "rounds",
    "evaluate_reply": "figures",
    "compare_reply": "figures",
    "vectors_reply": "sums",
    "statistics_reply": "sums",
    "noisy_statistics_reply": "sums",
    "products_reply": "sums",
    "context_reply": "contexts",
}
"""The count of :class:`Spent` that a kind of reply adds to."""


@dataclass(frozen=True)
class Spent:
    """What was sent in one run, or in all.

    Attributes:
        rounds: updates and gradient sums.
        figures: held-out figures and comparisons.
        sums: context vectors and readout sums.
        contexts: global vectors that the client took.
        bytes: sent, with those that the transport adds.
        epsilon: ε of all of it for one example; 0 without a DP guarantee.
    """

    rounds: int = 0
    figures: int = 0
    sums: int = 0
    contexts: int = 0
    bytes: int = 0
    epsilon: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


@dataclass(frozen=True)
class ExampleSet:
    """The examples behind a reply, in digests that reveal nothing without the client's secret.

    Attributes:
        question: the fingerprint of the model (in older ledgers a digest of task and model). Replies to two questions cannot
            be subtracted from each other.
        split: digest of the settings that choose and group the examples.
        cursor: keyed digest of the examples.
        examples: their number.
    """

    question: str
    split: str
    cursor: str
    examples: int


@dataclass(frozen=True)
class Holdout:
    """The fractions of a client's examples that are held out for a question."""

    question: str
    selection: float
    gate: float


@dataclass(frozen=True)
class ReplyFacts:
    """What the ledger's line says of a reply, beside its kind and size.

    Attributes:
        run: digest of its run; empty if unknown.
        asked: names the request and the examples that it is about; the same again is counted once.
        examples: the examples in its sums; None for other replies.
        epsilon: the ε of all replies of this run, for one example; None: there is no DP guarantee.
        holdout: of the job that the client takes; None for other replies.
    """

    run: str = ""
    asked: str = ""
    examples: ExampleSet | None = None
    epsilon: float | None = None
    holdout: Holdout | None = None

    @property
    def as_json(self) -> dict[str, Any]:
        """The fields of the line."""
        parts = {"examples": self.examples, "holdout": self.holdout}
        stated = {name: asdict(part) for name, part in parts.items() if part is not None}
        return {"run": self.run, "asked": self.asked, "epsilon": self.epsilon} | stated


class History:
    """What was sent by run; the last example set of each question and kind of reply; the holdout of each question."""

    def __init__(self) -> None:
        self._spent: dict[str, Spent] = {}
        self._noisy: dict[str, Counter[str]] = {}
        self._answered: dict[str, set[str]] = {}
        self._sets: dict[tuple[str, str], ExampleSet] = {}
        self._holdouts: dict[str, Holdout] = {}

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """The history of a whole ledger."""
        history = cls()
        for entry in entries:
            if entry.event in _REPLIES:
                history.note(entry.facts)
        return history

    def note(self, facts: Mapping[str, Any]) -> None:
        """Count one more reply, by the facts of its entry."""
        if facts["kind"] == "failure":  # lines of earlier versions; failures leave without a line now
            return
        run, asked = facts["run"], facts.get("asked", "")
        before, counted = self.spent(run), _COUNTED.get(facts["kind"])
        sent = before.bytes + facts["bytes"] + facts["engine_bytes"]
        epsilon = max(before.epsilon, facts["epsilon"] or 0.0)  # a line states that of the whole run so far
        spent = replace(before, bytes=sent, epsilon=epsilon)
        if counted is not None and not self.was_answered(run, asked):
            spent = replace(spent, **{counted: getattr(spent, counted) + 1})
        self._spent[run] = spent
        if facts["epsilon"] is not None:
            self._noisy.setdefault(run, Counter())[facts["kind"]] += 1
        if asked and facts["epsilon"] is None:  # noise is drawn again for the same request
            self._answered.setdefault(run, set()).add(asked)
        if facts.get("examples") is not None:
            examples = ExampleSet(**facts["examples"])
            self._sets[examples.question, facts["kind"]] = examples
        if facts.get("holdout") is not None:
            holdout = Holdout(**facts["holdout"])
            self._holdouts[holdout.question] = holdout

    def spent(self, run: str) -> Spent:
        """What was sent in the run with this digest."""
        return self._spent.get(run, Spent())

    def noisy(self, run: str) -> Mapping[str, int]:
        """How many replies of each kind of the run have left under differential privacy."""
        return self._noisy.get(run, Counter())

    @property
    def total(self) -> Spent:
        """What was sent in all runs. Each run's ε counts, as if all were of the same examples."""
        return sum(self._spent.values(), Spent())

    def was_answered(self, run: str, asked: str) -> bool:
        """Whether this request of the run was answered before with the same numbers."""
        return asked in self._answered.get(run, ())

    def epsilon_without(self, run: str) -> float:
        """The sum of ε over all other runs."""
        return sum(spent.epsilon for name, spent in self._spent.items() if name != run)

    def holdout(self, question: str) -> Holdout | None:
        """The holdout of the last job that asked this question."""
        return self._holdouts.get(question)

    def last_set(self, question: str, kind: str) -> ExampleSet | None:
        """The example set of the last reply of this kind to a question."""
        return self._sets.get((question, kind))

    @property
    def jobs(self) -> frozenset[str]:
        """Digests of all runs that were answered."""
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
        if event in _REPLIES:
            self.history.note(facts)
        return head
