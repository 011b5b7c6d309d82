"""Several labels: which of the task's labels a text has, any number of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ifedicl.errors import DataError
from ifedicl.kinds.examples import Answer, AnyExample, own_example
from ifedicl.kinds.label_sets import (
    MultiLabelEvaluation,
    MultiLabelExample,
    has_label,
    labels_in,
    margins,
    set_losses,
    set_tally,
)
from ifedicl.kinds.row_cells import text_in, texts_in
from ifedicl.kinds.with_labels import LabelledTask, Word
from ifedicl.metrics import Comparison, Tally

_DRAWERS = 64
"""In which a comparison counts sets of labels: each set belongs into one of them, by its hash."""
_NO_LABEL = "(none)"


class MultiLabelTask(LabelledTask):
    """Which of the labels a text has: a yes or no for each, from one pass.

    A *threshold word* is scored beside the label words, and a label is a yes where its word is more probable. So the threshold
    is read of each text, and learnt as the label words are (as the threshold class of Zhou et al. 2021, arXiv 2010.11304). It
    is column 0 of the scores, before those of the labels.
    """

    kind: ClassVar[str] = "multi-label"
    example_class: ClassVar[type] = MultiLabelExample
    overlaps: ClassVar[bool] = True
    has_word_loss: ClassVar[bool] = False
    usage: ClassVar[str] = 'on_model().answers([MultiLabelExample("a text", frozenset())])'
    pipeline_tag: ClassVar[str] = "text-classification"
    groups_are: ClassVar[str] = "label, where an example with several counts for one that its hash draws"
    rows_are: ClassVar[str] = "by label"
    counts_are: ClassVar[str] = (
        "and how many true and how many answered sets of labels fall into each of 64 groups, by their hash"
    )
    sample_row: ClassVar[str] = (
        '{"text": "The lift is stuck, and it is cold", "label": ["lift", "heating"]}. CSV and TSV need a header line, '
        'text,label, and names with ";" or "|" between: lift;heating'
    )

    normalise_length: bool = Field(
        default=True,
        strict=True,
        description="divide a label word's log-probability by its number of tokens",
    )
    threshold_word: Word = Field(
        default="none", description="a label is a yes where its word is more probable than this one; also said where none is"
    )
    label_separators: str = Field(
        default=";|",
        max_length=20,
        description="characters that part the labels in a cell of text; a list, also as JSON, needs none",
    )

    @model_validator(mode="after")
    def _has_a_threshold(self) -> Self:
        if not self.threshold_word.strip() or self.threshold_word in self.label_words:
            raise ValueError(
                f"threshold_word: received {self.threshold_word!r}; allowed: a word that is no label word. Choose another"
            )
        return self

    @property
    def words(self) -> tuple[str, ...]:
        return self.threshold_word, *self.label_words

    @classmethod
    def example_of(cls, row: Mapping[str, Any], text: str, label: str) -> MultiLabelExample:
        return MultiLabelExample(text_in(texts_in(row, (text,))[0]), labels_in(row, label))

    def question_of(self, row: Mapping[str, Any], text: str) -> MultiLabelExample:
        return MultiLabelExample(texts_in(row, (text,))[0], frozenset())

    def checked(self, example: AnyExample) -> MultiLabelExample:
        return MultiLabelExample(example.text, frozenset(self._known(_own(example).labels)))

    def _known(self, given: frozenset[str]) -> list[str]:
        """The labels that a row's names stand for: each is a label, or several with separators between."""
        known = []
        for name in given:
            parts = [name] if self.label_of(name) is not None else self._parted(name)
            for part in parts:
                label = self.label_of(part)
                if label is None:
                    raise DataError(f"{self.unknown(part)}. Correct the row, or add the label to the task")
                known.append(label)
        return known

    def _parted(self, name: str) -> list[str]:
        for separator in self.label_separators:
            name = name.replace(separator, "\x1f")
        return [part.strip() for part in name.split("\x1f") if part.strip()]

    def check_all(self, examples: Sequence[AnyExample]) -> None:
        unknown = sum(not self.takes(example) for example in examples)
        if unknown:
            raise DataError(f"{unknown} examples have labels that are not in the task; allowed: {', '.join(self.labels)}")
        sets = {frozenset(self._known(_own(example).labels)) for example in examples}
        if not sets:
            raise DataError("no client has an example; at least one client with examples of two sets of labels is needed")
        if len(sets) < 2:
            names = ", ".join(sorted(*sets)) or "no label"
            raise DataError(f"all examples have the same labels ({names}); nothing can be learnt. Add examples of other labels")

    def example_for(self, text: str, number: int) -> MultiLabelExample:
        return MultiLabelExample(text, frozenset({self.labels[number % len(self.labels)]}))

    def places_of(self, example: AnyExample) -> tuple[int, ...]:
        """The positions of an example's labels, in order.

        Raises:
            DataError: as :meth:`checked`.
        """
        own = self.checked(example)
        return tuple(place for place, label in enumerate(self.labels) if label in own.labels)

    @property
    def classes(self) -> int:
        """One for each label, and one for examples without; an example counts for one of its labels, drawn by its hash."""
        return 1 + len(self.labels)

    def class_of(self, example: AnyExample) -> int:
        drawn = self.checked(example).drawn
        return 0 if drawn is None else 1 + self.labels.index(drawn)

    @property
    def columns(self) -> int:
        return 1 + len(self.labels)

    @property
    def answers(self) -> int:
        return _DRAWERS

    @property
    def takes_noise(self) -> bool:
        return False

    def tally(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> Tally:
        return set_tally(scores, has_label(labels, len(self.labels)))

    def comparison(
        self, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], labels: Sequence[Any]
    ) -> Comparison:
        truth = has_label(labels, len(self.labels))
        ours, raw = margins(adapter), margins(zero_shot)
        gains = set_losses(raw, truth) - set_losses(ours, truth)
        rights = [((odds > 0) == truth).all(axis=1) for odds in (ours, raw)]
        counts = (np.bincount([_drawer(row) for row in rows], minlength=_DRAWERS) for rows in (truth, ours > 0))
        return Comparison(
            set_tally(adapter, truth),
            set_tally(zero_shot, truth),
            float(np.square(gains).sum()),
            int((rights[0] != rights[1]).sum()),
            *(tuple(map(int, each)) for each in counts),
        )

    def evaluation(self, scores: npt.NDArray[np.floating], labels: Sequence[Any]) -> MultiLabelEvaluation:
        return MultiLabelEvaluation.of(self.labels, scores, has_label(labels, len(self.labels)))

    def answered(self, scores: npt.NDArray[np.floating], labels: Sequence[Any], examples: Sequence[AnyExample]) -> list[Answer]:
        del labels, examples  # each text has the same possible answers
        answers = []
        for row in margins(scores):
            said = [label for label, odds in zip(self.labels, row, strict=True) if odds > 0]
            each = np.exp(-np.logaddexp(0.0, -row))
            probabilities = dict(zip(self.labels, map(float, each), strict=True))
            sure = float(np.exp(-np.logaddexp(0.0, -np.abs(row)).sum()))
            answers.append(Answer(", ".join(said) or _NO_LABEL, said, sure, {"probabilities": probabilities}))
        return answers

    @property
    def facts(self) -> dict[str, Any]:
        names = {"labels": list(self.labels), "label_words": list(self.label_words)}
        return {"kind": self.kind, **names, "threshold_word": self.threshold_word}

    @property
    def asks(self) -> str:
        return f"each of {', '.join(self.label_words)}, beside {self.threshold_word}"

    @property
    def samples(self) -> dict[str, str]:
        """None: an answer is a set, and the code of a card names the most probable one."""
        return {}

    @property
    def does(self) -> str:
        return f"Says which of these labels a text has, any number of them: {', '.join(self.labels)}"

    @property
    def limits(self) -> str:
        return "it chooses among its labels only"

    @property
    def card_lines(self) -> dict[str, str]:
        return {"label words": ", ".join(self.label_words), "threshold word": self.threshold_word}

    def summary_of(self, examples: Sequence[AnyExample]) -> dict[str, int]:
        known = [
            self._known(_own(example).labels) if self.takes(example) else list(_own(example).labels) for example in examples
        ]
        counts = Counter(label for labels in known for label in (labels or [_NO_LABEL]))
        return {label: counts[label] for label in self.labels if counts[label]} | counts


def _drawer(row: npt.NDArray[np.bool_]) -> int:
    return hashlib.sha256(np.packbits(row).tobytes()).digest()[0] % _DRAWERS


def _own(example: AnyExample) -> MultiLabelExample:
    return own_example(example, MultiLabelExample, "as a text may have several labels")
