"""Checks replies before the coordinator uses them, and ranks rounds. A client may send anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.core.coefficients import LARGEST_COEFFICIENT, Coefficients
from ifedicl.core.refinement import Refinement
from ifedicl.core.vectors import LARGEST_MEAN, WRITES
from ifedicl.federation import messages
from ifedicl.federation.manifest import Manifest
from ifedicl.metrics import Tally

_MOST_EXAMPLES = 2**31
# Far above what a model gives, and low enough for what follows: squares of gradients must fit float32.
_LARGEST_GRADIENT = 1e15
_LARGEST_LOSS = 1e6  # nats, for one example


@dataclass(frozen=True)
class ReplyChecks:
    """Checks whether replies fit a run."""

    manifest: Manifest

    def is_usable_vectors(self, reply: messages.VectorsReply) -> bool:
        """Whether they have the run's shape, are finite, and have an example unless they add to earlier vectors."""
        vectors = reply.vectors
        shape = (
            self.manifest.method.groups(self.manifest.task.classes),
            len(self.manifest.layers),
            len(WRITES),
            self.manifest.model.width,
        )
        fits = vectors.means.shape == shape and vectors.is_finite and bool((vectors.counts <= _MOST_EXAMPLES).all())
        return fits and _at_most(LARGEST_MEAN, vectors.means) and (vectors.examples > 0 or not reply.replaces)

    def is_usable_update(self, reply: messages.UpdateReply) -> bool:
        """Whether it has the run's shape, is finite on the wire too, and has at least one example."""
        coefficients = reply.coefficients
        fits = coefficients.form == self.manifest.form and can_travel(coefficients)
        return fits and 0 < reply.examples <= _MOST_EXAMPLES and 0 <= reply.loss <= _LARGEST_LOSS

    def is_usable_gradient(self, reply: messages.GradientReply) -> bool:
        """Whether it has the run's shape and is finite. It may have no examples."""
        sums = reply.sums
        fits = {name: array.shape for name, array in sums.arrays.items()} == self.manifest.form.shapes and sums.is_finite
        fits = fits and _at_most(_LARGEST_GRADIENT, *sums.arrays.values())
        return fits and 0 <= sums.examples <= _MOST_EXAMPLES and 0 <= sums.loss <= sums.examples * _LARGEST_LOSS

    def is_usable_statistics(self, reply: messages.StatisticsReply) -> bool:
        """Whether they have the run's shape, are finite, and some examples could have them."""
        sums, shape = reply.sums, (self.manifest.features, self.manifest.task.columns)
        fits = sums.overlaps == self.manifest.task.overlaps and sums.moment.shape == shape
        fits = fits and sums.sketch.shape == self.manifest.directions.shape and sums.is_possible
        return fits and 0 < sums.examples <= _MOST_EXAMPLES

    def is_usable_products(self, reply: messages.ProductsReply, asked: Refinement) -> bool:
        """Whether some examples could have them."""
        return reply.sums.examples <= _MOST_EXAMPLES and reply.sums.is_possible(asked)

    def is_usable_noisy_statistics(self, reply: messages.NoisyStatisticsReply) -> bool:
        """Whether they have the run's shape and are finite."""
        shape = self.manifest.features + 1, self.manifest.task.columns
        return reply.sums.moment.shape == shape and reply.sums.is_finite and reply.clients > 0

    def is_usable_comparison(self, reply: messages.CompareReply) -> bool:
        """Whether both tallies are of the same examples, and the other sums are possible for them."""
        comparison = reply.comparison
        if self.manifest.method.promises_noise:
            return _is_possible(comparison.adapter) and _is_possible(comparison.zero_shot)
        count, squares = comparison.adapter.examples, comparison.squared_gains
        counts = comparison.truth, comparison.answers
        difference = abs(comparison.adapter.correct - comparison.zero_shot.correct)
        return (
            comparison.zero_shot.examples == count
            and _is_possible(comparison.adapter)
            and _is_possible(comparison.zero_shot)
            and difference <= comparison.disagreements <= count
            and 0 <= squares <= count * _LARGEST_LOSS**2
            and all(len(row) == self.manifest.task.answers and min(row) >= 0 and sum(row) == count for row in counts)
            and comparison.adapter.correct <= sum(map(min, *counts))
        )


def can_travel(coefficients: Coefficients) -> bool:
    """Whether they are finite, and small enough for the wire."""
    return coefficients.is_finite and _at_most(LARGEST_COEFFICIENT, *coefficients.arrays.values())


def _at_most(bound: float, *arrays: npt.NDArray[np.floating]) -> bool:
    """Whether no absolute value exceeds ``bound``."""
    return all(float(np.abs(array).max(initial=0.0)) <= bound for array in arrays)


def is_usable_empty(_reply: messages.JobReply | messages.ContextReply) -> bool:
    """True: the reply has no fields."""
    return True


def is_usable_evaluation(reply: messages.EvaluateReply, count: int) -> bool:
    """Whether it has the right number of tallies, all possible and of the same number of examples."""
    tallies = reply.tallies
    return len(tallies) == count and len({tally.examples for tally in tallies}) == 1 and all(map(_is_possible, tallies))


def _is_possible(tally: Tally) -> bool:
    """Whether the counts fit each other, and log-probabilities can have this loss."""
    fits = 0 <= tally.correct <= tally.examples and 0 < tally.examples <= _MOST_EXAMPLES
    return fits and 0 <= tally.loss_sum <= tally.examples * _LARGEST_LOSS


def rank(tally: Tally, by: str) -> tuple[float, ...]:
    """A smaller rank is better; with equal accuracies, the loss decides."""
    return (-tally.accuracy, tally.loss) if by == "accuracy" else (tally.loss,)


def tally_of_all(tallies: Mapping[str, Tally]) -> Tally | None:
    """The sum over clients; None without clients."""
    return sum(tallies.values(), Tally()) if tallies else None
