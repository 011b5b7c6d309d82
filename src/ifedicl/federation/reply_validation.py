"""What the coordinator believes of a reply, and how it compares rounds. A client may send anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ifedicl.core.coefficients import Coefficients
from ifedicl.core.readout import MOST_FEATURES, feature_count, hidden_count
from ifedicl.core.vectors import WRITES
from ifedicl.federation import messages
from ifedicl.federation.assignment import Assignment
from ifedicl.metrics import Tally

_MOST_EXAMPLES = 2**31
_LARGEST_MEAN = 1e30  # far beyond any that a model writes, and many of them still sum to a float32
_LARGEST_GRADIENT = 1e15  # of a sum: far beyond any, and the squares that Adam keeps are still float32
_LARGEST_COEFFICIENT = 6e4  # what float16, in which Γ travels, still holds
_LARGEST_LOSS = 1e6  # nats, of one example: far beyond any that a model gives


@dataclass(frozen=True)
class Checks:
    """Whether replies fit a run."""

    assignment: Assignment

    def is_usable_vectors(self, reply: messages.VectorsReply) -> bool:
        """Of the run's shape, finite, and of at least one example unless they only add to earlier ones."""
        vectors = reply.vectors
        shape = (
            self.assignment.method.groups(len(self.assignment.task.labels)),
            len(self.assignment.layers),
            len(WRITES),
            self.assignment.model.width,
        )
        fits = vectors.means.shape == shape and vectors.is_finite and bool((vectors.counts <= _MOST_EXAMPLES).all())
        return fits and _at_most(_LARGEST_MEAN, vectors.means) and (vectors.examples > 0 or not reply.replaces)

    def is_usable_update(self, reply: messages.UpdateReply) -> bool:
        """Of the run's shape, finite on the wire too, and trained on something."""
        coefficients = reply.coefficients
        fits = coefficients.form == self.assignment.form and can_travel(coefficients)
        return fits and 0 < reply.examples <= _MOST_EXAMPLES and 0 <= reply.loss <= _LARGEST_LOSS

    def is_usable_gradient(self, reply: messages.GradientReply) -> bool:
        """Of the run's shape and finite; of any number of examples, none included."""
        sums = reply.sums
        fits = {name: array.shape for name, array in sums.arrays.items()} == self.assignment.form.shapes and sums.is_finite
        fits = fits and _at_most(_LARGEST_GRADIENT, *sums.arrays.values())
        return fits and 0 <= sums.examples <= _MOST_EXAMPLES and 0 <= sums.loss <= sums.examples * _LARGEST_LOSS

    def is_usable_statistics(self, reply: messages.StatisticsReply) -> bool:
        """Of the run's shape, finite, and of at least one example."""
        assignment = self.assignment
        classes, model = len(assignment.task.labels), assignment.model
        hidden = hidden_count(model.width, assignment.method.pooled_layer(model.layers))
        size = feature_count(min(hidden, MOST_FEATURES), classes)
        fits = reply.sums.moment.shape == (size, classes) and reply.sums.is_finite
        return fits and 0 < reply.sums.examples <= _MOST_EXAMPLES

    def is_usable_comparison(self, reply: messages.CompareReply) -> bool:
        """Two tallies of the same examples, and sums that can be theirs."""
        comparison = reply.comparison
        count, squares = comparison.adapter.examples, comparison.squared_gains
        counts = comparison.truth, comparison.answers
        both = (comparison.adapter, comparison.zero_shot)
        difference = abs(comparison.adapter.correct - comparison.zero_shot.correct)
        return (
            comparison.zero_shot.examples == count
            and all(_can_be(tally) for tally in both)
            and difference <= comparison.disagreements <= count
            and 0 <= squares <= count * _LARGEST_LOSS**2
            and all(len(own) == len(self.assignment.task.labels) and min(own) >= 0 and sum(own) == count for own in counts)
            and comparison.adapter.correct <= sum(map(min, *counts))
        )


def can_travel(coefficients: Coefficients) -> bool:
    """Whether they are numbers, and small enough for the wire."""
    return coefficients.is_finite and _at_most(_LARGEST_COEFFICIENT, *coefficients.arrays.values())


def _at_most(bound: float, *arrays: npt.NDArray[np.floating]) -> bool:
    """Whether no number is larger than ``bound``, either way."""
    return all(float(np.abs(array).max(initial=0.0)) <= bound for array in arrays)


def is_usable_context(_reply: messages.ContextReply) -> bool:
    """There is nothing in it that could be wrong."""
    return True


def is_usable_evaluation(reply: messages.EvaluateReply, answers: int) -> bool:
    """As many tallies as were asked for, of equally many examples, with counts that can be and a finite loss."""
    tallies = reply.tallies
    return (
        len(tallies) == answers and len({tally.examples for tally in tallies}) == 1 and all(_can_be(tally) for tally in tallies)
    )


def _can_be(tally: Tally) -> bool:
    """Counts that fit each other, and a loss that log-probabilities can have."""
    fits = 0 <= tally.correct <= tally.examples and 0 < tally.examples <= _MOST_EXAMPLES
    return fits and 0 <= tally.loss_sum <= tally.examples * _LARGEST_LOSS


def rank(tally: Tally, by: str) -> tuple[float, ...]:
    """Smaller is better; equal accuracies are told apart by the loss."""
    return (-tally.accuracy, tally.loss) if by == "accuracy" else (tally.loss,)


def tally_of_all(tallies: Mapping[str, Tally]) -> Tally | None:
    """Of all clients together; None where there are none."""
    return sum(tallies.values(), Tally()) if tallies else None
