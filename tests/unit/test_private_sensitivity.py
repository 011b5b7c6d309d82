"""What one example changes of a private sum: its own clipped gradient, to the bit, whoever else is in the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ifedicl import seeds
from ifedicl.backbone.load import Backbone
from ifedicl.backbone.prompts import Prompts
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array64
from ifedicl.federation.messages import GradientReply, GradientRequest, JobRequest
from ifedicl.kinds.classify import Example, Task
from tests.support import tiny
from tests.support.families import QUICK
from tests.support.jobs import context_of, job_of
from tests.support.neighbours import PrivateOwner, bound_of, steps_of, try_neighbours
from tests.support.private import private_client, private_method, sums_in

DRAWS = 400
"""Of each family; 10,000 in all."""


def _examples(count: int, task: Task) -> tuple[Example, ...]:
    """Texts of one sentence to four."""
    draw, rows = seeds.generator(5, "lengths"), []
    for number in range(count):
        sentences = draw.choice(tiny.SENTENCES, size=int(draw.integers(1, 5)))
        rows.append(Example(f"{' '.join(map(str, sentences))} {number}", task.labels[number % len(task.labels)]))
    return tuple(rows)


@pytest.mark.parametrize(
    ("number", "family"),
    [pytest.param(*case, marks=[] if case[1] in QUICK[:2] else [pytest.mark.soak]) for case in enumerate(tiny.FAMILY_CASES)],
    ids=tiny.FAMILY_CASES,
)
def test_neighbouring_sums_differ_by_one_examples_own_part_and_never_beyond_the_sensitivity(
    number: int, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = (tiny.TASK, tiny.MANY_TOKENS)[number % 2]
    loss, rank = ("labels", "labels", "vocabulary")[number % 3], (0, 0, 2, 2)[number % 4]
    subspace: dict[str, Any] = {"subspace": {"rank": rank}} if rank else {}
    method = private_method(calibration={"loss": loss}, **subspace)
    public = [example.text for example in tiny.examples(8, task=task, seed=9)]
    owner = PrivateOwner.of(tiny.family_backbone(family), task, method, _examples(20, task), public)
    try_neighbours(owner, monkeypatch, draws=DRAWS, fresh=DRAWS // 2, seed=family)


def test_clients_of_neighbouring_data_reply_with_neighbouring_sums(backbone: Backbone) -> None:
    """Whole clients, each with its own draw of the rows, order of the examples and cached states."""
    run, rows, draws = private_method(server={"draw": 0.7}), _examples(9, tiny.TASK), np.random.default_rng(2)
    job = job_of(run, backbone)
    vectors = draws.standard_normal((len(job.layers), 2, backbone.width)).astype(np.float32)
    given = context_of(job, Context(vectors, first_layer=job.layers.start))

    def steps(held: Sequence[Example], round_number: int) -> Array64:
        client = private_client(backbone, held)
        client.handle(JobRequest(job))
        sums = sums_in(client)
        client.handle(given)
        reply = client.handle(GradientRequest(given.context_id, round_number, job.initial))
        assert isinstance(reply, GradientReply), reply
        found = steps_of(reply.sums, sums)
        assert np.linalg.norm(found) <= len(held) * bound_of(sums).sensitivity
        return found

    changes = 0
    for place, removed in enumerate(rows):
        others = [row for row in rows if row is not removed]
        order = [others[number] for number in draws.permutation(len(others))]
        change, mate = steps(rows, place % 3) - steps(order, place % 3), rows[place - 1]
        np.testing.assert_array_equal(change, steps([removed, mate], place % 3) - steps([mate], place % 3))
        changes += bool(change.any())
    assert 0 < changes < len(rows), "those that were not drawn change nothing"


@pytest.mark.parametrize("family", tiny.FAMILY_CASES)
def test_what_is_read_of_a_text_alone_does_not_depend_on_the_others(family: str) -> None:
    """The sums of a private readout and the held-out figures are made of such readings."""
    task, draws = tiny.MANY_TOKENS if len(family) % 2 else tiny.TASK, np.random.default_rng(3)
    scorer = Scorer(tiny.family_backbone(family), task)
    prompts = scorer.encoded(_examples(8, task)).prompts.tokens
    layer = scorer.backbone.layers
    whole = scorer.read(Prompts(prompts, 0), (layer,), alone=True)
    order = [int(row) for row in draws.permutation(len(prompts))[:5]]
    part = scorer.read(Prompts(tuple(prompts[row] for row in order), 0), (layer,), alone=True)
    np.testing.assert_array_equal(part.states, whole.states[order])
    np.testing.assert_array_equal(part.logs, whole.logs[order])


def test_what_is_read_of_a_text_in_company_depends_on_the_company(backbone: Backbone) -> None:
    """Or reading texts alone would be a waste."""
    scorer = Scorer(backbone, tiny.TASK)
    prompts = scorer.encoded(_examples(12, tiny.TASK)).prompts.tokens
    whole, part = scorer.read(Prompts(prompts, 0), (2,)), scorer.read(Prompts(prompts[:3], 0), (2,))
    assert not np.array_equal(whole.states[:3], part.states)
