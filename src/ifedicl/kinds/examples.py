"""What examples, answers and figures of all kinds of task have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ifedicl.confidence import Confidence
from ifedicl.errors import InputError
from ifedicl.inputs import described
from ifedicl.metrics import wilson
from ifedicl.rows import SURROGATE, has_lone_surrogate

E = TypeVar("E")


class AnyExample(Protocol):
    """A text with its answer; each kind has a frozen dataclass."""

    @property
    def text(self) -> str:
        """What goes into the prompt."""
        ...

    @property
    def key(self) -> str:
        """Hex SHA-256 of everything in the example: it names the example without its content. It stays with the owner."""
        ...

    @property
    def stratum(self) -> str:
        """Examples of one stratum are dealt together where a pool is divided among simulated clients."""
        ...


def check_strings(name: str, fields: Iterable[tuple[str, object]]) -> None:
    """Check fields of ``name``, for instance "an example", each with its value.

    Raises:
        InputError: one is not a string, or holds an unpaired surrogate, which no tokenizer reads.
    """
    for field, value in fields:
        if not isinstance(value, str):
            raise InputError(f"{field} of {name}: received {described(value)}; allowed: a string. Convert it")
        if has_lone_surrogate(value):
            raise InputError(f"{field} of {name}: {SURROGATE}; allowed: valid Unicode. Repair it, or leave it out")


def own_example(example: AnyExample, kind: type[E], reason: str) -> E:
    """The example, which is of this class; ``reason`` says why.

    Raises:
        InputError: it is of another class.
    """
    if not isinstance(example, kind):
        raise InputError(f"examples: received {described(example)}; allowed: {kind.__name__}, {reason}")
    return example


class AnyEvaluation(Protocol):
    """Answers against the truth."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The ``C`` answers that have figures of their own; none where each example has others."""
        ...

    @property
    def examples(self) -> int:
        """``N``."""
        ...

    @property
    def loss(self) -> float:
        """Mean ``-log P(answer)`` in nats."""
        ...

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the answer is right, else 0."""
        ...

    @property
    def accuracy(self) -> float:
        """Fraction right."""
        ...

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy."""
        ...

    @property
    def figures(self) -> Mapping[str, float]:
        """Further figures by their names in tables, each a fraction; the first is the one that benchmarks show."""
        ...

    @property
    def numbers(self) -> Mapping[str, float]:
        """Further figures by their names in tables that are no fractions."""
        ...

    @property
    def by_label(self) -> Sequence[tuple[int, int]]:
        """``(C, 2)``: of each label, the examples that have it, and how many of these are answered right."""
        ...

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """``(C, C)`` counts, row the true label, column the answer; ``(0, 0)`` where an answer is no label."""
        ...

    @property
    def confidence(self) -> Confidence:
        """How sure the answers are, beside how often they are right."""
        ...

    def summary(self) -> dict[str, Any]:
        """All figures as JSON."""
        ...


class HitsEvaluation(ABC):
    """What an :class:`AnyEvaluation` says where an answer is right or wrong, and not one label of several."""

    @property
    @abstractmethod
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the answer is right, else 0."""

    @property
    def examples(self) -> int:
        """``N``."""
        return len(self.hits)

    @property
    def accuracy(self) -> float:
        """Fraction right."""
        return float(self.hits.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(int(self.hits.sum()), len(self.hits))

    @property
    def numbers(self) -> Mapping[str, float]:
        """None."""
        return {}

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """``(0, 0)``."""
        return np.zeros((0, 0), dtype=np.int64)


@dataclass(frozen=True)
class MultipleChoice:
    """An example as a test of multiple choice asks it: which of ``choices`` is most probable behind the prompt with ``text``.

    Attributes:
        text: what goes into the prompt.
        choices: what stands behind prompt and separator.
        right: position of the right one.
    """

    text: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Answer:
    """What an adapter answers to one example.

    Attributes:
        shown: for people.
        value: as JSON, as the data files have it.
        confidence: the answer's probability.
        facts: all else, as JSON.
    """

    shown: str
    value: Any
    confidence: float
    facts: Mapping[str, Any]

    @property
    def among(self) -> Mapping[str, float]:
        """The possible answers with their probabilities; the answer alone where there are no others by name."""
        named = self.facts.get("probabilities")
        return named if isinstance(named, Mapping) else {self.shown: self.confidence}
