"""Differential privacy of one client's sums: clipped gradients, noise for the secure sum, and a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ifedicl.backbone.encoding import EncodedExamples, Tokens
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import example_gradients
from ifedicl.core.aggregation import GradientSum
from ifedicl.core.coefficients import Coefficients, Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import ContextVectors
from ifedicl.data import Example
from ifedicl.dp.accountant import Budget, Release, noise_multiplier
from ifedicl.dp.clipping import Bound, Steps, joint
from ifedicl.dp.skellam import Crowd, Shares
from ifedicl.errors import ConfigError, Fault
from ifedicl.extract import context_vectors
from ifedicl.federation.messages import GradientRequest, VectorsRequest
from ifedicl.settings import Method, NoiseSettings, noise_contradictions

_BEFORE_ARRAYS = 2
"""A gradient sum begins with its number of examples and its loss. Here both are 0, whatever the client holds."""

_EXACT = 2**24
"""Steps: whole numbers up to here are exact in float32."""


@dataclass(frozen=True)
class _Promise:
    """What one answer costs.

    Attributes:
        bound: of one example's joint, weighted gradient.
        release: one round's.
        weights: by array name, ``(L, 2, ...)``: public.
    """

    bound: Bound
    release: Release
    weights: Mapping[str, npt.NDArray[np.float64]]


class DPSums:
    """The sums of one owner under differential privacy: vectors of public text, clipped gradients, noise and a budget.

    Without a secure sum around the client there is no guarantee: its own share of the noise is too small to hide its numbers.
    """

    def __init__(
        self,
        settings: NoiseSettings,
        survivors: int,
        method: Method,
        public: Sequence[Example],
        *,
        step: float,
        spent_rounds: int = 0,
    ) -> None:
        """Check that the promise can hold; nothing is computed yet.

        Args:
            settings: ε, δ, clip and colluders.
            survivors: fewest clients that a sum is ever opened for.
            method: the run's settings, the only ones that are answered.
            public: the same labelled texts at every client, no one's data: vectors, basis and weights come from them.
            step: of the secure sum's fixed point; a power of two.
            spent_rounds: rounds of this run that the ledger already counts.

        Raises:
            ConfigError: the run's settings would make the promise empty.
        """
        if wrong := noise_contradictions(settings, method, survivors):
            faults = [Fault("noise", "settings that guarantee nothing", sentence, "Change it.") for sentence in wrong]
            raise ConfigError("differential privacy", faults)
        self.budget = Budget(settings.epsilon, settings.delta)
        self._spent_rounds = spent_rounds
        self._settings, self.method = settings, method
        self._crowd = Crowd(survivors, settings.colluders)
        self._public, self._step = public, step
        self._promises: dict[str, _Promise] = {}  # by the digest of the context
        self._latest: _Promise | None = None

    @property
    def spent_epsilon(self) -> float:
        """The ε of all gradients so far, for one example."""
        return self.budget.spent_epsilon

    def noise(self, kind: str, size: int) -> Steps:
        """``(size,)``: this client's share for a sum of the given kind, in steps of the fixed point.

        Raises:
            KeyError: nothing was planned for this kind, so its answer must not leave.
        """
        if kind == VectorsRequest.kind:
            return np.zeros(size, dtype=np.int64)  # of public text
        if self._latest is None:
            raise KeyError(kind)
        promise, result = self._latest, np.zeros(size, dtype=np.int64)
        # On the grid that the sums are on, which is coarser than the fixed point by a power of two.
        shares = Shares({GradientRequest.kind: promise.release.variance}, self._crowd)
        result[_BEFORE_ARRAYS:] = shares(kind, promise.bound.size) * round(promise.bound.step / self._step)
        return result

    def vectors(self, scorer: Scorer, prompts: Sequence[Tokens], labels: Sequence[int], method: Method) -> ContextVectors:
        """Those of public text: the same at every client, whatever it holds."""
        del prompts, labels  # the owner's own: nothing of them may leave
        public = scorer.encoded(self._public)
        return context_vectors(scorer, public.prompts.tokens, public.labels, method)

    def gradient(
        self,
        scorer: Scorer,
        examples: EncodedExamples,
        context: Context,
        coefficients: Coefficients,
        method: Method,
        rows: Sequence[int],
    ) -> GradientSum:
        """Clipped, rounded and summed, in weighted units; the budget is spent before anything is computed.

        Raises:
            BudgetSpentError: there is not enough left.
        """
        promise = self._promised(scorer, context, coefficients.form)
        if self._spent_rounds:
            self.budget = replace(self.budget, spent=(replace(promise.release, times=self._spent_rounds),))
            self._spent_rounds = 0
        self.budget = self.budget.after(promise.release)
        self._latest = promise
        total = np.zeros(promise.bound.size, dtype=np.int64)
        for _, arrays in example_gradients(scorer, examples, context, coefficients, method, rows):
            total += promise.bound.sum(joint(arrays, promise.weights))
        # Beyond, float32 would round; cutting off moves no sum further apart than it was.
        whole = (np.clip(total, -_EXACT, _EXACT) * promise.bound.step).astype(np.float32)
        parts = np.split(whole, np.cumsum([weight.size for weight in promise.weights.values()])[:-1])
        shaped = {name: part.reshape(promise.weights[name].shape) for name, part in zip(promise.weights, parts, strict=True)}
        return GradientSum(shaped, 0, 0.0)

    def _promised(self, scorer: Scorer, context: Context, form: Form) -> _Promise:
        """Bound, noise and weights in a context: from public text and settings alone."""
        if context.digest not in self._promises:
            weights = self._weights(scorer, context, form)
            size = sum(weight.size for weight in weights.values())
            bound = Bound(self._settings.clip * math.sqrt(size), size)
            if bound.step < self._step:  # the noise would be less than the fixed point can say
                remedy = "Take a larger one."
                fault = Fault("privacy.noise.clip", str(self._settings.clip), "a clip that the sum's numbers resolve", remedy)
                raise ConfigError("differential privacy", [fault])

            def release(multiplier: float, times: int = 1) -> Release:
                return Release(size, bound.sensitivity, (multiplier * bound.sensitivity) ** 2, times)

            rounds, settings = self.method.rounds.rounds, self._settings
            multiplier = noise_multiplier(settings.epsilon, settings.delta, lambda noise: [release(noise, rounds)])
            self._promises[context.digest] = _Promise(bound, release(multiplier), weights)
        return self._promises[context.digest]

    def _weights(self, scorer: Scorer, context: Context, form: Form) -> dict[str, npt.NDArray[np.float64]]:
        """One over the root mean square of each number's gradient on public text: none drowns the others in the joint clip."""
        start = cold_start(form, self.method.injection)
        public = scorer.encoded(self._public)
        squares = {name: np.zeros(shape) for name, shape in form.shapes.items()}
        for _, arrays in example_gradients(scorer, public, context, start, self.method, range(len(public.labels))):
            for name, array in arrays.items():
                squares[name] += np.square(array, dtype=np.float64).sum(axis=0)
        weights = {}
        for name, total in squares.items():
            sizes = np.sqrt(total / len(public.labels))
            floor = max(float(np.median(sizes)) / 10, float(np.finfo(np.float32).tiny))
            weights[name] = 1 / np.maximum(sizes, floor)
        return weights
