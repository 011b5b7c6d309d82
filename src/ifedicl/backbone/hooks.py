"""Context managers that read or change the writes of a running model. They remove their hooks when they end.

From their beginning to their end they hold the model's lock: a pass of another thread meets no hook that is not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ifedicl.backbone.load import Backbone
from ifedicl.backbone.lock import exclusive
from ifedicl.core.coefficients import ACTIVATION, CONTEXT, Coefficients
from ifedicl.core.injection import Change, inject_rows
from ifedicl.core.subspace import Context, ContextTensors
from ifedicl.core.transfer import to_device
from ifedicl.core.vectors import WRITES

_Hook: TypeAlias = Callable[[int, int, Tensor], Tensor | None]
"""Called with layer, write and the module's output; what it returns replaces the output."""
Watcher: TypeAlias = Callable[[int, int, Tensor, Tensor], None]
"""Called in the backward pass with layer, write, the write ``(..., d)`` before injection and the gradient after it. Layers are
counted from the context's first, as in the arrays of the coefficients."""


@dataclass
class Recording:
    """The writes of one forward pass at one token of each row.

    Attributes:
        layers: the layers that are read.
        positions: ``(B,)`` int64 on the model's device: the token to read in each row; set before each forward pass.
        rows: for each layer and write a ``(B, d)`` tensor of the last forward pass.
    """

    layers: range
    positions: Tensor | None = None
    rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _places: tuple[Tensor, int, Tensor] | None = None  # positions, tokens in a row, and where both say to read

    def stacked(self) -> Tensor:
        """``(L, 2, B, d)`` of the last forward pass."""
        assert self.positions is not None
        writes = [self.rows[layer, write].to(self.positions.device) for layer in self.layers for write in range(len(WRITES))]
        return torch.stack(writes).view(len(self.layers), len(WRITES), *writes[0].shape)

    def read(self, layer: int, write: int, output: Tensor) -> None:
        """Take the rows of one write, ``(B, T, d)``; OPT flattens it to ``(B·T, d)`` for its MLP."""
        if self.positions is None:
            raise RuntimeError("recording.positions: set them before the forward pass")
        tokens = output.reshape(-1, output.shape[-1])
        self.rows[layer, write] = tokens.index_select(0, self._flat(self.positions, len(tokens)).to(tokens.device))

    def _flat(self, positions: Tensor, tokens: int) -> Tensor:
        """``(B,)``: the positions in all rows put together; computed once a pass."""
        if self._places is None or self._places[0] is not positions or self._places[1] != tokens:
            starts = torch.arange(0, tokens, tokens // len(positions), device=positions.device)
            self._places = positions, tokens, starts + positions
        return self._places[2]


@contextmanager
def record(backbone: Backbone, layers: range | None = None) -> Iterator[Recording]:
    """Record every write of some layers (None: all) at ``recording.positions``.

    Yields:
        The recording. Set its ``positions``, run the model, read ``rows`` or ``stacked``.
    """
    recording = Recording(range(backbone.layers) if layers is None else layers)

    with _hooked(backbone, recording.read, lambda layer, _write: layer in recording.layers):
        yield recording


@dataclass(frozen=True, eq=False)
class Injection:
    """Context and coefficients, ready for the model: what each write needs is taken apart once, not at each pass.

    Attributes:
        layers: the model's layers that the context is of.
        active: ``(L, 2)``: the writes to change.
        changes: of each write of these layers, on the layer's device.
    """

    layers: range
    active: npt.NDArray[np.bool_]
    changes: Sequence[Change]

    @classmethod
    def on(
        cls,
        backbone: Backbone,
        context: ContextTensors,
        scales: Tensor,
        active: npt.NDArray[np.bool_],
        core: Tensor | None = None,
    ) -> Injection:
        """Of coefficients that may be differentiable; arguments as of :func:`injected`."""
        rank = 0 if core is None or context.basis is None else core.shape[-1]
        changes_of, changes = backbone.changes_of(rank), list[Change]()
        tensors = [context.vectors, scales, context.basis if rank else None, core if rank else None]
        for device, together in groupby(range(len(context.layers)), lambda row: backbone.devices[context.layers[row]]):
            rows = list(together)
            changes += changes_of(*(None if each is None else _on(device, each, rows).flatten(0, 1) for each in tensors))
        return cls(context.layers, active, changes)

    @classmethod
    def of(cls, backbone: Backbone, context: Context, coefficients: Coefficients) -> Injection:
        """The injection of finished coefficients."""
        core = None if coefficients.core is None else to_device(coefficients.core, backbone.device)
        scales = to_device(coefficients.scales, backbone.device)
        return cls.on(backbone, context.on(backbone.device), scales, coefficients.active, core)

    def is_active(self, layer: int, write: int) -> bool:
        """Whether this write of the model's layer number ``layer`` is changed."""
        return layer in self.layers and bool(self.active[layer - self.layers.start, write])

    def changed(self, layer: int, write: int, output: Tensor) -> Tensor:
        """``β·y + λ·v + Uᵀ Γ U y`` for a write ``y``, ``(..., d)``, of the model's ``layer``; ``y`` itself if not active."""
        if not self.is_active(layer, write):
            return output
        return self.changes[(layer - self.layers.start) * len(WRITES) + write](output)


def _on(device: torch.device, values: Tensor, rows: Sequence[int]) -> Tensor:
    """Adjacent rows on a device; all rows are the tensor itself, since a part of it costs two operations more."""
    return (values if len(rows) == len(values) else values[rows[0] : rows[-1] + 1]).to(device)


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
    """Inject ``β·y + λ·v + Uᵀ Γ U y`` at every active write and token of what runs within the block (paper Eq. 5).

    Args:
        backbone: the model; its weights do not change.
        context: global vectors and basis, on the model's device.
        scales: ``(L, 2, 2)`` float32 on the model's device; differentiable.
        active: ``(L, 2)``: the writes to change.
        core: ``(L, 2, r, r)`` float32 on the model's device, differentiable; None without a subspace.
        watcher: gets what each row's gradient of the coefficients follows from.
    """
    with _changing(backbone, Injection.on(backbone, context, scales, active, core), watcher):
        yield


def applied(backbone: Backbone, context: Context, coefficients: Coefficients) -> AbstractContextManager[None]:
    """:func:`injected` of finished coefficients, for inference."""
    return changed_by(backbone, Injection.of(backbone, context, coefficients))


def changed_by(backbone: Backbone, injection: Injection) -> AbstractContextManager[None]:
    """As :func:`applied`, with an injection that is made once for many passes."""
    return _changing(backbone, injection, None)


@contextmanager
def _changing(backbone: Backbone, injection: Injection, watcher: Watcher | None) -> Iterator[None]:
    def change(layer: int, write: int, output: Tensor) -> Tensor:
        result = injection.changed(layer, write, output)
        if watcher is not None:
            watch = partial(watcher, layer - injection.layers.start, write, output.detach())
            result.register_hook(watch)  # type: ignore[no-untyped-call]
        return result

    with _hooked(backbone, change, injection.is_active):
        yield


@contextmanager
def injected_by_row(backbone: Backbone, spans: Sequence[tuple[Injection | None, int]]) -> Iterator[None]:
    """Use a different injection for each span of rows of one forward pass; for inference.

    Args:
        backbone: the model; its weights do not change.
        spans: injections and their numbers of rows, in the order of the rows; None: the raw model.
    """
    counts = [count for _, count in spans]

    def change(layer: int, write: int, output: Tensor) -> Tensor:
        # OPT flattens (B, T, d) to (B·T, d) for its MLP.
        parts = torch.split(output.view(sum(counts), -1, output.shape[-1]), counts)
        changed = [
            part if injection is None else injection.changed(layer, write, part)
            for (injection, _), part in zip(spans, parts, strict=True)
        ]
        return (changed[0] if len(changed) == 1 else torch.cat(changed)).view_as(output)

    def is_active(layer: int, write: int) -> bool:
        return any(injection is not None and injection.is_active(layer, write) for injection, _ in spans)

    with _hooked(backbone, change, is_active):
        yield


@contextmanager
def injected_by_owner(
    backbone: Backbone,
    context: ContextTensors,
    values: Sequence[Mapping[str, Tensor]],
    active: npt.NDArray[np.bool_],
    counts: Sequence[int],
) -> Iterator[None]:
    """Use the coefficients of several owners in one pass, each in its own rows. It is differentiable.

    Args:
        backbone: the model; its weights do not change.
        context: global vectors and basis of all owners, on the model's device.
        values: of each owner, as :attr:`Coefficients.arrays`, on the model's device.
        active: ``(L, 2)``: the writes to change.
        counts: how many prompts each owner has, in the order of the rows; all prompts have the same number of rows.
    """

    def of_prompts(name: str) -> Tensor:
        """``(P, L, 2, ...)``. Numbers of one owner that are not finite reach no other, and gradients are added in order."""
        return torch.cat([each[name].expand(count, *each[name].shape) for each, count in zip(values, counts, strict=True)])

    scales = of_prompts("scales").flatten(1, 2)  # (P, 2 L, 2)
    shifts = (scales[..., CONTEXT, None, None] * context.vectors.flatten(0, 1).unsqueeze(1)).unbind(1)  # (P, 1, d) each
    factors = scales[..., ACTIVATION, None, None].unbind(1)  # (P, 1, 1) each
    cores = of_prompts("core").flatten(1, 2).unbind(1) if "core" in values[0] else None

    def change(layer: int, write: int, output: Tensor) -> Tensor:
        row = layer - context.first_layer
        place = row * len(WRITES) + write
        # OPT flattens (B, T, d) to (B·T, d) for its MLP. All rows of a prompt are one group.
        groups = output.view(sum(counts), -1, output.shape[-1])
        basis = None if context.basis is None else context.basis[row, write]
        shift, factor = shifts[place].to(output.device), factors[place].to(output.device)
        core = None if cores is None else cores[place].to(output.device)
        return inject_rows(groups, shift, factor, core, None if basis is None else basis.to(output.device)).view_as(output)

    def is_active(layer: int, write: int) -> bool:
        return layer in context.layers and bool(active[layer - context.first_layer, write])

    with _hooked(backbone, change, is_active):
        yield


@contextmanager
def _hooked(backbone: Backbone, hook: _Hook, is_wanted: Callable[[int, int], bool]) -> Iterator[None]:
    """Call ``hook`` on the output of every write that is wanted."""

    def called(layer: int, write: int, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        return hook(layer, write, output)

    with exclusive(backbone), ExitStack() as stack:
        for layer, modules in enumerate(backbone.writes):
            for write, module in enumerate(modules):
                if is_wanted(layer, write):
                    stack.callback(module.register_forward_hook(partial(called, layer, write)).remove)
        yield
