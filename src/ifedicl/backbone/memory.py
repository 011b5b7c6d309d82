"""How much memory a model's passes take, found without running them: its own code on tensors that hold no numbers.

Two shallow models of the same shape give the cost of a layer, and with it that of any depth. Nothing depends on how much memory
is free at the moment: the same machine always divides a step into the same passes, so a run can be repeated bit for bit.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from ifedicl.backbone.families import Writes, write_modules, writes_of
from ifedicl.core.injection import Maps, inject

ROOM = 4 * 2**30
"""Bytes that a pass with gradients may take at most beside the weights. More tokens in a pass are hardly faster."""
RESERVE = 3 * 2**29
"""Bytes of a GPU that are not ours: the driver's context, workspaces, and what the allocator cannot use."""
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
    def of(cls, config: Any, writes: Writes, dtype: torch.dtype) -> ModelMemory:
        """From a model's configuration alone; nothing is loaded or allocated."""
        text = config.get_text_config()
        if text is not config:  # the text model alone has its modules elsewhere than within the whole
            writes = writes_of(text.model_type, None)
        low, high = (_of_depth(text, layers, writes, dtype) for layers in _SHALLOW)
        deeper = int(text.num_hidden_layers) - _SHALLOW[0]
        weights, trained = (few + (many - few) * deeper for few, many in zip(low, high, strict=True))
        return cls(weights, trained, int(text.hidden_size) * dtype.itemsize)

    @classmethod
    def trained_tokens_of(cls, model: Any, writes: Writes) -> int | None:
        """:meth:`trained_tokens` of a loaded model, by all the memory of its GPU; None on a CPU, whose passes are small."""
        if model.device.type != "cuda":
            return None
        total = torch.cuda.get_device_properties(model.device).total_memory
        return cls.of(model.config, writes, model.dtype).trained_tokens(total)

    def trained_tokens(self, device_bytes: int) -> int:
        """The most tokens of a pass with gradients on a device of so many bytes in all; at least 1."""
        free = device_bytes - self.weights - RESERVE
        return max(1, min(ROOM, free) // self.trained_token)

    def peak(self, trained_tokens: int, kept_tokens: int = 0) -> int:
        """Weights, one pass with gradients, and kept states."""
        return self.weights + trained_tokens * self.trained_token + kept_tokens * self.kept_token


def _of_depth(text: Any, layers: int, writes: Writes, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the weights, and of a token in a pass with gradients, of a model that is only so deep."""
    text = copy.deepcopy(text)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(text, dtype=dtype).eval().requires_grad_(False)
        weights = {_key(weight.untyped_storage()): weight.untyped_storage().nbytes() for weight in model.parameters()}
        few, many = (_pass(model, writes, rows, text.hidden_size, dtype, weights) for rows in (_ROWS, 2 * _ROWS))
    return sum(weights.values()), (many - few) // (_ROWS * _WIDTH)


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
