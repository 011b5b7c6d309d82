"""An adapter on its model, whatever the kind of its task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ifedicl.adapter.content import Content
from ifedicl.adapter.format import HEADER
from ifedicl.errors import AdapterError, FingerprintError
from ifedicl.kinds.examples import Answer, AnyEvaluation, AnyExample

if TYPE_CHECKING:
    from ifedicl.backbone.load import Backbone
    from ifedicl.backbone.multi_adapter import Apart, Placed
    from ifedicl.backbone.prompts import EncodedExamples

_log = logging.getLogger(__name__)


class OnModel:
    """An adapter on its model, ready for any number of examples.

    Several threads may share it, and others on the same model: calls wait for each other.
    """

    def __init__(self, adapter: Content, backbone: Backbone) -> None:
        """Check that the adapter was made with this model.

        Raises:
            FingerprintError: it was made with another model.
            AdapterError: it names layers that the model does not have.
        """
        from ifedicl.backbone.scorers import scorer_of

        if backbone.fingerprint != adapter.fingerprint:
            raise FingerprintError(
                f"the adapter was made with {adapter.model.source} (fingerprint {adapter.fingerprint[:12]}…), not with "
                f"{backbone.source} ({backbone.fingerprint[:12]}…). Its vectors do not fit another model, tokenizer or "
                "quantisation. Load the same model, or calibrate an adapter for this one"
            )
        readout = adapter.readout
        fits = readout is None or readout.fits(adapter.task.columns, backbone.width, backbone.layers)
        if adapter.context.layers.stop > backbone.layers or not fits:
            raise AdapterError(
                f"the adapter {adapter.task.name!r} names layers beyond the model's {backbone.layers}: its {HEADER} was "
                "changed. Copy the adapter again"
            )
        self.adapter = adapter
        self.backbone = backbone
        self.scorer = scorer_of(backbone, adapter.task)

    def placed(self) -> tuple[Placed | Apart, Placed | Apart]:
        """The adapter and the raw model with its task, as a server runs them (:mod:`~ifedicl.backbone.multi_adapter`)."""
        from ifedicl.backbone.hooks import Injection
        from ifedicl.backbone.multi_adapter import on_model

        injection = Injection.of(self.backbone, self.adapter.context, self.adapter.coefficients)
        return on_model(self.scorer, injection, self.adapter.readout), on_model(self.scorer)

    def scores(self, examples: Sequence[AnyExample], *, on_progress: Callable[[int], None] | None = None) -> npt.NDArray[Any]:
        """What the adapter says of examples, as :meth:`AnyTask.evaluation` reads it; what it answers does not depend on theirs.

        Raises:
            DataError: a text has no tokens.
        """
        return self._scores(self.scorer.encoded(examples), on_progress)

    def _scores(self, examples: EncodedExamples, on_progress: Callable[[int], None] | None) -> npt.NDArray[Any]:
        from ifedicl.backbone.hooks import applied

        if cut := examples.prompts.truncated:
            _log.warning("%d of %d texts were cut to fit the model's window", cut, len(examples.labels))
        with applied(self.backbone, self.adapter.context, self.adapter.coefficients):
            return self.scorer.scores(examples, readout=self.adapter.readout, on_progress=on_progress)

    def answers(self, examples: Sequence[AnyExample], *, on_progress: Callable[[int], None] | None = None) -> list[Answer]:
        """Answer examples, whatever answers they have.

        Raises:
            InputError: ``examples`` holds something else than examples of the task's kind.
            DataError: a text has no tokens.
        """
        encoded = self._encoded(examples)
        return self.adapter.task.answered(self._scores(encoded, on_progress), encoded.labels, examples)

    def evaluate(self, examples: Sequence[AnyExample], *, on_progress: Callable[[int], None] | None = None) -> AnyEvaluation:
        """Answer examples and compare with their answers.

        Raises:
            InputError: ``examples`` holds something else than examples of the task's kind.
            DataError: a text has no tokens.
        """
        encoded = self._encoded(examples)
        return self.adapter.task.evaluation(self._scores(encoded, on_progress), encoded.labels)

    def _encoded(self, examples: Sequence[AnyExample]) -> EncodedExamples:
        self.adapter.task.check_classes(examples)
        return self.scorer.encoded(examples)
