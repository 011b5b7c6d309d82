"""Loads a :class:`Backbone` from a hub id, a folder or a GGUF file: never remote code, never pickled weights."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifedicl.backbone.capture import Captures, CudaGraphs, bucketed
from ifedicl.backbone.devices import device_named, dtype_named
from ifedicl.backbone.families import Writes, layer_modules, write_modules, writes_of
from ifedicl.backbone.fingerprint import stored_tensors
from ifedicl.backbone.from_files import on_device, read_config, read_model, read_tokenizer
from ifedicl.backbone.memory import trained_tokens_of
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.placement import device_of, present
from ifedicl.backbone.preflight import check_memory
from ifedicl.backbone.quantisation import quantise
from ifedicl.backbone.quantised_kinds import KINDS
from ifedicl.backbone.quiet import quiet_transformers
from ifedicl.backbone.soundness import refuse_tokens_without_rows
from ifedicl.backbone.source import files_of
from ifedicl.backbone.tree_attention import Branches, branch_limit
from ifedicl.core.injection import Change, plain_changes
from ifedicl.errors import BackboneError
from ifedicl.settings import ModelSettings

FUSED_ON = frozenset({"cuda"})
"""Types of the devices whose injections can be fused."""

_log = logging.getLogger(__name__)
_SHORT = 256  # tokens of a row: for longer rows unfused attention is hardly faster and needs much more memory
_CHOOSING = threading.RLock()


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
        quantisation: of the weights, by name; part of the fingerprint.
        launches: as :attr:`ModelSettings.launches`.
        captures: replays passes of repeated shapes; None: all passes run as they come.
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
    quantisation: str | None = None
    launches: str = "plain"
    captures: Captures | None = None

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
        """Where tokens go and states come back; where all weights are, unless :attr:`devices` differ."""
        return self._device

    @cached_property
    def _device(self) -> torch.device:
        return device_of(self.model.get_input_embeddings())

    @cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where each of the ``L`` layers computes."""
        return tuple(device_of(mlp) for _, mlp in self.writes)

    def changes_of(self, rank: int) -> Callable[..., list[Change]]:
        """What makes injections of a subspace of this rank (0: none): :func:`plain_changes`, or the fused ones on a GPU."""
        if self.launches == "plain" or self.device.type not in FUSED_ON:
            return plain_changes
        from ifedicl.core import fused_injection  # imports torch's compiler, which takes a second

        sound = (fused_injection.is_sound(device, self.width, self.model.dtype, rank) for device in set(self.devices))
        return fused_injection.changes if all(sound) else plain_changes

    def padded(self, width: int) -> int:
        """How many tokens a row of a step or of an extraction takes, padding included: more than its own with captures."""
        return width if self.captures is None else bucketed(width, self.context_window)

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
        return states.to(self.device)

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
        with present(head):
            weight, bias = head.weight, getattr(head, "bias", None)
            if words is not None:
                words = words.to(weight.device)
                weight, bias = weight[words], None if bias is None else bias[words]
            logits = nn.functional.linear(states.to(weight.device), weight, bias).float().to(self.device)
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
        device = device_named(settings.device)
        dtype = dtype_named(settings.dtype, device)
        if settings.device_map is None:
            bits = KINDS[settings.quantisation].bits if settings.quantisation else None
            check_memory(sum(tensor.elements for tensor in stored_tensors(folder)), dtype, device, settings.source, bits=bits)
        model = read_model(folder, config, dtype, settings.source, device_map=settings.device_map)
        if settings.quantisation is not None:
            quantise(model, settings.quantisation, settings.source)
        model = on_device(model, device, settings.source) if settings.device_map is None else model
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
        quantisation=settings.quantisation,
        launches=settings.launches,
    )
    captures = _captures(backbone) if settings.launches == "captured" else None
    backbone = replace(
        backbone,
        captures=captures,
        trained_tokens=settings.max_pass_tokens
        or trained_tokens_of(model, writes, [backbone.device, *backbone.devices], settings.quantisation),
    )
    if settings.writes is not None:
        _check_head(backbone)
    return backbone


def _captures(backbone: Backbone) -> Captures | None:
    if backbone.device.type != "cuda" or len({backbone.device, *backbone.devices}) > 1:
        _log.warning(
            'model.launches: received "captured", which needs a model on one GPU; this one is on %s. It runs as with "auto"',
            ", ".join(sorted({str(device) for device in (backbone.device, *backbone.devices)})),
        )
        return None
    return Captures(CudaGraphs())


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
