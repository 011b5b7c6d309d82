"""Checks a request against the job's manifest before a client computes anything. A coordinator may send anything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifedicl.core.coefficients import LARGEST_COEFFICIENT, Coefficients
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import LARGEST_MEAN
from ifedicl.federation import messages
from ifedicl.federation.manifest import Manifest
from ifedicl.federation.messages import StepRequest

_CURSOR = re.compile(r"([0-9]{1,9}:[0-9a-f]{32})?")
_LARGEST_WEIGHT = 1e6
"""Of a readout; far above what ridge regression gives."""
_SKEW = 0.01
"""How far the rows of a basis may be from orthonormal: float16 on the wire moves them by less than 0.002."""


@dataclass(frozen=True)
class RequestChecks:
    """Whether a request's numbers are those that a job implies: names, shapes and bounds."""

    manifest: Manifest

    def fits(self, request: StepRequest) -> bool:
        """Whether the request is one of this job, with numbers that are finite and within bounds."""
        method = self.manifest.method
        match request:
            case messages.JobRequest():
                return request.manifest.digest == self.manifest.digest
            case messages.VectorsRequest():
                return not method.is_one_shot and _CURSOR.fullmatch(request.cursor) is not None
            case messages.ContextRequest():
                fits = not method.is_one_shot and request.wire_dtype == method.vectors.wire_dtype
                return fits and self._fits_context(request.context)
            case messages.UpdateRequest():
                begun, ends = request.phase_start, request.phase_start + request.phase_rounds
                in_schedule = 0 <= begun <= request.round < ends <= self.manifest.limits.rounds
                in_schedule = in_schedule and self._fits_weight(request.weight_bits)
                return in_schedule and method.takes_updates and self._fits_coefficients(request.coefficients)
            case messages.GradientRequest():
                in_schedule = 0 <= request.round < self.manifest.limits.rounds
                return in_schedule and method.takes_gradients and self._fits_coefficients(request.coefficients)
            case messages.EvaluateRequest():
                most = self.manifest.readouts
                tried = self.manifest.mixes if request.readouts else ((1.0,), (0.0,))
                fits = len(request.readouts) <= most and (request.temperatures, request.shares) == tried
                fits = fits and method.holdout.selection > 0
                return fits and self._fits_coefficients(request.coefficients) and self._fits_readouts(request.readouts)
            case messages.CompareRequest():
                fits = method.holdout.gate > 0 and self._fits_coefficients(request.coefficients)
                return fits and self._fits_readouts(request.readouts)
            case messages.StatisticsRequest():
                fits = method.readout is not None and not method.promises_noise and self._fits_weight(request.weight_bits)
                return fits and self._fits_coefficients(request.coefficients)
            case messages.ProductsRequest():
                fits = method.refinements > 0 and self._fits_weight(request.weight_bits)
                fits = fits and request.refinement.fits(self.manifest.features, self.manifest.columns)
                return fits and self._fits_coefficients(request.coefficients)
            case messages.NoisyStatisticsRequest():
                fits = method.readout is not None and method.promises_noise
                return fits and self._fits_coefficients(request.coefficients)

    def _fits_weight(self, bits: int) -> bool:
        return bits in range(64 if self.manifest.method.sums_only else 1)

    def _fits_context(self, context: Context) -> bool:
        manifest = self.manifest
        fits = context.layers == manifest.layers and context.vectors.shape[2] == manifest.model.width
        fits = fits and context.rank == manifest.method.rank and context.is_finite
        if not fits or np.abs(context.vectors).max(initial=0.0) > LARGEST_MEAN:
            return False
        if context.basis is None:
            return True
        if np.abs(context.basis).max() > 1 + _SKEW:
            return False
        products = context.basis @ context.basis.swapaxes(-1, -2)  # (L, 2, r, r)
        return bool(np.abs(products - np.eye(context.rank, dtype=np.float32)).max() <= _SKEW)

    def _fits_coefficients(self, coefficients: Coefficients) -> bool:
        fits = coefficients.form == self.manifest.form and coefficients.is_finite
        fits = fits and (coefficients.is_core_alone or not self.manifest.method.fixes_scalars)
        return fits and all(np.abs(array).max(initial=0.0) <= LARGEST_COEFFICIENT for array in coefficients.arrays.values())

    def _fits_readouts(self, readouts: Sequence[Readout]) -> bool:
        manifest = self.manifest
        if readouts and manifest.method.readout is None:
            return False
        columns, model = manifest.task.columns, manifest.model
        layers = manifest.method.pooled_layers(model.layers)
        return all(
            readout.fits(columns, model.width, model.layers)
            and readout.pooled_layers == layers
            and bool(np.isfinite(readout.weights).all())
            and np.abs(readout.weights).max(initial=0.0) <= _LARGEST_WEIGHT
            for readout in readouts
        )
