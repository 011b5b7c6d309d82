"""Differential privacy at a client: bounded sums of its examples, noise for the secure sum, and a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.base_scorer import BaseScorer
from ifedicl.backbone.prompts import EncodedExamples, Tokens
from ifedicl.backbone.readings import Reading
from ifedicl.calibrate import example_gradients
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.framed_sums import FramedSums
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array64, ContextVectors
from ifedicl.data import Role
from ifedicl.dp.accountant import Budget
from ifedicl.dp.clipping import Bound, Steps, joint
from ifedicl.dp.skellam import Shares
from ifedicl.errors import ConfigError, Fault
from ifedicl.extract import context_vectors
from ifedicl.federation.client_task import ExampleSums
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import (
    CompareReply,
    CompareRequest,
    ContextRequest,
    EvaluateReply,
    EvaluateRequest,
    GradientRequest,
    JobRequest,
    NoisyStatisticsReply,
    NoisyStatisticsRequest,
    Request,
    VectorsRequest,
)
from ifedicl.federation.noise_plan import NoisePlan
from ifedicl.federation.public_text import PublicText, framed_features
from ifedicl.federation.reply_sums import SUM_RULES, flat
from ifedicl.kinds.any_task import AnyTask
from ifedicl.metrics import Comparison, Tally
from ifedicl.settings import PRIVATE_DTYPE, Method, noise_contradictions

_EXACT = 2**24
"""Steps. Integers up to here are exact in float32."""
_FEWEST_TEXTS = 2
_MOST_WEIGHED = 64
"""Public texts of stage 1, and those on which the size of each number's gradient is estimated."""
_ROWS = 256
"""Examples whose bounded features are in memory at once."""
_FREE = (JobRequest, VectorsRequest, ContextRequest)
"""Requests whose replies say nothing of the owner's examples."""


class DPSums(ExampleSums):
    """Sums of one job under differential privacy: vectors of public text, bounded sums, noise and a budget.

    The guarantee needs a secure sum around the client: its own share of the noise is too small to hide its numbers.
    """

    def __init__(
        self,
        manifest: Manifest,
        public: PublicText,
        *,
        dtype: str,
        steps: Mapping[str, float],
        answered: Mapping[str, int],
    ) -> None:
        """Plan the noise.

        Args:
            manifest: of a job with noise.
            public: the same at every client; vectors, basis, frame and weights come from it.
            dtype: that the client's model computes in.
            steps: of the secure sums' fixed point, by kind of request; powers of two.
            answered: how many noisy replies of this run have left, by kind of request.

        Raises:
            ConfigError: the settings, the dtype or the public texts give no DP guarantee.
        """
        if faults := _faults(manifest.method, public, dtype):
            raise ConfigError("differential privacy", faults)
        super().__init__(public)
        self.manifest = manifest
        self.plan = NoisePlan.of(manifest)
        for kind, planned in self.plan.by_kind.items():
            if planned.bound.step < steps[kind]:  # the noise would be finer than the fixed point
                allowed = "a clip that the fixed point of the sum resolves"
                fault = Fault("privacy.noise.clip", str(self.plan.settings.clip), allowed, "Take a larger one.")
                raise ConfigError("differential privacy", [fault])
        releases = {kind: planned.release for kind, planned in self.plan.by_kind.items()}
        self._budgets = {role: Budget(self.plan.settings.epsilon, self.plan.settings.delta) for role in Role}
        for kind, planned in self.plan.by_kind.items():
            if times := answered.get(kind):
                budget = self._budgets[planned.role]
                spent = (*budget.spent, replace(planned.release, times=times))
                self._budgets[planned.role] = replace(budget, spent=spent)
        self._shares = Shares({kind: release.variance for kind, release in releases.items()}, self.plan.crowd)
        self._steps = steps
        self._places: dict[str, npt.NDArray[np.int64]] = {}  # by kind, of the noisy numbers in the latest reply
        self._weights: dict[str, dict[str, Array64]] = {}  # by the digest of the context

    @property
    def spent_epsilon(self) -> float:
        """The ε of all replies so far, for one example. It has one role, so the most that one role has spent."""
        return max(budget.spent_epsilon for budget in self._budgets.values())

    @property
    def reads_alone(self) -> bool:
        return True

    def answers(self, request: Request) -> bool:
        return isinstance(request, _FREE) or request.kind in self.plan.by_kind

    def noise(self, kind: str, size: int) -> Steps:
        """``(size,)``: this client's share of the noise for its last reply of this kind, in steps of the fixed point.

        Raises:
            KeyError: there is no noise for this kind, so its reply must not leave.
        """
        result = np.zeros(size, dtype=np.int64)
        if kind != VectorsRequest.kind:  # these are of public text
            places, bound = self._places[kind], self.plan.by_kind[kind].bound
            # The grid of the bound is coarser than the fixed point by a power of two.
            result[places] = self._shares(kind, len(places)) * round(bound.step / self._steps[kind])
        return result

    def vectors(self, scorer: BaseScorer, prompts: Sequence[Tokens], labels: Sequence[Any], method: Method) -> ContextVectors:
        """The vectors of public text: the same at every client."""
        del prompts, labels  # the owner's: nothing of them may leave
        public = self._weighed(scorer)
        return context_vectors(scorer, public.prompts.tokens, public.labels, method)

    def gradient(
        self,
        scorer: BaseScorer,
        examples: EncodedExamples,
        context: Context,
        coefficients: Coefficients,
        method: Method,
        rows: Sequence[int],
    ) -> GradientSum:
        """The sum of clipped and rounded gradients, in weighted units. The budget is spent first.

        Raises:
            BudgetSpentError: the rest of the budget is too small.
        """
        kind = GradientRequest.kind
        bound = self._spend(kind)
        weights = self._weights_in(scorer, context, coefficients.form)
        total = np.zeros(bound.size, dtype=np.int64)
        for _, arrays in example_gradients(scorer, examples, context, coefficients, method, rows, alone=True):
            total += bound.sum(joint(arrays, weights))
        # Larger numbers would round in float32. Clipping them does not increase the sensitivity.
        whole = (np.clip(total, -_EXACT, _EXACT) * bound.step).astype(np.float32)
        parts = np.split(whole, np.cumsum([weight.size for weight in weights.values()])[:-1])
        shaped = {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}
        before = 2  # number of examples and loss, both always 0
        self._places[kind] = np.arange(before, before + bound.size)
        return GradientSum(shaped, 0, 0.0)

    def tallies(self, task: AnyTask, scores: Sequence[npt.NDArray[np.floating]], labels: Sequence[Any]) -> tuple[Tally, ...]:
        """How many examples there are (stated with the first candidate alone), and how many each candidate gets right.

        Raises:
            BudgetSpentError: the rest of the budget is too small.
        """
        self._spend(EvaluateRequest.kind)
        counted = [replace(task.tally(each, labels), loss_sum=0.0) for each in scores]
        tallies = (counted[0], *(replace(tally, examples=0) for tally in counted[1:]))
        marked = (Tally(1, 1), *(Tally(0, 1) for _ in counted[1:]))
        self._mark(EvaluateRequest.kind, EvaluateReply(marked))
        return tallies

    def comparison(
        self, task: AnyTask, adapter: npt.NDArray[np.floating], zero_shot: npt.NDArray[np.floating], labels: Sequence[Any]
    ) -> Comparison:
        """How many examples there are, how many each of the two gets right, and on how many exactly one of them does.

        Raises:
            BudgetSpentError: the rest of the budget is too small.
        """
        self._spend(CompareRequest.kind)
        full, none = task.comparison(adapter, zero_shot, labels), (0,) * task.answers
        counts = Tally(full.adapter.examples, full.adapter.correct), Tally(0, full.zero_shot.correct)
        self._mark(CompareRequest.kind, CompareReply(Comparison(Tally(1, 1), Tally(0, 1), 0.0, 1, none, none)))
        return Comparison(*counts, 0.0, full.disagreements, none, none)

    def statistics(
        self,
        scorer: BaseScorer,
        reading: Reading,
        labels: Sequence[Any],
        manifest: Manifest,
        context: Context,
        coefficients: Coefficients,
    ) -> NoisyStatisticsReply:
        """Bounded and rounded sums in the public frame. The budget is spent first.

        Raises:
            BudgetSpentError: the rest of the budget is too small.
        """
        kind = NoisyStatisticsRequest.kind
        bound = self._spend(kind)
        method, classes = manifest.method, scorer.task.columns
        own = framed_features(reading, scorer.backbone.width, method.seed)
        layers = method.pooled_layers(scorer.backbone.layers)
        frame = self._reference.frame(scorer, context, coefficients, layers, method.seed)
        total = FramedSums.of(np.zeros((0, bound.size)), (), classes, frame)
        for first in range(0, len(labels), _ROWS):
            rows = bound.rounded(frame.rows(own[first : first + _ROWS])).astype(np.float64) * bound.step
            total = total + FramedSums.of(rows, labels[first : first + _ROWS], classes, frame)
        reply = NoisyStatisticsReply(total)
        noisy = total.moment.size + total.products.size
        self._places[kind] = np.arange(noisy)  # they come first
        return reply

    def _weighed(self, scorer: BaseScorer) -> EncodedExamples:
        return scorer.encoded(self._reference.examples(scorer.task)[:_MOST_WEIGHED])

    def _spend(self, kind: str) -> Bound:
        """Spend the budget for one reply, and give the bound on what one example adds to it."""
        planned = self.plan.by_kind[kind]
        self._budgets[planned.role] = self._budgets[planned.role].after(planned.release)
        return planned.bound

    def _mark(self, kind: str, reply: EvaluateReply | CompareReply) -> None:
        """Note which numbers of a reply get noise: those that are not 0 in ``reply``."""
        self._places[kind] = np.flatnonzero(flat(SUM_RULES[type(reply)].apart(reply)))

    def _weights_in(self, scorer: BaseScorer, context: Context, form: Form) -> Mapping[str, Array64]:
        """1 / RMS of each number's gradient on public text, so that no number dominates the joint clip."""
        if context.digest not in self._weights:
            method = self.manifest.method
            start = cold_start(form, method.injection)
            public = self._weighed(scorer)
            squares = {name: np.zeros(shape) for name, shape in form.shapes.items()}
            for _, arrays in example_gradients(scorer, public, context, start, method, range(len(public.labels))):
                for name, array in arrays.items():
                    squares[name] += np.square(array, dtype=np.float64).sum(axis=0)
            weights = {}
            for name, total in squares.items():
                sizes = np.sqrt(total / len(public.labels))
                floor = max(float(np.median(sizes)) / 10, float(np.finfo(np.float32).tiny))
                weights[name] = 1 / np.maximum(sizes, floor)
            self._weights = {context.digest: weights}
        return self._weights[context.digest]


def _faults(method: Method, public: PublicText, dtype: str) -> list[Fault]:
    """What leaves a job with noise without a guarantee, or without a scale."""
    faults = [
        Fault("noise", "settings that guarantee nothing", sentence, "Change it.") for sentence in noise_contradictions(method)
    ]
    if dtype != PRIVATE_DTYPE:
        remedy = "That one example changes no other was tested in nothing else. Load the model in it."
        faults.append(Fault("model.dtype", f'"{dtype}"', f'"{PRIVATE_DTYPE}" with noise', remedy))
    if (count := len(public.texts)) < _FEWEST_TEXTS:
        remedy = "Give a file of them, the same at every client: public in [data]."
        faults.append(Fault("data.public", f"{count} texts", f"{_FEWEST_TEXTS} or more, of no client", remedy))
    return faults
