"""Loads a :class:`Backbone` from a hub id, a folder or a GGUF file: never remote code, never pickled weights."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifedicl.backbone.families import Writes, layer_modules, write_modules, writes_of
from ifedicl.backbone.fingerprint import stored_tensors
from ifedicl.backbone.from_files import read_config, read_model, read_tokenizer
from ifedicl.backbone.memory import ModelMemory
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.preflight import check_memory
from ifedicl.backbone.quiet import quiet_transformers
from ifedicl.backbone.soundness import refuse_tokens_without_rows
from ifedicl.backbone.source import files_of
from ifedicl.backbone.tree_attention import Branches, branch_limit
from ifedicl.errors import BackboneError
from ifedicl.settings import ModelSettings

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that a model computes or is stored in, by name."""

_log = logging.getLogger(__name__)
_SHORT = 256  # tokens of a row: for longer rows unfused attention is hardly faster and needs much more memory
_CHOOSING = threading.RLock()
_UNITS = {"bfloat16": ("amx_bf16", "avx512_bf16"), "float16": ("amx_fp16", "avx512_fp16")}
"""Of a processor, by torch's names: without one of them, a product in this dtype is many times slower than in float32."""


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Torch's plain attention. The choice is the whole process's, so one thread at a time makes it and takes it back."""
    with _CHOOSING, sdpa_kernel(SDPBackend.MATH):
        yield


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning that prompts share: its number of tokens, and keys and values of every layer for one row."""

    length: int
    cache: Any


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen causal language model, shared within this process.

    Attributes:
        model: in evaluation mode; no parameter requires a gradient.
        tokenizer: the model's tokenizer.
        blocks: the ``L`` layers.
        writes: for each layer the modules that give the attention and the MLP write.
        source: as the user named it.
        fingerprint: hex SHA-256 of stored weights and tokenizer; equal for equal models.
        dtype: the dtype it computes in, by name; not part of the fingerprint.
        context_window: most tokens in a sequence.
        branch_limit: most tokens in a sequence of a row that branches; 0: rows never branch.
        trained_tokens: most tokens in a pass that keeps what its gradient needs; None: no bound.
    """

    model: Any
    tokenizer: Any
    blocks: tuple[nn.Module, ...]
    writes: tuple[tuple[nn.Module, nn.Module], ...]
    source: str
    fingerprint: str
    dtype: str
    context_window: int
    branch_limit: int
    trained_tokens: int | None = None

    def __deepcopy__(self, memo: object) -> Backbone:
        """The model itself: it never changes, and a copy takes memory (scikit-learn's ``clone`` copies parameters)."""
        return self

    @property
    def layers(self) -> int:
        """``L``."""
        return len(self.writes)

    @property
    def width(self) -> int:
        """``d``."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def shape(self) -> ModelShape:
        """Fingerprint and size."""
        return ModelShape(self.fingerprint, self.layers, self.width)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.model.device
        return device

    def hidden_states(self, tokens: Tensor, prefix: Prefix | None = None, branches: Branches | None = None) -> Tensor:
        """Last hidden states, after the final norm, without the LM head.

        Args:
            tokens: ``(B, T)`` int64, right-padded with any token. No mask is needed: attention is causal, so no token before
                the padding attends to it.
            prefix: the beginning of every row, already run.
            branches: which tokens follow which, within :attr:`branch_limit`; None: one after another.

        Returns:
            ``(B, T, d)``.
        """
        cache = None
        if prefix is not None:
            cache = copy.deepcopy(prefix.cache)  # the model appends to it
            cache.batch_repeat_interleave(len(tokens))
        attention = {} if branches is None else branches.arguments(0 if prefix is None else prefix.length, self.model.dtype)
        with self._attention(tokens.shape[1]):
            try:
                states: Tensor = self.model.base_model(
                    input_ids=tokens, past_key_values=cache, use_cache=cache is not None, **attention
                )[0]
            except IndexError as error:
                raise BackboneError(
                    f"{self.source}: a prompt holds a token without a row in the embedding ({error}). Remove the tokenizer's "
                    "control tokens from the template"
                ) from error
        return states

    def _attention(self, width: int) -> AbstractContextManager[None]:
        """Torch's fused attention is faster forwards, but on a CPU in half precision several times slower backwards.

        Unfused attention needs memory with the square of the width, so it is used for short rows only.
        """
        is_half = self.device.type == "cpu" and self.model.dtype != torch.float32
        is_unfused = is_half and torch.is_grad_enabled() and width <= _SHORT
        return unfused_attention() if is_unfused else nullcontext()

    @torch.inference_mode()
    def prefix(self, tokens: Sequence[int]) -> Prefix:
        """Run a beginning that many prompts share. It is valid for the injections under which it is run."""
        row = torch.tensor([list(tokens)], device=self.device)
        return Prefix(len(tokens), self.model.base_model(input_ids=row, use_cache=True).past_key_values)

    def logits(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """``(..., W)`` float32: the LM head on ``(..., d)`` states for ``(W,)`` token ids; without these ``(..., V)``."""
        head = self.model.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if words is not None:
            weight, bias = weight[words], None if bias is None else bias[words]
        logits = nn.functional.linear(states, weight, bias).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def load_backbone(settings: ModelSettings, *, cache: Path | None = None) -> Backbone:
    """Load the frozen model that ``settings`` name; ``cache`` is for converted GGUF files (None: the user's cache folder).

    Raises:
        BackboneError: it cannot be loaded: unknown family, pickled weights, too little memory, not found.
        DownloadError: the hub cannot be reached or the download was cut short.
        StorageError: the cache cannot be written.
    """
    folder, fingerprint = files_of(settings, cache)
    with quiet_transformers():
        config = read_config(folder, settings.source)
        writes = writes_of(config.model_type, settings.writes)
        device = _device(settings.device)
        dtype = _dtype(settings.dtype, device)
        check_memory(sum(tensor.elements for tensor in stored_tensors(folder)), dtype, device, settings.source)
        model = read_model(folder, config, dtype, device, settings.source)
        tokenizer = read_tokenizer(folder, settings.source)
    refuse_tokens_without_rows(model, tokenizer, settings.source)
    return wrap(model, tokenizer, writes, settings, fingerprint)


def wrap(model: Any, tokenizer: Any, writes: Writes, settings: ModelSettings, fingerprint: str) -> Backbone:
    """Freeze a loaded model and find its writes.

    Raises:
        BackboneError: hooks cannot follow the model's computation, or the model has no module at a path of ``writes``.
    """
    text_config = model.config.get_text_config()
    if getattr(text_config, "slow_but_exact", False) and getattr(text_config, "pretraining_tp", 1) > 1:
        raise BackboneError(
            f"{settings.source}: slow_but_exact with pretraining_tp > 1 bypasses the projection modules; "
            "set slow_but_exact to false in its config.json"
        )
    model.eval().requires_grad_(False)
    window = _window(text_config)
    window = min(window, settings.max_prompt_tokens or window)
    backbone = Backbone(
        model=model,
        tokenizer=tokenizer,
        blocks=layer_modules(model.base_model, writes),
        writes=write_modules(model.base_model, writes),
        source=settings.source,
        fingerprint=fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        context_window=window,
        branch_limit=branch_limit(writes, text_config, window),
        trained_tokens=settings.max_pass_tokens or ModelMemory.trained_tokens_of(model, writes),
    )
    if settings.writes is not None:
        _check_head(backbone)
    return backbone


def _window(text_config: Any) -> int:
    """Most tokens in a sequence.

    Some rotary embeddings change for the whole batch if one sequence is longer than the original training length. A row's
    result would depend on the other rows; so sequences stay below that length.
    """
    window = int(getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "seq_length", None) or 2048)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return window
    first = rope.get("original_max_position_embeddings") or getattr(text_config, "original_max_position_embeddings", None)
    return min(window, int(first or window))


@torch.inference_mode()
def _check_head(backbone: Backbone) -> None:
    """Refuse a family outside the table that does more between states and logits than a matrix, a bias and a cap."""
    tokens = torch.arange(4, device=backbone.device).unsqueeze(0)
    theirs = backbone.model(input_ids=tokens).logits.float()
    if not torch.allclose(backbone.logits(backbone.hidden_states(tokens)), theirs, rtol=0.05, atol=0.05):
        raise BackboneError(
            f"{backbone.source}: its LM head does more than ifedicl reproduces (for instance, it scales its logits), so label "
            "probabilities would be wrong. This family needs an extension of backbone/load.py"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackboneError(
            f"model.device: received {name!r}, but torch finds no GPU; allowed: 'cpu' or 'auto'. Or install a CUDA build"
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise BackboneError(f"model.device: received {name!r}; allowed: 'cpu', or up to 'cuda:{last}'. Choose one, or 'auto'")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype by name; "auto" is bfloat16 only where the processor is faster in it than in float32."""
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if name == "auto":
        return torch.bfloat16 if _has_units("bfloat16") else torch.float32
    if device.type == "cpu" and name in _UNITS and not _has_units(name):
        _log.warning(
            "model.dtype: %s on a processor without units for it: a product takes many times as long as in float32 (37 times, "
            'measured with AVX2). Use "auto" or "float32"',
            name,
        )
    return DTYPES[name]


def _has_units(dtype: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in _UNITS[dtype])
