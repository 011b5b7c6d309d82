"""Passages: texts whose answer is text, and figures of what is written against it."""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ifedicl.confidence import Confidence
from ifedicl.kinds.examples import HitsEvaluation, check_strings

LOG, EXACT, SURE, TEXT = range(4)
"""The columns of what is read of a model for each example.

The mean ``log P`` of the tokens of its answer and of the end; 1 if exactly these have the highest probability, each behind
those before it, else 0; the mean ``log P`` of the tokens that were written; what was written. Clients make the first two only.
"""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Passage:
    """A text with its answer, which is one line of text; empty where nobody knows it.

    Raises:
        InputError: text or answer is not a string, or holds an unpaired surrogate, which no tokenizer reads.
    """

    text: str
    answer: str = ""

    def __post_init__(self) -> None:
        check_strings("a passage", vars(self).items())

    @property
    def key(self) -> str:
        """Hex SHA-256 of text and answer."""
        return hashlib.sha256(f"{self.answer}\x1f{self.text}".encode()).hexdigest()

    @property
    def stratum(self) -> str:
        """All passages are dealt together: answers are as different as texts."""
        return ""


@dataclass(frozen=True)
class Wanted:
    """A passage's answer, as text and in tokens. It stays with the owner."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class TextEvaluation(HitsEvaluation):
    """Answers that were written against the true ones.

    Attributes:
        truth: ``(N,)`` texts.
        predicted: ``(N,)`` texts.
        loss: mean over examples of the mean ``-log P`` of the true answer's tokens and of the end, in nats.
        confidence: the mean probability of a token that was written, beside how often the answer is right.
    """

    labels: ClassVar[tuple[str, ...]] = ()  # each example has other answers
    by_label: ClassVar[Sequence[tuple[int, int]]] = ()
    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    loss: float
    confidence: Confidence

    @classmethod
    def of(cls, scores: npt.NDArray[Any], truth: Sequence[str]) -> TextEvaluation:
        """From ``(N, 4)`` scores, in the columns of this module."""
        written = tuple(map(str, scores[:, TEXT]))
        values, hits = np.exp(scores[:, SURE].astype(np.float64)), np.array([*map(is_match, written, truth)], dtype=np.bool_)
        brier = float(2 * np.square(values - hits).mean()) if len(hits) else float("nan")
        loss = float(-scores[:, LOG].astype(np.float64).mean()) if len(hits) else float("nan")
        return cls(tuple(truth), written, loss, Confidence(values, hits, brier))

    @property
    def hits(self) -> npt.NDArray[np.float64]:
        """``(N,)``: 1 where the answer matches exactly, else 0."""
        return self.confidence.hits.astype(np.float64)

    @property
    def figures(self) -> dict[str, float]:
        """Slot F1 if every true answer has slots, and token F1."""
        has_slots = all(":" in text for text in self.truth)
        slots = {"slot F1": slot_f1(self.predicted, self.truth)} if has_slots else {}
        return {**slots, "token F1": float(np.mean([*map(token_f1, self.predicted, self.truth)]))}

    def summary(self) -> dict[str, Any]:
        """All figures as JSON."""
        return {
            "examples": self.examples,
            "accuracy": self.accuracy,
            "interval": self.interval,
            **{name.replace(" ", "_").lower(): value for name, value in self.figures.items()},
            "loss": self.loss,
            **self.confidence.summary(),
        }


def normalised(text: str) -> str:
    """An answer as it is compared, after SQuAD (Rajpurkar et al. 2016).

    In lower case, without punctuation (ASCII), without the articles a, an and the, and with single spaces.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def is_match(answer: str, truth: str) -> bool:
    """Whether both are the same by :func:`normalised`."""
    return normalised(answer) == normalised(truth)


def token_f1(answer: str, truth: str) -> float:
    """F1 of the words that both have, by :func:`normalised`; without a word in one of them 1 if both have none, else 0."""
    ours, theirs = normalised(answer).split(), normalised(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def slots_of(answer: str) -> Counter[tuple[str, str]]:
    """The parts of ``name: value; name: value``, each with name and value by :func:`normalised`.

    A name ends at the first colon of its part. A part without one is a slot without a name, so that what is written beside
    slots counts as wrong.
    """
    parts = (part.partition(":") if ":" in part else ("", "", part) for part in answer.split(";") if part.strip())
    return Counter((normalised(name), normalised(value)) for name, _, value in parts)


def slot_f1(answers: Sequence[str], truths: Sequence[str]) -> float:
    """Micro-averaged F1 of slots over all examples: a slot is right if name and value are; 0 if nobody has one."""
    ours, theirs = [*map(slots_of, answers)], [*map(slots_of, truths)]
    right = sum((mine & its).total() for mine, its in zip(ours, theirs, strict=True))
    return 2 * right / max(1, sum(slots.total() for slots in (*ours, *theirs)))
