"""An adapter with the interface of a transformers text-classification pipeline: texts in, ``[{"label", "score"}]`` out.

The label of a kind without labels is what the adapter answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypedDict, overload

from ifedicl.adapter import Adapter, OnModel
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import check_unicode
from ifedicl.errors import InputError
from ifedicl.inputs import probability, texts_of, whole_number
from ifedicl.kinds.examples import Answer

_TEXT = "text"


class Scored(TypedDict):
    """One label or another answer, and its probability; None in place of an answer that is withheld."""

    label: str | None
    score: float


Ranked: TypeAlias = list[Scored]


class Pipeline:
    """Callable like ``transformers.pipeline("text-classification", …)``, from several threads too."""

    def __init__(self, ready: OnModel) -> None:
        self._ready = ready

    @overload
    def __call__(self, inputs: str | Sequence[str], *, min_confidence: float = 0.0) -> list[Scored]: ...
    @overload
    def __call__(self, inputs: str, *, top_k: int | None) -> Ranked: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, inputs: Sequence[str], *, top_k: int | None) -> list[Ranked]: ...
    def __call__(
        self, inputs: str | Sequence[str], *, top_k: int | None = -1, min_confidence: float = 0.0
    ) -> list[Scored] | list[Ranked]:
        """Label texts.

        Args:
            inputs: one text or several.
            top_k: left out: the best label of each text; a number: this many labels of each text, best first; None: all.
            min_confidence: of the best label: below this probability it is None, with its score. Not with ``top_k``.

        Raises:
            InputError: ``inputs`` holds something else than strings, ``top_k`` is not a number of labels, ``min_confidence`` is
                no probability, or both are given.
            DataError: a text has no tokens, or the task asks more than a text.
        """
        least = probability(min_confidence, "min_confidence", remedy="0 withholds nothing")
        if top_k != -1 and least:
            raise InputError(
                f"min_confidence: received {least:g} with top_k; allowed: one of the two. A list of labels is no answer that "
                "could be withheld: compare its scores yourself"
            )
        if top_k != -1 and top_k is not None:
            whole_number(top_k, "top_k", least=1, remedy="Give None for all labels, or leave it out for the best")
        task, texts = self._ready.adapter.task, [inputs] if isinstance(inputs, str) else texts_of(inputs, "texts")
        check_unicode(texts)
        found = self._ready.answers([task.question_of({_TEXT: text}, _TEXT) for text in texts])
        if top_k == -1:
            best = (_ranked(one)[0] for one in found)
            return [Scored(label=one["label"] if one["score"] >= least else None, score=one["score"]) for one in best]
        ranked = [_ranked(one) for one in found]
        cut = [labels[:top_k] for labels in ranked]
        return cut[0] if isinstance(inputs, str) else cut


def pipeline(adapter: str | Path | Adapter, *, model: str | None = None, backbone: Backbone | None = None) -> Pipeline:
    """A :class:`Pipeline` of an adapter on its model.

    Args:
        adapter: the adapter or its folder.
        model: the model's source on this machine, if it differs from the adapter's.
        backbone: the loaded model.

    Raises:
        AdapterError: the folder is not an adapter.
        BackboneError: the model cannot be loaded, or is another model.
    """
    loaded = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    return Pipeline(loaded.with_model_source(model).on_model(backbone))


def _ranked(answer: Answer) -> Ranked:
    best = sorted(answer.among.items(), key=lambda item: -item[1])
    return [Scored(label=label, score=score) for label, score in best]
