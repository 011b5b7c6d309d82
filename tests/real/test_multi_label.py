"""Several labels, of the real model: a federation learns which of them short texts have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifedicl import Backbone, MultiLabelExample, MultiLabelTask, federate, simulate
from ifedicl.runs import zero_shot_adapter
from ifedicl.serve.asked.asked_label_sets import ROUTE
from ifedicl.settings import ModelSettings, changed, load_preset
from tests.support.serve import served

pytestmark = pytest.mark.real

PARTS = {
    "lift": ("The lift is stuck again", "Nobody can use the elevator", "The lift door does not close"),
    "heating": ("the radiators are cold", "it is freezing in all rooms", "there is no warm water"),
    "noise": ("the neighbours are loud at night", "music keeps us awake", "someone drills every morning"),
}
TASK = MultiLabelTask(name="tickets", labels=tuple(PARTS), template="Ticket: {text}\nAbout:")


def tickets(skip: int) -> tuple[MultiLabelExample, ...]:
    """Texts of every set of labels but the empty one; of those, the ones whose number leaves ``skip`` by 3."""
    found = []
    for number in range(81):
        picked = [(label, texts[number // 3**place % 3]) for place, (label, texts) in enumerate(PARTS.items())]
        kept = [pair for place, pair in enumerate(picked) if (1 + number % 7) >> place & 1]
        found.append(MultiLabelExample(", and ".join(text for _, text in kept), frozenset(label for label, _ in kept)))
    return tuple(example for number, example in enumerate(found) if number % 3 == skip)


def test_a_federation_learns_which_labels_texts_have(real_backbone: Backbone, model: ModelSettings, tmp_path: Path) -> None:
    pools = {"north": tickets(0), "south": tickets(1)}
    method = changed(load_preset("fast"), {"holdout": {"selection": 0.25}, "rounds": {"rounds": 3}}, "test")
    adapter = federate(simulate(real_backbone, TASK, pools, seed=0), model, TASK, method).adapter
    ours, raw = (each.on_model(real_backbone) for each in (adapter, zero_shot_adapter(real_backbone, model, TASK)))
    asked = tickets(2)
    evaluation, zero_shot = ours.evaluate(asked), raw.evaluate(asked)
    assert evaluation.figures["micro-F1"] > max(0.8, zero_shot.figures["micro-F1"] + 0.1)
    assert evaluation.loss < zero_shot.loss
    answer, shown = served(adapter, real_backbone, tmp_path, ROUTE.example), ROUTE.answer_example  # on /docs
    assert answer["results"][0]["labels"] == shown["results"][0]["labels"] == ["lift", "noise"]
