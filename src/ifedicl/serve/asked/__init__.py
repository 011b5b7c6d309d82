"""How adapters are asked over HTTP: for each kind of task a route, its request and its answer, in a file of its own.

Nothing else in the server asks which kind a task is of.
"""

from __future__ import annotations

from collections.abc import Mapping

from ifedicl.kinds.any_task import AnyTask
from ifedicl.serve.asked import asked_choices, asked_label_sets, asked_labels, asked_passages
from ifedicl.serve.asked.any_route import KindRoute

_ROUTES = (asked_labels.ROUTE, asked_choices.ROUTE, asked_label_sets.ROUTE, asked_passages.ROUTE)
ROUTES: Mapping[type[AnyTask], KindRoute] = {route.task: route for route in _ROUTES}
"""The route of each kind."""
