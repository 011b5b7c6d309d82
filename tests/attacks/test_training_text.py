"""Figures on training text: exact class counts, and gradients by differences of losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ifedicl.backbone.load import Backbone
from ifedicl.calibrate import gradient_sum
from ifedicl.core.coefficients import Coefficients
from ifedicl.data import Role
from ifedicl.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    FailureCode,
    StatisticsRequest,
    encode,
    pack,
    unpack,
)
from tests.support import tiny
from tests.support.attacker import (
    Overheard,
    client_behind,
    code,
    cosine,
    default_rules,
    flat,
    job,
    ones,
    owner,
    place_of,
)

STEP = 1e-3
MANY = tiny.method(calibration={"batch_size": 4, "local_steps": 4}, rounds={"rounds": 20})


def loss(victim: Overheard, place: str, values: Coefficients) -> float | FailureCode | None:
    """The summed loss of the victim's figure at these coefficients, or the code in its place."""
    reply = victim.handle(EvaluateRequest(place, values))
    return reply.tallies[0].loss_sum if isinstance(reply, EvaluateReply) else code(reply)


def differenced(victim: Overheard, place: str, start: Coefficients) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The gradient of the figures' loss, by two figures a coefficient."""
    found = []
    for position in range(start.scales.size):
        both = []
        for sign in (1, -1):
            scales = start.scales.copy()
            scales.ravel()[position] += sign * STEP
            figure = loss(victim, place, Coefficients(scales))
            assert isinstance(figure, float)
            both.append(figure)
        found.append((both[0] - both[1]) / (2 * STEP))
    return np.array(found)


def test_without_the_rule_figures_on_training_text_give_its_gradient(backbone: Backbone, tmp_path: Path) -> None:
    manifest, victim = job(backbone, MANY), owner(backbone, tmp_path)
    assert code(victim.begin(manifest)) is None
    own = client_behind(victim)._in_job
    own.roles[Role.SELECTION] = own.roles[Role.TRAIN]  # what a request for the training role would do
    found = differenced(victim, place_of(manifest), manifest.identity)
    train = own.part(Role.TRAIN)
    rows = list(range(len(train.labels)))
    true = gradient_sum(own.scorer, train, ones(manifest), manifest.identity, manifest.method, rows)
    assert cosine(found, flat(Coefficients.of(true.arrays))) > 0.999


@pytest.mark.parametrize("role", ["train", "gate", "selection"])
def test_no_request_names_a_role(backbone: Backbone, tmp_path: Path, role: str) -> None:
    manifest, victim = job(backbone), owner(backbone, tmp_path, over_flare=True)
    assert code(victim.begin(manifest)) is None
    kind, header, arrays = unpack(encode(EvaluateRequest(place_of(manifest), manifest.identity)))
    assert victim.head is not None
    head = victim.head.entries.to_bytes(8, "little") + bytes.fromhex(victim.head.digest)
    start = b"IFCL\x03\x01" + head
    assert code(victim.send(start + pack(kind, header, arrays))) is None
    head = victim.head.entries.to_bytes(8, "little") + bytes.fromhex(victim.head.digest)
    hostile = b"IFCL\x03\x01" + head + pack(kind, {**header, "role": role}, arrays)
    assert code(victim.send(hostile)) is FailureCode.BAD_REQUEST


def test_figures_are_counted_and_end(backbone: Backbone, tmp_path: Path) -> None:
    """With the job's own limit, there are too few figures for the gradient of a job with a subspace."""
    manifest, victim = job(backbone), owner(backbone, tmp_path)
    assert code(victim.begin(manifest)) is None
    start, place, codes = manifest.identity, place_of(manifest), []
    for number in range(manifest.limits.figures + 3):
        scales = start.scales + np.float32(number)
        codes.append(code(victim.handle(EvaluateRequest(place, Coefficients(scales)))))
    assert codes == [None] * manifest.limits.figures + [FailureCode.SPENT] * 3
    # Another job for the same run, with higher limits, does not begin at 0.
    higher = job(backbone)
    more = type(higher)(
        higher.task, higher.method, higher.model, higher.limits.model_copy(update={"figures": manifest.limits.figures + 1})
    )
    assert code(victim.begin(more)) is None
    codes = [
        code(victim.handle(EvaluateRequest(place_of(more), Coefficients(start.scales - np.float32(number)))))
        for number in range(1, 4)
    ]
    assert codes == [None, FailureCode.SPENT, FailureCode.SPENT]


def test_readout_sums_of_a_job_without_a_readout_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    policy = default_rules(allow={"class_counts": True, "readout_sums": True})
    manifest, victim = job(backbone), owner(backbone, tmp_path, policy=policy)
    assert code(victim.begin(manifest)) is None
    assert code(victim.handle(StatisticsRequest(place_of(manifest), manifest.identity))) is FailureCode.BAD_REQUEST
