"""Which scorer a kind of task has, and one scorer for all clients of a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ifedicl.backbone.answer_scoring import AnswerScorer
from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.option_scoring import OptionScorer
from ifedicl.backbone.scoring import Scorer
from ifedicl.backbone.set_scoring import SetScorer
from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.choose import ChooseTask
from ifedicl.kinds.classify import Task
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.multi_label import MultiLabelTask

_SCORERS: Mapping[type[AnyTask], Callable[..., BaseScorer]] = {
    Task: Scorer,
    ChooseTask: OptionScorer,
    MultiLabelTask: SetScorer,
    ExtractTask: AnswerScorer,
}


def scorer_of(
    backbone: Backbone, task: AnyTask, *, first_layer: int = 0, on_pass: Callable[[], None] = lambda: None
) -> BaseScorer:
    """The scorer of a task; ``first_layer`` and ``on_pass`` as :class:`BaseScorer`.

    Raises:
        TaskError: the model cannot score the task.
    """
    return _SCORERS[type(task)](backbone, task, first_layer=first_layer, on_pass=on_pass)


class Scorers:
    """The present task's scorer for all clients of one process: answers are encoded once, and kept states are shared."""

    def __init__(self, backbone: Backbone) -> None:
        """Prepare nothing yet."""
        self._backbone = backbone
        self._last: tuple[AnyTask, int, BaseScorer] | None = None

    def of(self, task: AnyTask, first_layer: int, on_pass: Callable[[], None]) -> BaseScorer:
        """A scorer as :func:`scorer_of` makes it; it shares what the one before has, if that has the same task and layer.

        Raises:
            TaskError: as :func:`scorer_of`.
        """
        if self._last is None or self._last[:2] != (task, first_layer):
            self._last = task, first_layer, scorer_of(self._backbone, task, first_layer=first_layer)
        return self._last[2].shared(on_pass)
