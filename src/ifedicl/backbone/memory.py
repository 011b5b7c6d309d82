"""How much memory a model's passes take, found without running them: its own code on tensors that hold no numbers.

Two shallow models of the same shape give the cost of a layer, and with it that of any depth. A step is divided by this plan, so
that the same card always divides it into the same passes and a run can be repeated bit for bit. What is measured to be free
counts only where it is less: somebody else uses the card.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from ifedicl.backbone.families import Writes, write_modules, writes_of
from ifedicl.backbone.quantised_kinds import KINDS, Kind
from ifedicl.core.injection import Maps, inject

_log = logging.getLogger(__name__)

ROOM = 4 * 2**30
"""Bytes that a pass with gradients may take at most beside the weights. More tokens in a pass are hardly faster."""
RESERVE = 3 * 2**29
"""Bytes of a GPU that are not ours: the driver's context, workspaces, and what the allocator cannot use."""
SLACK = 2**29
"""Bytes of what is measured to be free on a GPU that a pass leaves: workspaces, and what the allocator cannot use."""
_STEP = 2**28
_RANK = 8  # of the subspace: the default, and more than the paper's form needs
_SHALLOW = (2, 3)  # layers; differences between two depths are those of a layer
_ROWS, _WIDTH = 4, 64


@dataclass(frozen=True)
class ModelMemory:
    """Bytes that a model needs on its device.

    Attributes:
        weights: of the language model; a vision tower beside it is not counted.
        trained_token: of one token, padding included, in a pass that keeps what its gradient needs.
        kept_token: of one token's state that enters the lowest injected layer.
    """

    weights: int
    trained_token: int
    kept_token: int

    @classmethod
    def of(cls, config: Any, writes: Writes, dtype: torch.dtype, quantisation: str | None = None) -> ModelMemory:
        """From a model's configuration alone; nothing is loaded or allocated.

        Quantised weights count with one of them, the largest, in full size: each is so while its product is computed.
        """
        text = config.get_text_config()
        if text is not config:  # the text model alone has its modules elsewhere than within the whole
            writes = writes_of(text.model_type, None)
        low, high = (_of_depth(text, layers, writes, dtype, quantisation) for layers in _SHALLOW)
        deeper = int(text.num_hidden_layers) - _SHALLOW[0]
        weights, trained = (few + (many - few) * deeper for few, many in zip(low, high, strict=True))
        return cls(weights, trained, int(text.hidden_size) * dtype.itemsize)

    def divided(self, device_bytes: int, free_bytes: int) -> int:
        """The most tokens of a pass with gradients: :meth:`trained_tokens`, or fewer if less is free beside the weights."""
        within = (free_bytes - SLACK) // _STEP * _STEP  # small changes of what is free change nothing
        planned, measured = self.trained_tokens(device_bytes), max(1, within // self.trained_token)
        if measured < planned:
            _log.warning(
                "%d MiB are free on the GPU, so a pass of a step takes %d tokens, not %d; last bits of the numbers may differ "
                "from those of an idle card. model.max_pass_tokens sets a bound",
                free_bytes >> 20,
                measured,
                planned,
            )
        return min(planned, measured)

    def trained_tokens(self, device_bytes: int) -> int:
        """The most tokens of a pass with gradients on a device of so many bytes in all; at least 1."""
        free = device_bytes - self.weights - RESERVE
        return max(1, min(ROOM, free) // self.trained_token)

    def peak(self, trained_tokens: int, kept_tokens: int = 0) -> int:
        """Weights, one pass with gradients, and kept states."""
        return self.weights + trained_tokens * self.trained_token + kept_tokens * self.kept_token


def trained_tokens_of(
    model: Any,
    writes: Writes,
    devices: Collection[torch.device],
    quantisation: str | None = None,
    *,
    free: Callable[[torch.device], int] | None = None,
) -> int | None:
    """:meth:`ModelMemory.divided` of a loaded model on GPUs, for the fullest of them; None on a CPU, whose passes are small.

    Of a model that accelerate divided, each card is planned as if all of the pass were there.

    Args:
        model: loaded.
        writes: of its family.
        devices: of its layers.
        quantisation: of its weights.
        free: measures the free bytes of a device (None: :func:`free_bytes`).
    """
    cards = sorted({device for device in devices if device.type == "cuda"}, key=str)
    if not cards:
        return None
    memory, measure = ModelMemory.of(model.config, writes, model.dtype, quantisation), free or free_bytes
    if getattr(model, "hf_device_map", None):
        memory = replace(memory, weights=0)  # which part of them a card has is in what is free there
    return min(memory.divided(torch.cuda.get_device_properties(card).total_memory, measure(card)) for card in cards)


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated now on a device, measured; what torch keeps of a GPU for itself counts as free."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def _of_depth(text: Any, layers: int, writes: Writes, dtype: torch.dtype, quantisation: str | None) -> tuple[int, int]:
    """Bytes of the weights, and of a token in a pass with gradients, of a model that is only so deep."""
    text = copy.deepcopy(text)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(text, dtype=dtype).eval().requires_grad_(False)
        weights = {_key(weight.untyped_storage()): weight.untyped_storage().nbytes() for weight in model.parameters()}
        few, many = (_pass(model, writes, rows, text.hidden_size, dtype, weights) for rows in (_ROWS, 2 * _ROWS))
        saved = 0 if quantisation is None else _saved(model, KINDS[quantisation], dtype)
    return sum(weights.values()) - saved, (many - few) // (_ROWS * _WIDTH)


def _saved(model: Any, kind: Kind, dtype: torch.dtype) -> int:
    """Bytes that quantised weights need less, one of the largest in full size left out."""
    shapes = [module.weight.shape for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    whole = [rows * columns * dtype.itemsize for rows, columns in shapes]
    return sum(whole) - sum(kind.nbytes(rows, columns, dtype.itemsize) for rows, columns in shapes) - max(whole, default=0)


def _pass(model: Any, writes: Writes, rows: int, width: int, dtype: torch.dtype, weights: Collection[int]) -> int:
    """The most bytes beside the weights during a pass: injection at every write, the loss of one token a row, its gradient."""
    basis, core = torch.zeros(_RANK, width), torch.zeros(_RANK, _RANK, requires_grad=True)
    (maps,) = Maps.of(basis.unsqueeze(0), core.unsqueeze(0))
    shift, scale = torch.zeros(width, requires_grad=True), torch.ones((), requires_grad=True)

    def change(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return inject(output, shift, scale, core, maps)

    with _Alive(weights) as alive, ExitStack() as stack:
        for module in chain.from_iterable(write_modules(model.base_model, writes)):
            stack.callback(module.register_forward_hook(change).remove)
        embedded = torch.zeros(rows, _WIDTH, width, dtype=dtype)  # in place of tokens, which some models look at
        states = model.base_model(inputs_embeds=embedded, use_cache=False)[0]
        logits = nn.functional.linear(states[:, -1], model.get_output_embeddings().weight).float()
        logits.log_softmax(dim=-1)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    return int(alive.most)


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001 - torch has no public name for a storage that holds nothing


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, without those that are known before."""

    def __init__(self, known: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._known = set(known)
        self._now = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = _key(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(storage, partial(self._remove, key, size))

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size
