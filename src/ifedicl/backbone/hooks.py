"""Reading and changing the writes of a running model. Both are context managers: the hooks are gone when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ifedicl.backbone.load import Backbone
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.injection import inject
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.core.vectors import WRITES

_Hook: TypeAlias = Callable[[nn.Module, object, Tensor], Tensor | None]
Watcher: TypeAlias = Callable[[int, int, Tensor, Tensor], None]
"""Told, as the gradient comes back, of layer, write, the write ``(..., d)`` before injection and the gradient after it. Layers
are counted from the context's first, as in the arrays of the coefficients."""


@dataclass
class Recording:
    """The writes of one forward pass at one token of each row.

    Attributes:
        layers: those that are read.
        positions: ``(B,)`` int64: the token to read in each row; set before each forward pass.
        rows: per layer and write a ``(B, d)`` tensor of the last forward pass.
    """

    layers: range
    positions: Tensor | None = None
    rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def stacked(self) -> Tensor:
        """``(L, 2, B, d)`` of the last forward pass."""
        by_layer = ([self.rows[layer, write] for write in range(len(WRITES))] for layer in self.layers)
        return torch.stack([torch.stack(writes) for writes in by_layer])


@contextmanager
def record(backbone: Backbone, layers: range | None = None) -> Iterator[Recording]:
    """Record every write of some layers at ``recording.positions``; nothing else of the sequence is kept.

    Args:
        backbone: the model.
        layers: which; None: all.

    Yields:
        The recording. Set its ``positions``, run the model, read ``rows`` or ``stacked``.
    """
    recording = Recording(range(backbone.layers) if layers is None else layers)

    def reader(layer: int, write: int) -> _Hook:
        def read(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            positions = recording.positions
            if positions is None:
                raise RuntimeError("set recording.positions before the forward pass")
            # OPT flattens (B, T, d) to (B·T, d) for its MLP.
            sequences = output.view(len(positions), -1, output.shape[-1])  # (B, T, d)
            recording.rows[layer, write] = sequences[torch.arange(len(positions), device=output.device), positions]

        return read

    with ExitStack() as stack:
        for layer in recording.layers:
            for write, module in enumerate(backbone.writes[layer]):
                stack.enter_context(_hooked(module, reader(layer, write)))
        yield recording


@dataclass(frozen=True, eq=False)
class Injection:
    """Coefficients and what they weigh, where the model runs; all of the layers that the context tells.

    Attributes:
        context: global vectors and basis, on the model's device.
        scales: ``(L, 2, 2)`` float32 on the CPU.
        active: ``(L, 2)``: the writes to change; the others run as they are.
        core: ``(L, 2, r, r)`` float32 on the model's device; None without a subspace.
    """

    context: ContextTensors
    scales: Tensor
    active: npt.NDArray[np.bool_]
    core: Tensor | None = None

    @classmethod
    def of(cls, context: Context, coefficients: Coefficients, device: torch.device) -> Injection:
        """Of finished coefficients; writes that they do not change run as they are."""
        core = None if coefficients.core is None else torch.from_numpy(coefficients.core).to(device)
        return cls(context.on(device), torch.from_numpy(coefficients.scales), coefficients.active, core)

    def is_active(self, layer: int, write: int) -> bool:
        """Whether this write of the model's ``layer`` is changed."""
        return layer in self.context.layers and bool(self.active[layer - self.context.first_layer, write])

    def changed(self, layer: int, write: int, output: Tensor) -> Tensor:
        """``β·y + λ·v + Uᵀ Γ U y`` of a write ``(..., d)`` of the model's ``layer``; the write itself where not active."""
        if not self.is_active(layer, write):
            return output
        row = layer - self.context.first_layer
        return inject(
            output,
            self.context.vectors[row, write],
            self.scales[row, write, CONTEXT],
            self.scales[row, write, ACTIVATION],
            None if self.context.basis is None else self.context.basis[row, write],
            None if self.core is None else self.core[row, write],
        )


@contextmanager
def injected(
    backbone: Backbone,
    context: ContextTensors,
    scales: Tensor,
    active: npt.NDArray[np.bool_],
    *,
    core: Tensor | None = None,
    watcher: Watcher | None = None,
) -> Iterator[None]:
    """Inject ``β·y + λ·v + Uᵀ Γ U y`` at every active write and token of whatever runs within the block (paper Eq. 5).

    Args:
        backbone: the model; its weights are untouched.
        context: global vectors and basis, on the model's device.
        scales: ``(L, 2, 2)`` float32 on the CPU; gradients flow into it where it asks for them.
        active: ``(L, 2)``: the writes to change; the others run as they are.
        core: ``(L, 2, r, r)`` float32 on the model's device, likewise; None without a subspace.
        watcher: from what it is told, each row's own gradient of the coefficients follows.
    """
    injection = Injection(context, scales, active, core)

    def changer(layer: int, write: int) -> _Hook:
        def change(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            result = injection.changed(layer, write, output)
            if watcher is not None:
                write_before = output.detach()
                row = layer - context.first_layer
                result.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: watcher(row, write, write_before, gradient)
                )
            return result

        return change

    with ExitStack() as stack:
        for layer, modules in enumerate(backbone.writes):
            for write, module in enumerate(modules):
                if injection.is_active(layer, write):
                    stack.enter_context(_hooked(module, changer(layer, write)))
        yield


def applied(backbone: Backbone, context: Context, coefficients: Coefficients) -> AbstractContextManager[None]:
    """:func:`injected` of finished coefficients, for inference.

    Args:
        backbone: the model.
        context: global vectors and basis.
        coefficients: writes that they do not change run as they are.
    """
    own = Injection.of(context, coefficients, backbone.device)
    return injected(backbone, own.context, own.scales, own.active, core=own.core)


@contextmanager
def injected_by_row(backbone: Backbone, spans: Sequence[tuple[Injection | None, int]]) -> Iterator[None]:
    """Inject something else into each span of rows of one forward pass; for inference.

    Args:
        backbone: the model; its weights are untouched.
        spans: what is injected into how many rows, in the order of the rows; None: these rows run as they are.
    """
    counts = [count for _, count in spans]

    def changer(layer: int, write: int) -> _Hook:
        def change(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            # OPT flattens (B, T, d) to (B·T, d) for its MLP.
            parts = torch.split(output.view(sum(counts), -1, output.shape[-1]), counts)
            own = [
                part if injection is None else injection.changed(layer, write, part)
                for (injection, _), part in zip(spans, parts, strict=True)
            ]
            return (own[0] if len(own) == 1 else torch.cat(own)).view_as(output)

        return change

    with ExitStack() as stack:
        for layer, modules in enumerate(backbone.writes):
            for write, module in enumerate(modules):
                if any(injection is not None and injection.is_active(layer, write) for injection, _ in spans):
                    stack.enter_context(_hooked(module, changer(layer, write)))
        yield


@contextmanager
def _hooked(module: nn.Module, hook: _Hook) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
