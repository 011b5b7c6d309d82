"""Differential privacy at a client: clipped gradients, noise for the secure sum, and a budget."""

from __future__ import annotations

import logging
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
from ifedicl.federation.client import Client
from ifedicl.federation.client_task import ExampleSums
from ifedicl.federation.messages import (
    ContextRequest,
    Failure,
    FailureCode,
    GradientRequest,
    JobRequest,
    Reply,
    Request,
    VectorsRequest,
)
from ifedicl.settings import Method, NoiseSettings, noise_contradictions

_log = logging.getLogger(__name__)

PRIVATE_DTYPE = "float32"
"""What a model computes in under differential privacy. That one example changes no other was tested in nothing else."""

_BEFORE_ARRAYS = 2
"""A gradient sum begins with its number of examples and its loss. With noise both are always 0."""

_EXACT = 2**24
"""Steps. Integers up to here are exact in float32."""

_ANSWERED = (JobRequest, VectorsRequest, ContextRequest, GradientRequest)


@dataclass(frozen=True)
class _Promise:
    """The bound of an example's joint gradient, one round's release, and public weights ``(L, 2, ...)`` by array name."""

    bound: Bound
    release: Release
    weights: Mapping[str, npt.NDArray[np.float64]]


class DPSums(ExampleSums):
    """Sums under differential privacy: vectors of public text, clipped gradients, noise and a budget.

    The guarantee needs a secure sum around the client: its own share of the noise is too small to hide its numbers.
    """

    def __init__(
        self,
        settings: NoiseSettings,
        crowd: Crowd,
        method: Method,
        public: Sequence[Example],
        *,
        step: float,
        spent_rounds: int = 0,
    ) -> None:
        """Check the settings.

        Args:
            settings: ε, δ and clip.
            crowd: minimum survivors of a sum, and colluders among them.
            method: the run's settings.
            public: labelled texts, no client's own and the same at every client; vectors, basis and weights come from them.
            step: of the secure sum's fixed point; a power of two.
            spent_rounds: rounds of this run that the ledger already counts.

        Raises:
            ConfigError: the settings give no DP guarantee.
        """
        if wrong := noise_contradictions(method):
            faults = [Fault("noise", "settings that guarantee nothing", sentence, "Change it.") for sentence in wrong]
            raise ConfigError("differential privacy", faults)
        self.budget = Budget(settings.epsilon, settings.delta)
        self._spent_rounds = spent_rounds
        self._settings, self.method = settings, method
        self._crowd = crowd
        self._public, self._step = public, step
        self._promises: dict[str, _Promise] = {}  # by the digest of the context
        self._latest: _Promise | None = None

    @property
    def spent_epsilon(self) -> float:
        """The ε of all gradients so far, for one example."""
        return self.budget.spent_epsilon

    def noise(self, kind: str, size: int) -> Steps:
        """``(size,)``: this client's share of the noise for a reply, in steps of the fixed point.

        Raises:
            KeyError: there is no noise for this kind, so its reply must not leave.
        """
        if kind == VectorsRequest.kind:
            return np.zeros(size, dtype=np.int64)  # of public text
        if self._latest is None:
            raise KeyError(kind)
        promise, result = self._latest, np.zeros(size, dtype=np.int64)
        # The grid of the sums is coarser than the fixed point by a power of two.
        shares = Shares({GradientRequest.kind: promise.release.variance}, self._crowd)
        result[_BEFORE_ARRAYS:] = shares(kind, promise.bound.size) * round(promise.bound.step / self._step)
        return result

    def vectors(self, scorer: Scorer, prompts: Sequence[Tokens], labels: Sequence[int], method: Method) -> ContextVectors:
        """The vectors of public text: the same at every client."""
        del prompts, labels  # the owner's: nothing of them may leave
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
        """The sum of clipped and rounded gradients, in weighted units. The budget is spent first.

        Raises:
            BudgetSpentError: the rest of the budget is too small.
        """
        promise = self._promise_in(scorer, context, coefficients.form)
        if self._spent_rounds:
            self.budget = replace(self.budget, spent=(replace(promise.release, times=self._spent_rounds),))
            self._spent_rounds = 0
        self.budget = self.budget.after(promise.release)
        self._latest = promise
        total = np.zeros(promise.bound.size, dtype=np.int64)
        for _, arrays in example_gradients(scorer, examples, context, coefficients, method, rows, alone=True):
            total += promise.bound.sum(joint(arrays, promise.weights))
        # Larger numbers would round in float32. Clipping them does not increase the sensitivity.
        whole = (np.clip(total, -_EXACT, _EXACT) * promise.bound.step).astype(np.float32)
        parts = np.split(whole, np.cumsum([weight.size for weight in promise.weights.values()])[:-1])
        shaped = {name: part.reshape(promise.weights[name].shape) for name, part in zip(promise.weights, parts, strict=True)}
        return GradientSum(shaped, 0, 0.0)

    def _promise_in(self, scorer: Scorer, context: Context, form: Form) -> _Promise:
        """Bound, noise and weights in a context, from public text and settings alone."""
        if context.digest not in self._promises:
            weights = self._weights(scorer, context, form)
            size = sum(weight.size for weight in weights.values())
            bound = Bound(self._settings.clip * math.sqrt(size), size)
            if bound.step < self._step:  # the noise would be finer than the fixed point
                allowed = "a clip that the fixed point of the sum resolves"
                fault = Fault("privacy.noise.clip", str(self._settings.clip), allowed, "Take a larger one.")
                raise ConfigError("differential privacy", [fault])

            def release(multiplier: float, times: int = 1) -> Release:
                return Release(size, bound.sensitivity, (multiplier * bound.sensitivity) ** 2, times)

            rounds, settings = self.method.rounds.rounds, self._settings
            multiplier = noise_multiplier(settings.epsilon, settings.delta, lambda noise: [release(noise, rounds)])
            self._promises[context.digest] = _Promise(bound, release(multiplier), weights)
        return self._promises[context.digest]

    def _weights(self, scorer: Scorer, context: Context, form: Form) -> dict[str, npt.NDArray[np.float64]]:
        """1 / RMS of each number's gradient on public text, so that no number dominates the joint clip."""
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


class DPClient:
    """The layer around a client that answers only requests with planned noise. It gives the secure sum the client's noise."""

    def __init__(self, client: Client, sums: DPSums, run: str) -> None:
        """Take a client, whose examples ``sums`` will sum, and the digest of the run that the budget is for."""
        self.name = client.name
        self.client = client.with_sums(sums)
        self.noise = sums.noise
        self.cursor = self.client.cursor
        self.examples_behind = self.client.examples_behind
        self._sums = sums
        self._run = run

    @property
    def split(self) -> str:
        return self.client.split

    @property
    def spent_epsilon(self) -> float:
        return self._sums.spent_epsilon

    def handle(self, request: Request, /) -> Reply:
        """Answer a request with planned noise, under the settings that the budget is for. Never raises."""
        if self.client.dtype != PRIVATE_DTYPE:
            _log.error(
                "client %s refuses a %s request: model.dtype: received %s; allowed with noise: %s. Load the model in it",
                self.name,
                request.kind,
                self.client.dtype,
                PRIVATE_DTYPE,
            )
            return Failure(FailureCode.OTHER_MODE)
        if not isinstance(request, _ANSWERED):
            return Failure(FailureCode.BAD_REQUEST)
        if isinstance(request, JobRequest) and request.manifest.run != self._run:
            return Failure(FailureCode.BAD_REQUEST)
        return self.client.handle(request)
