"""Sums over examples from which a readout follows, and the few bits in which they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ifedicl.core.penalties import MIDDLE_PENALTY, PENALTIES, emphases
from ifedicl.core.readout import Readout
from ifedicl.core.refinement import Products, Refinement, orthonormal
from ifedicl.core.rounding import dither
from ifedicl.core.sketch import Directions, Gram
from ifedicl.core.units import LARGEST_FEATURE, Units
from ifedicl.core.vectors import Array64, all_finite

if TYPE_CHECKING:
    import torch

_LEAST_GAP = 0.01
"""Least distance of the mean scores with and without a label that is stretched to 1."""
_MEAN_STEPS = 127  # of a mean on the wire, to each side of 0
_STEPS = 7  # of a number of the sketch on the wire, to each side of 0
_TOLERANCE = 1e-2  # of rounding on the wire


@dataclass(frozen=True)
class ReadoutSums:
    """What ridge regression needs of examples; the sums of two sets of examples add up.

    ``x`` are the ``F`` features of an example in :class:`~ifedicl.core.units.Units`.

    Attributes:
        counts: ``(C,)`` float64, examples by label, where each has one. ``(2, C)``: examples with and without each label, where
            each may have several, and all have the first.
        moment: ``(F, C)`` float64, ``Σx`` by label.
        diagonal: ``(F,)`` float64, ``Σx²``.
        sketch: ``(F, m)`` float64, ``Σx (xᵀQ)`` with shared directions ``Q``.
        along: ``(m,)`` float64, ``Σxᵀ Q``.
        units: of the features, public.
        clients: whose sums these are.
    """

    counts: Array64
    moment: Array64
    diagonal: Array64
    sketch: Array64
    along: Array64
    units: Units
    clients: int = 1

    @classmethod
    def of(
        cls,
        features: npt.NDArray[np.floating],
        labels: npt.NDArray[np.integer],
        classes: int,
        units: Units,
        directions: Directions,
        device: torch.device | None = None,
    ) -> Self:
        """Sum over ``(N, F)`` features on a device (None: the CPU).

        ``labels``: ``(N,)`` positions, or ``(N, C)`` 0 and 1 where each example may have several, and all have the first.
        """
        from ifedicl.core.transfer import to_device, to_host  # a FLARE server, which has no model, needs no torch

        inside, targets = units.standard(features), np.eye(classes)[labels] if labels.ndim == 1 else labels.astype(np.float64)
        rows, along, of_labels = (to_device(array, device) for array in (inside, directions.along(inside), targets))
        counts, moment, diagonal, sketch, means = to_host(
            of_labels.sum(0), rows.T @ of_labels, rows.square().sum(0), rows.T @ along, along.sum(0)
        )
        if labels.ndim > 1:
            counts = np.stack([counts, len(inside) - counts])
        return cls(counts, moment, diagonal, sketch, means, units)

    @property
    def overlaps(self) -> bool:
        """Whether an example may have several labels."""
        return self.counts.ndim > 1

    @property
    def by_label(self) -> Array64:
        """``(C,)``: examples that have each label."""
        return self.counts[0] if self.overlaps else self.counts

    @property
    def examples(self) -> int:
        """The number of examples."""
        return round(self._size)

    @property
    def _size(self) -> float:
        return float((self.counts[:, 0] if self.overlaps else self.counts).sum())

    @property
    def total(self) -> Array64:
        """``(F,)``: ``Σx`` over all examples."""
        total: Array64 = self.moment[:, 0] if self.overlaps else self.moment.sum(axis=1)
        return total

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite, and all units are above 0."""
        return all_finite(self.arrays) and self.units.are_usable

    @property
    def arrays(self) -> dict[str, Array64]:
        """The sums by name, which are numbers of examples and of their features; not the units."""
        return {name: getattr(self, name) for name in ("counts", "moment", "diagonal", "sketch", "along")}

    @property
    def is_possible(self) -> bool:
        """Whether some examples could have these sums: no mean and no product is larger than the squares allow."""
        if not self.is_finite or (self.counts < 0).any() or self.examples < 1:
            return False
        by_label = np.square(self.moment) / np.maximum(self.by_label, 1.0)  # Cauchy and Schwarz, label by label
        if self.overlaps and ((self.counts.sum(axis=0) != self._size).any() or self.counts[1, 0]):
            return False
        squares = by_label.max(axis=1) if self.overlaps else by_label.sum(axis=1)
        most = (1 + _TOLERANCE) * self.diagonal + _TOLERANCE * self.examples
        bounded = (self.diagonal <= (1 + _TOLERANCE) * LARGEST_FEATURE**2 * self.examples).all()
        if not (squares <= most).all() or not bounded:
            return False
        lengths = most.sum()  # Σ|x|², which no Σ(xᵀq)² exceeds
        products = (np.abs(self.sketch) <= np.sqrt(most * lengths)[:, None]).all()
        return bool(products and (np.abs(self.along) <= np.sqrt(self.examples * lengths)).all())

    @classmethod
    def from_wire(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Self:
        """From :attr:`on_wire`.

        Raises:
            KeyError, ValueError: an array is missing, does not fit the others, or is not of its dtype.
        """
        counts, means, sizes, deviations, scales, along, units = (
            arrays[name].astype(np.float64) for name in ("counts", "means", "sizes", "deviations", "scales", "along", "units")
        )
        (size, classes), (count,), steps = means.shape, scales.shape, arrays["steps"]
        halves = steps.astype(np.uint8)
        shapes = counts.shape, sizes.shape, deviations.shape, along.shape, units.shape, steps.shape
        allowed = (classes,) if counts.ndim == 1 else (2, classes)
        if shapes != (allowed, (size,), (size,), (count,), (2, size), (size, -(-count // 2))):
            raise ValueError(f"means: received {means.shape}, which does not fit the shapes {shapes} of the other arrays")
        if steps.dtype != np.uint8 or arrays["means"].dtype != np.int8 or (deviations < 0).any() or (counts < 0).any():
            raise ValueError(
                f"steps, deviations, counts: received {steps.dtype} steps; allowed: uint8, int8 means, and no number below 0"
            )
        numbers = np.stack([halves & 15, halves >> 4], axis=-1).reshape(size, -1)[:, :count].astype(np.float64)
        if not numbers.all():
            raise ValueError("steps: received 0; allowed: two numbers of 1 to 15 in a byte")
        moment = means / _MEAN_STEPS * sizes[:, None] * (counts if counts.ndim == 1 else counts[0])
        bare = cls(counts, moment, deviations, np.zeros((size, count)), along, Units.of_numbers(*units))
        totals, examples = bare.total, max(bare._size, 1.0)
        deviations = deviations * np.sqrt(examples)
        scatter = (numbers - _STEPS - 1) / _STEPS * scales * deviations[:, None]
        return replace(
            bare,
            diagonal=np.square(deviations) + np.square(totals) / examples,
            sketch=scatter + np.outer(totals, along),
            along=along * examples,
        )

    @property
    def on_wire(self) -> dict[str, npt.NDArray[np.generic]]:
        """The same sums as numbers of similar size, most of which fit into 4 bits.

        ``counts`` as they are, int64; ``means`` ``(F, C)`` int8 in 127ths of a feature's largest one; that is in ``sizes``
        ``(F,)`` float16; ``deviations`` ``(F,)`` float16; ``steps`` ``(F, ⌈m / 2⌉)`` uint8,
        two numbers a byte: the sketch of the centred features, each divided by its deviation, in steps of a seventh of a
        direction's largest number, which is in ``scales``; ``along``, the means along the directions, and ``scales`` ``(m,)``
        float32; ``units`` ``(2, F)`` float16. Steps are rounded up or down by chance, so that sums of clients have no bias. The
        draw follows from the numbers.
        """
        examples, totals = max(self.examples, 1), self.total
        deviations = np.sqrt(np.maximum(self.diagonal - np.square(totals) / examples, 0.0))
        centred = self.sketch - np.outer(totals, self.along) / examples
        relative = np.divide(centred, deviations[:, None], out=np.zeros_like(centred), where=deviations[:, None] > 0)
        scales = np.abs(np.nan_to_num(relative)).max(axis=0, initial=0.0)
        steps = _STEPS * relative / np.where(scales > 0, scales, 1.0)
        # 4 bits cannot say that a number is not finite; the deviations do.
        classes = self.moment.shape[1]
        draws = self.dither((len(steps), classes + steps.shape[1]))
        whole = np.clip(np.rint(np.nan_to_num(steps) + draws[:, classes:]), -_STEPS, _STEPS).astype(np.int8) + _STEPS + 1
        whole = np.pad(whole, [(0, 0), (0, whole.shape[1] % 2)], constant_values=_STEPS + 1).astype(np.uint8)
        means = np.clip(self.moment / np.maximum(self.by_label, 1.0), -LARGEST_FEATURE, LARGEST_FEATURE)
        sizes = np.abs(means).max(axis=1).astype(np.float16)
        relative = np.divide(means, sizes[:, None], out=np.zeros_like(means), where=sizes[:, None] > 0, dtype=np.float64)
        parts = np.clip(np.rint(_MEAN_STEPS * np.nan_to_num(relative) + draws[:, :classes]), -_MEAN_STEPS, _MEAN_STEPS)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "counts": np.rint(np.nan_to_num(self.counts)).astype(np.int64),
            "means": parts.astype(np.int8),
            "sizes": sizes,
            "deviations": (deviations / np.sqrt(examples)).astype(np.float16),
            "steps": whole[:, ::2] | (whole[:, 1::2] << 4),
            "scales": scales.astype(np.float32),
            "along": (self.along / examples).astype(np.float32),
            "units": np.stack(self.units.numbers).astype(np.float16),
        }
        return arrays

    def dither(self, shape: tuple[int, ...]) -> Array64:
        """What rounds that many numbers of the sums up or down by chance."""
        return dither(self.moment, shape)

    @property
    def mean(self) -> Array64:
        """``(F,)``: of the features, in their units."""
        mean: Array64 = self.total / max(self._size, 1.0)
        return mean

    def refined(self, asked: Refinement, answer: Products) -> Self:
        """The same with the products of a refinement behind the sketch.

        Where other examples gave the products than gave the sums, they count as if they were as many.
        """
        centre, directions = asked.centre.astype(np.float64), asked.directions.astype(np.float64)
        totals, examples = self.total, self._size
        along = totals @ directions
        # The sums are about 0, the products about the centre: Σxxᵀ = Σ(x - c)(x - c)ᵀ + t cᵀ + c tᵀ - n c cᵀ with t = Σx.
        about_0 = np.outer(totals - examples * centre, centre @ directions) + np.outer(centre, along)
        products = answer.products * (examples / answer.examples) + about_0
        return replace(self, sketch=np.concatenate([self.sketch, products], axis=1), along=np.append(self.along, along))

    def solve(
        self, directions: Directions, pooled_layers: tuple[int, ...] = (), *, has_intercept: bool = True
    ) -> list[Readout]:
        """Readouts of temperature 1 that can travel in 16 bits.

        One for each of :data:`~ifedicl.core.penalties.PENALTIES` with each of :func:`~ifedicl.core.penalties.emphases`.

        Args:
            directions: those of the sketch.
            pooled_layers: those at which the clients read the text's mean states.
            has_intercept: False: the intercept is 0, as in a classification head without a bias, and features are not centred.
        """
        shares, means, readouts = self.by_label / max(self._size, 1.0), self.mean, list[Readout]()
        factors = emphases(len(self.moment), self.moment.shape[1], len(pooled_layers))
        tried = [penalty * factor for factor in factors for penalty in PENALTIES]
        for weights in self.weights(directions, tried, are_centred=has_intercept):
            own, level = self._stretched(weights, shares) if self.overlaps and has_intercept else (weights, shares)
            raw = own / self.units.scale[:, None]
            intercept = has_intercept * (level - means @ own - self.units.offset @ raw)
            scores = np.concatenate([raw, np.broadcast_to(intercept, (1, len(shares)))]).T
            if self.overlaps:
                scores[0] /= 2  # a label is a yes from half way between no and yes
            readouts.append(Readout(scores.astype(np.float32), pooled_layers).coarse)
        return readouts

    def _stretched(self, weights: Array64, shares: Array64) -> tuple[Array64, Array64]:
        """Weights, and scores at the mean, for which examples without a label score 0 on average, and those with it 1.

        A penalty draws the scores of a rare label towards 0, so that one half would be a yes for few texts.
        """
        count, total = self._size, self.total[:, None]
        absent = (total - self.moment) / np.maximum(count - self.by_label, 1.0)
        gaps = ((self.moment / np.maximum(self.by_label, 1.0) - absent) * weights).sum(axis=0)
        without = shares + ((absent - total / max(count, 1.0)) * weights).sum(axis=0)
        divides = (self.by_label > 0) & (self.by_label < count)
        gaps = np.where(divides, np.maximum(gaps, _LEAST_GAP), 1.0)
        return weights / gaps, np.where(divides, (shares - without) / gaps, shares)

    def weights(self, directions: Directions, penalties: Sequence[Array64], *, are_centred: bool = True) -> list[Array64]:
        """``(F, C)`` for each penalty: the ridge solution for the features in their units.

        Features are centred, or else counted from 0 of the model's own numbers. A penalty is one number for each feature,
        ``(F,)``, or one for all, ``()``.
        """
        totals, means, examples = self.total, self.mean, max(self._size, 1.0)
        scatter = np.maximum(self.diagonal - totals * means, 0.0)
        gram = Gram.of(self.sketch - np.outer(means, self.along), scatter, directions)
        moment = self.moment - np.outer(totals, self.by_label / examples)
        if not are_centred:
            zero = self.units.offset / self.units.scale
            gram = gram.plus(np.sqrt(examples) * (means + zero))
            moment = self.moment + np.outer(zero, self.by_label)
        smallest = 1e-9 * scatter.sum() + np.finfo(np.float64).tiny
        changes = (scatter > smallest)[:, None]  # features that never change have no weight
        return [np.where(changes, gram.solve(moment, penalty * scatter + smallest), 0.0) for penalty in penalties]


def next_refinement(sums: ReadoutSums, directions: Directions, columns: int, depths: int = 0, number: int = 0) -> Refinement:
    """The directions of the present solution at a middle penalty, at most so many of them, for all clients.

    Args:
        sums: so far.
        directions: of their sketch.
        columns: the most directions.
        depths: of text means.
        number: of the refinement, from 0: they take turns with the :func:`~ifedicl.core.penalties.emphases`.
    """
    factors = emphases(len(sums.moment), sums.moment.shape[1], depths)
    (solution,) = sums.weights(directions, [MIDDLE_PENALTY * factors[number % len(factors)]])
    return Refinement(sums.mean.astype(np.float16), orthonormal(solution, directions.columns, columns))
