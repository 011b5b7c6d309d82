"""Two ways to divide the same examples: the difference of two figures is one example's label and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.data import Role
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    EvaluateReply,
    EvaluateRequest,
    FailureCode,
    VectorsRequest,
)
from ifedicl.kinds.classify import Example
from ifedicl.metrics import Tally
from ifedicl.owner.policy import Policy, open_policy
from tests.support import tiny
from tests.support.attacker import Overheard, client_behind, code, default_rules, job, owner, place_of
from tests.support.jobs import job_of

ROWS = tiny.examples(60)


def split_by(selection: float, gate: float = 0.0, seed: int = 0) -> Any:
    calibration = {"batch_size": 4, "local_steps": 4}
    return tiny.method(holdout={"selection": selection, "gate": gate}, calibration=calibration, seed=seed)


def figure(victim: Overheard, manifest: Manifest) -> Tally | FailureCode | None:
    """The zero-shot figure on the examples that the job holds out, or the code in its place."""
    if (failed := code(victim.begin(manifest))) is not None:
        return failed
    reply = victim.handle(EvaluateRequest(place_of(manifest), manifest.identity))
    return reply.tallies[0] if isinstance(reply, EvaluateReply) else code(reply)


def bisected(backbone: Backbone, folder: Path, policy: Policy) -> tuple[Tally, Overheard]:
    """The figure of the one example between two fractions, which the attacker finds by halving."""
    victim, low, high = owner(backbone, folder, policy=policy, examples=ROWS), 0.2, 0.5
    figures = {at: figure(victim, job(backbone, split_by(at))) for at in (low, high)}
    while True:
        first, second = figures[low], figures[high]
        assert isinstance(first, Tally)
        assert isinstance(second, Tally)
        if second.examples - first.examples <= 1:
            counts = second.examples - first.examples, second.correct - first.correct
            return Tally(*counts, second.loss_sum - first.loss_sum), victim
        middle = (low + high) / 2
        figures[middle] = figure(victim, job(backbone, split_by(middle)))
        found = figures[middle]
        assert isinstance(found, Tally)
        low, high = (middle, high) if found.examples == first.examples else (low, middle)


def test_without_the_rule_two_fractions_give_one_examples_loss(backbone: Backbone, tmp_path: Path) -> None:
    found, victim = bisected(backbone, tmp_path, open_policy())
    assert found.examples == 1
    own = client_behind(victim)._in_job
    reading = own.scorer.reading(own.scorer.encoded(ROWS))
    losses = [-float(logs[tiny.TASK.index(row.label)]) for row, logs in zip(ROWS, reading.logs, strict=True)]
    assert min(abs(loss - found.loss_sum) for loss in losses) < 1e-3


@pytest.mark.parametrize("over_flare", [False, True])
def test_another_fraction_for_the_same_question_is_refused(backbone: Backbone, tmp_path: Path, over_flare: bool) -> None:
    victim = owner(backbone, tmp_path, examples=ROWS, over_flare=over_flare)
    assert isinstance(figure(victim, job(backbone, split_by(0.25))), Tally)
    for method in (split_by(0.26), split_by(0.24), split_by(0.25, gate=0.1)):
        assert figure(victim, job(backbone, method)) is FailureCode.REFUSED
    assert isinstance(figure(victim, job(backbone, split_by(0.25))), Tally)


def test_a_restart_does_not_allow_another_fraction(backbone: Backbone, tmp_path: Path) -> None:
    assert isinstance(figure(owner(backbone, tmp_path, examples=ROWS), job(backbone, split_by(0.25))), Tally)
    assert figure(owner(backbone, tmp_path, examples=ROWS), job(backbone, split_by(0.3))) is FailureCode.REFUSED


def test_the_coordinators_seed_moves_no_example_to_another_role(backbone: Backbone, tmp_path: Path) -> None:
    victim = owner(backbone, tmp_path, examples=ROWS)
    figures = [figure(victim, job(backbone, split_by(0.25, seed=seed))) for seed in range(4)]
    assert all(isinstance(found, Tally) for found in figures)
    assert len(set(figures)) == 1
    # Without the owner's key, in a simulation, the seed decides.
    client = client_behind(victim)
    client._split_key = b""
    counts = set()
    for seed in range(4):
        client.prepare(job(backbone, split_by(0.25, seed=seed)))
        counts.add(client._in_job.keys(Role.SELECTION))
    assert len(counts) == 4


def test_a_task_with_a_label_that_nobody_has_divides_no_examples_anew(backbone: Backbone, tmp_path: Path) -> None:
    """Other tasks on one model: the examples keep their roles, and replies are compared with those to the other tasks."""
    victim = owner(backbone, tmp_path, examples=ROWS)
    figures, sets = [], set()
    for number in range(3):
        task = tiny.TASK.model_copy(update={"labels": (*tiny.TASK.labels, f"never {number}"), "label_words": ()})
        task = type(task).model_validate(task.model_dump())
        manifest = job_of(split_by(0.25), backbone, task)
        figures.append(figure(victim, manifest))
        sets.add(client_behind(victim)._in_job.keys(Role.TRAIN))
        assert code(victim.handle(VectorsRequest(manifest.digest, ""))) is None
    assert all(isinstance(found, Tally) for found in figures)
    assert len(sets) == 1
    other = job_of(split_by(0.3), backbone, tiny.TASK)
    assert figure(victim, other) is FailureCode.REFUSED
    grown = owner(backbone, tmp_path, examples=(*ROWS, *tiny.examples(1, seed=9)))
    again = job_of(split_by(0.25), backbone, tiny.TASK)
    assert code(grown.begin(again)) is None
    reply = grown.handle(VectorsRequest(again.digest, ""))
    is_training = len(client_behind(grown)._in_job.keys(Role.TRAIN)) > len(next(iter(sets)))
    assert code(reply) is (FailureCode.TOO_FEW if is_training else None)


def test_a_figure_after_one_added_example_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    """Two gate figures whose difference is one example: the same kind of attack without a second job."""
    policy = default_rules(allow={"class_counts": True})
    method = split_by(0.2, gate=0.3)
    before = owner(backbone, tmp_path, policy=policy, examples=ROWS)
    manifest = job(backbone, method)
    assert code(before.begin(manifest)) is None
    asked = CompareRequest(place_of(manifest), manifest.identity, None)
    assert isinstance(before.handle(asked), CompareReply)
    gate = client_behind(before)._in_job.keys(Role.GATE)
    added = _of_gate(backbone, tmp_path, method, 1)
    after = owner(backbone, tmp_path, policy=policy, examples=(*ROWS, *added))
    assert code(after.begin(manifest)) is None
    assert len(client_behind(after)._in_job.keys(Role.GATE)) == len(gate) + 1
    assert code(after.handle(asked)) is FailureCode.TOO_FEW
    many = owner(backbone, tmp_path, policy=policy, examples=(*ROWS, *_of_gate(backbone, tmp_path, method, 4)))
    assert code(many.begin(manifest)) is None
    assert isinstance(many.handle(asked), CompareReply)


def _of_gate(backbone: Backbone, folder: Path, method: Any, count: int) -> tuple[Example, ...]:
    """Examples that the owner's key sends to the gate."""
    draws = tiny.examples(200, seed=7)
    probe = owner(backbone, folder / "probe", examples=draws)
    client_behind(probe).prepare(job(backbone, method))
    held = client_behind(probe)._in_job.roles[Role.GATE][:count]
    return tuple(row for row in held if isinstance(row, Example))
