"""Manifests of jobs for tests, and one request of each kind of a job."""

from __future__ import annotations

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.core.coefficients import Coefficients
from ifedicl.core.subspace import Context
from ifedicl.federation import messages
from ifedicl.federation.manifest import Manifest, context_id
from ifedicl.federation.messages import StepRequest
from ifedicl.kinds.classify import Task
from ifedicl.settings import Method
from tests.support import tiny
from tests.support.readouts import asked_products

FINGERPRINT = "f" * 64


def job_of(method: Method, model: ModelShape | Backbone, task: Task = tiny.TASK, **options: int) -> Manifest:
    """The manifest of a job; ``options`` are those of :meth:`Manifest.of`."""
    return Manifest.of(task, method, model if isinstance(model, ModelShape) else model.shape, **options)


def job_on(context: Context, method: Method, task: Task = tiny.TASK) -> Manifest:
    """The manifest of a job on a model of which all layers, or those from the context's first one, are injected."""
    return job_of(method, ModelShape(FINGERPRINT, context.layers.stop, context.vectors.shape[2]), task)


def context_of(manifest: Manifest, context: Context) -> messages.ContextRequest:
    """The request that brings global vectors."""
    return messages.ContextRequest(manifest.digest, context, manifest.method.vectors.wire_dtype)


def one_of_each(manifest: Manifest, context: Context, coefficients: Coefficients) -> dict[str, StepRequest]:
    """One request of each kind, by kind, in the order of a run. Not every method allows all of them."""
    name = context_id(manifest.digest, context)
    requests: tuple[StepRequest, ...] = (
        messages.JobRequest(manifest),
        messages.VectorsRequest(manifest.digest, ""),
        context_of(manifest, context),
        messages.UpdateRequest(name, 0, 0, manifest.limits.rounds, coefficients),
        messages.GradientRequest(name, 0, coefficients),
        messages.EvaluateRequest(name, coefficients),
        messages.StatisticsRequest(name, coefficients),
        messages.ProductsRequest(name, coefficients, asked_products(manifest.features, max(1, manifest.columns))),
        messages.CompareRequest(name, coefficients, None),
    )
    return {request.kind: request for request in requests}
