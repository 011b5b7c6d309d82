"""Scores which labels a text has, any number of them: all label words and the threshold word behind one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ifedicl.backbone.encoding import Encoder
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import EncodedExamples, Tokens
from ifedicl.backbone.scoring import WordScorer
from ifedicl.backbone.set_words import SetWords
from ifedicl.kinds.examples import AnyExample
from ifedicl.kinds.label_sets import LabelSet, has_label
from ifedicl.kinds.multi_label import MultiLabelTask


class SetScorer(WordScorer):
    """Scores the words of a task with several labels; column 0 is the threshold, which all examples have."""

    task: MultiLabelTask
    words: SetWords

    def __init__(
        self, backbone: Backbone, task: MultiLabelTask, *, first_layer: int = 0, on_pass: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare the words; arguments as :class:`BaseScorer`.

        Raises:
            TaskError: as :class:`Encoder`.
        """
        super().__init__(backbone, first_layer=first_layer, on_pass=on_pass)
        self.task = task
        self.encoder = Encoder(backbone, task)
        self.words = SetWords(backbone, task, self.encoder.tree)

    def encoded(self, examples: Sequence[AnyExample]) -> EncodedExamples:
        prompts = self.encoder.prompts([example.text for example in examples])
        return EncodedExamples(prompts, tuple(map(self.task.set_of, examples)))

    def demonstrations(self, prompts: Sequence[Tokens], labels: Sequence[LabelSet], position: str) -> list[Tokens]:
        """Behind the prompt stand the words of all labels for which the window has room; of none, the threshold word."""
        if position == "prompt":
            return list(prompts)
        threshold, *words = self.encoder.tree.words
        shown = []
        for prompt, own in zip(prompts, labels, strict=True):
            said = [words[place] for place in own.places] or [threshold]
            row = prompt + said[0]
            for word in said[1:]:
                if len(row) + len(word) <= self.backbone.context_window:
                    row += word
            shown.append(row)
        return shown

    def classes_of(self, labels: Sequence[LabelSet]) -> list[int]:
        return [own.group for own in labels]

    def row_classes(self, labels: Sequence[LabelSet]) -> list[list[int]]:
        return [[1, *map(int, row)] for row in has_label(labels, len(self.task.labels))]
