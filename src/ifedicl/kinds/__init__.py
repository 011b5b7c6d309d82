"""The kinds of task: each is one class behind one protocol, :class:`~ifedicl.kinds.any_task.AnyTask`.

Nothing outside this room asks which kind a task is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from ifedicl.kinds.any_task import AnyTask
from ifedicl.kinds.choose import ChooseTask
from ifedicl.kinds.classify import Task
from ifedicl.kinds.extraction import ExtractTask
from ifedicl.kinds.multi_label import MultiLabelTask

KINDS: Mapping[str, type[AnyTask]] = {task.kind: task for task in (Task, ChooseTask, ExtractTask, MultiLabelTask)}
"""The kinds by their names in files."""
USUAL = Task
"""The kind of a task that names none."""


def kind_of_task(values: object) -> type[AnyTask]:
    """The kind of a task that a file describes.

    Raises:
        ValueError: there is no such kind.
    """
    name = values.get("kind", USUAL.kind) if isinstance(values, Mapping) else USUAL.kind
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"kind: received {str(name)[:40]!r}; allowed: {', '.join(KINDS)}")
    return KINDS[name]


def _of_its_kind(value: Any, handler: ValidatorFunctionWrapHandler) -> AnyTask:
    del handler  # it knows what all kinds have in common only
    return value if isinstance(value, AnyTask) else kind_of_task(value).model_validate(value)


TaskField: TypeAlias = Annotated[SerializeAsAny[AnyTask], WrapValidator(_of_its_kind)]
"""A task of any kind, as a field of a file."""
