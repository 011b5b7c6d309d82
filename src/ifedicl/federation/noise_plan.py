"""The noise of a private job: what one example can change in each kind of reply, and the part of the budget that each costs.

An example has one role for ever, whatever other examples there are. So a training example is in gradient and readout sums only,
and a held-out one in figures only: each role has the whole budget (parallel composition).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ifedicl.core.framed_sums import SENSITIVITY, Frame
from ifedicl.data import Role
from ifedicl.dp.accountant import Release, noise_multiplier
from ifedicl.dp.clipping import Bound
from ifedicl.dp.skellam import Crowd
from ifedicl.federation import messages
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import RequestMessage
from ifedicl.settings import NoiseSettings

_READOUT_PART = 0.5
"""Part of the training examples' budget for the readout's sums, if there are rounds too."""
_FIGURES = Bound(math.sqrt(3), 4)
"""Of one held-out example: it is counted, each of two adapters may be right, and they may disagree; never all four."""


@dataclass(frozen=True)
class PlannedNoise:
    """The noise of one kind of reply.

    Attributes:
        role: of the examples that are in it.
        bound: on what one of them adds.
        release: one reply.
    """

    role: Role
    bound: Bound
    release: Release


@dataclass(frozen=True)
class NoisePlan:
    """The noise of all replies of a job.

    Attributes:
        settings: ε and δ of the whole job.
        crowd: the clients that add noise to a sum.
        by_kind: of request.
    """

    settings: NoiseSettings
    crowd: Crowd
    by_kind: Mapping[str, PlannedNoise]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The plan of a job with noise: the same at every client and at the coordinator."""
        privacy = manifest.method.privacy
        assert privacy is not None
        assert privacy.noise is not None
        wanted, planned = _wanted(manifest, privacy.noise), dict[str, PlannedNoise]()
        for role in Role:
            planned |= _shared(role, [item for item in wanted if item.request.role is role and item.times], privacy.noise)
        return cls(privacy.noise, Crowd(privacy.min_survivors, privacy.colluders), planned)

    def deviation(self, kind: str, clients: int) -> float:
        """The standard deviation of the noise on each number of a total over this number of clients."""
        planned = self.by_kind[kind]
        variance = self.crowd.share(planned.release.variance) * max(clients, self.crowd.survivors)
        return math.sqrt(variance) * planned.bound.step


@dataclass(frozen=True)
class _Wanted:
    """Replies of one kind that a run asks for, and the part of the budget for all of them, up to a factor."""

    request: type[RequestMessage]
    bound: Bound
    times: int
    part: float = 1.0


def _shared(role: Role, wanted: list[_Wanted], settings: NoiseSettings) -> dict[str, PlannedNoise]:
    """The least noise with which the replies about one role cost the whole budget together."""
    if not wanted:
        return {}
    total = sum(item.part for item in wanted)

    def release(item: _Wanted, multiplier: float, times: int = 1) -> Release:
        sensitivity, part = item.bound.sensitivity, item.part / total / item.times
        return Release(item.bound.size, sensitivity, (multiplier * sensitivity) ** 2 / part, times)

    multiplier = noise_multiplier(
        settings.epsilon, settings.delta, lambda each: [release(item, each, item.times) for item in wanted]
    )
    return {item.request.kind: PlannedNoise(role, item.bound, release(item, multiplier)) for item in wanted}


def _wanted(manifest: Manifest, settings: NoiseSettings) -> list[_Wanted]:
    """What a run asks for."""
    method = manifest.method
    wanted = [
        _Wanted(messages.EvaluateRequest, _FIGURES, _evaluations(manifest)),
        _Wanted(messages.CompareRequest, _FIGURES, int(method.holdout.gate > 0)),
    ]
    if method.takes_gradients:
        size = sum(math.prod(shape) for shape in manifest.form.shapes.values())
        bound = Bound(settings.clip * math.sqrt(size), size)
        wanted.append(_Wanted(messages.GradientRequest, bound, method.rounds.rounds, 1 - _READOUT_PART))
    if method.readout is not None:
        bound = Bound(SENSITIVITY, Frame.row_size(manifest.features))
        wanted.append(_Wanted(messages.NoisyStatisticsRequest, bound, 1, _READOUT_PART))
    return wanted


def _evaluations(manifest: Manifest) -> int:
    """How often the selection examples are evaluated: the raw model, rounds, and readouts."""
    method = manifest.method
    if method.holdout.selection == 0:
        return 0
    rounds = math.ceil(method.rounds.rounds / method.rounds.evaluate_every)
    return (0 if method.is_one_shot else 1 + rounds) + (method.readout is not None)
