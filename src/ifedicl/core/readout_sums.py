"""Sums over examples from which a readout follows, and the few bits in which they travel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from ifedicl import seeds
from ifedicl.core.readout import Readout
from ifedicl.core.sketch import Directions, Gram
from ifedicl.core.units import LARGEST_FEATURE, Units
from ifedicl.core.vectors import Array64, all_finite

if TYPE_CHECKING:
    import torch

PENALTIES = (0.3, 1.0, 3.0, 10.0)
"""Ridge penalties of all weights but the intercept, in units of each feature's scatter, as if features were standardised."""
_STEPS = 7  # of a number of the sketch on the wire, to each side of 0
_TOLERANCE = 1e-2  # of rounding on the wire


@dataclass(frozen=True)
class ReadoutSums:
    """What ridge regression needs of examples; the sums of two sets of examples add up.

    ``x`` are the ``F`` features of an example in :class:`~ifedicl.core.units.Units`.

    Attributes:
        counts: ``(C,)`` float64, examples by label.
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
        """Sum over ``(N, F)`` features and ``(N,)`` label positions, on a device (None: the CPU)."""
        from ifedicl.core.transfer import to_device, to_host  # a FLARE server, which has no model, needs no torch

        inside, targets = units.standard(features), np.eye(classes)[labels]
        rows, along, of_labels = (to_device(array, device) for array in (inside, directions.along(inside), targets))
        counts, moment, diagonal, sketch, means = to_host(
            of_labels.sum(0), rows.T @ of_labels, rows.square().sum(0), rows.T @ along, along.sum(0)
        )
        return cls(counts, moment, diagonal, sketch, means, units)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return round(float(self.counts.sum()))

    @property
    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite, and all units are above 0."""
        arrays = {name: getattr(self, name) for name in ("counts", "moment", "diagonal", "sketch", "along")}
        return all_finite(arrays) and self.units.are_usable

    @property
    def is_possible(self) -> bool:
        """Whether some examples could have these sums: no mean and no product is larger than the squares allow."""
        if not self.is_finite or (self.counts < 0).any() or self.examples < 1:
            return False
        squares = (np.square(self.moment) / np.maximum(self.counts, 1.0)).sum(axis=1)  # Cauchy and Schwarz, label by label
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
        counts, means, deviations, scales, along, units = (
            arrays[name].astype(np.float64) for name in ("counts", "means", "deviations", "scales", "along", "units")
        )
        (size, classes), (count,), steps = means.shape, scales.shape, arrays["steps"]
        halves = steps.astype(np.uint8)
        shapes = counts.shape, deviations.shape, along.shape, units.shape, steps.shape
        if shapes != ((classes,), (size,), (count,), (2, size), (size, -(-count // 2))):
            raise ValueError(f"means: received {means.shape}, which does not fit the shapes {shapes} of the other arrays")
        if steps.dtype != np.uint8 or (deviations < 0).any() or (counts < 0).any():
            raise ValueError(f"steps, deviations, counts: received {steps.dtype} steps; allowed: uint8, and no number below 0")
        numbers = np.stack([halves & 15, halves >> 4], axis=-1).reshape(size, -1)[:, :count].astype(np.float64)
        if not numbers.all():
            raise ValueError("steps: received 0; allowed: two numbers of 1 to 15 in a byte")
        moment, examples = means * counts, max(float(counts.sum()), 1.0)
        totals, deviations = moment.sum(axis=1), deviations * np.sqrt(examples)
        scatter = (numbers - _STEPS - 1) / _STEPS * scales * deviations[:, None]
        return cls(
            counts,
            moment,
            np.square(deviations) + np.square(totals) / examples,
            scatter + np.outer(totals, along),
            along * examples,
            Units.of_numbers(*units),
        )

    @property
    def on_wire(self) -> dict[str, npt.NDArray[np.generic]]:
        """The same sums as numbers of similar size, most of which fit into 4 bits.

        ``counts`` ``(C,)`` int64; ``means`` ``(F, C)`` and ``deviations`` ``(F,)`` float16; ``steps`` ``(F, ⌈m / 2⌉)`` uint8,
        two numbers a byte: the sketch of the centred features, each divided by its deviation, in steps of a seventh of a
        direction's largest number, which is in ``scales``; ``along``, the means along the directions, and ``scales`` ``(m,)``
        float32; ``units`` ``(2, F)`` float16. Steps are rounded up or down by chance, so that sums of clients have no bias. The
        draw follows from the numbers.
        """
        examples, totals = max(self.examples, 1), self.moment.sum(axis=1)
        deviations = np.sqrt(np.maximum(self.diagonal - np.square(totals) / examples, 0.0))
        centred = self.sketch - np.outer(totals, self.along) / examples
        relative = np.divide(centred, deviations[:, None], out=np.zeros_like(centred), where=deviations[:, None] > 0)
        scales = np.abs(np.nan_to_num(relative)).max(axis=0, initial=0.0)
        steps = _STEPS * relative / np.where(scales > 0, scales, 1.0)
        # 4 bits cannot say that a number is not finite; the deviations do.
        whole = np.clip(np.rint(np.nan_to_num(steps) + self.dither(steps.shape)), -_STEPS, _STEPS).astype(np.int8) + _STEPS + 1
        whole = np.pad(whole, [(0, 0), (0, whole.shape[1] % 2)], constant_values=_STEPS + 1).astype(np.uint8)
        means = np.clip(self.moment / np.maximum(self.counts, 1.0), -LARGEST_FEATURE, LARGEST_FEATURE)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "counts": np.rint(np.nan_to_num(self.counts)).astype(np.int64),
            "means": means.astype(np.float16),
            "deviations": (deviations / np.sqrt(examples)).astype(np.float16),
            "steps": whole[:, ::2] | (whole[:, 1::2] << 4),
            "scales": scales.astype(np.float32),
            "along": (self.along / examples).astype(np.float32),
            "units": np.stack(self.units.numbers).astype(np.float16),
        }
        return arrays

    def dither(self, shape: tuple[int, ...]) -> Array64:
        """Draws from -0.5 to 0.5: the same for the same sums, and independent of those of other clients."""
        named = hashlib.sha256(np.ascontiguousarray(self.moment).tobytes()).hexdigest()
        return seeds.generator(0, "rounding", named).uniform(-0.5, 0.5, shape)

    def solve(self, directions: Directions, pooled_layer: int | None = None, parts: Sequence[int] = ()) -> list[Readout]:
        """One readout of temperature 1 for each of :data:`PENALTIES`.

        Args:
            directions: those of the clients.
            pooled_layer: the layer at which the clients read the text's mean state.
            parts: positions of the parts of the features that the readout may use; none: all. The others' weights are 0.
        """
        (size, _), classes = directions.shape, len(self.counts)
        chosen = tuple(parts) or tuple(range(len(directions.blocks)))
        places, columns = directions.places(chosen)
        examples, totals = max(float(self.counts.sum()), 1.0), self.moment.sum(axis=1)
        shares, means = self.counts / examples, totals / examples
        scatter = np.maximum(self.diagonal - totals * means, 0.0)[places]
        centred = (self.sketch - np.outer(means, self.along))[np.ix_(places, columns)]
        gram = Gram.of(centred, scatter, directions.only(chosen))
        moment = (self.moment - np.outer(totals, shares))[places]
        readouts = []
        for penalty in PENALTIES:
            # The second term: features that never change.
            penalties = penalty * scatter + 1e-9 * scatter.sum() + np.finfo(np.float64).tiny
            weights = np.zeros((size, classes))
            weights[places] = gram.solve(moment, penalties)
            raw = weights / self.units.scale[:, None]
            intercept = shares - means @ weights - self.units.offset @ raw
            readouts.append(Readout(np.concatenate([raw, intercept[None]]).T.astype(np.float32), pooled_layer))
        return readouts
