"""Loads a :class:`Backbone` from a hub id, a folder or a GGUF file: never remote code, never pickled weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging as transformers_logging

from ifedicl.backbone import gguf, hub
from ifedicl.backbone.checkpoint_folder import check_folder
from ifedicl.backbone.families import Writes, layer_modules, write_modules, writes_of
from ifedicl.backbone.fingerprint import fingerprint_of, stored_tensors
from ifedicl.backbone.from_files import read_config, read_model, read_tokenizer
from ifedicl.backbone.memory import ModelMemory
from ifedicl.backbone.model_shape import ModelShape
from ifedicl.backbone.preflight import check_memory
from ifedicl.backbone.soundness import refuse_tokens_without_rows
from ifedicl.backbone.tree_attention import Branches, branch_limit
from ifedicl.errors import BackboneError
from ifedicl.settings import ModelSettings

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that a model computes or is stored in, by name."""

_SHORT = 256  # tokens of a row: for longer rows unfused attention is hardly faster and needs much more memory
_CHOOSING = threading.RLock()
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
# The files that are downloaded from a hub repository: weights without code, and the tokenizer's files.
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab*"]
_HUB_FILES += ["merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model"]
_HUB_FILES += ["adapter_config.json"]  # an adapter is refused by it
_HUB_FILES += ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "ACCEPTABLE_USE*", "README.md"]  # copied by an export


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
    folder, fingerprint = _weights_and_fingerprint(settings, cache)
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


def fingerprint(settings: ModelSettings) -> str:
    """The fingerprint of the model that ``settings`` name, without loading it; cached by path, size and time of its files.

    Raises:
        BackboneError: there is no such model.
        DownloadError: the hub cannot be reached.
    """
    return _weights_and_fingerprint(settings)[1]


def shape_of(settings: ModelSettings) -> ModelShape:
    """Fingerprint and size of the model that ``settings`` name, without loading it.

    Raises: as :func:`fingerprint`.
    """
    folder, fingerprint = _weights_and_fingerprint(settings)
    text = read_config(folder, settings.source).get_text_config()
    return ModelShape(fingerprint, int(text.num_hidden_layers), int(text.hidden_size))


def _weights_and_fingerprint(settings: ModelSettings, cache: Path | None = None) -> tuple[Path, str]:
    """The folder with the weights, converted or downloaded if necessary, and the model's fingerprint."""
    original = Path(settings.source).expanduser()
    try:
        if original.suffix.lower() == ".gguf" and not original.is_dir():
            with quiet_transformers():
                return gguf.converted_folder(original, cache), gguf.fingerprint_of(original)
        if original.is_file():
            raise BackboneError(
                f"model.source: received the file {settings.source}; allowed: a folder, a .gguf file or a hub id. Give its "
                "folder"
            )
        folder = original if original.is_dir() else _downloaded(settings)
        check_folder(folder, settings.source)
        with quiet_transformers():
            return folder, fingerprint_of(folder)
    except OSError as error:
        raise BackboneError(
            f"model.source: {settings.source}: {error.filename or 'a file'} cannot be read ({error.strerror or error}). "
            "Check that it is there, and its permissions"
        ) from error


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


def _downloaded(settings: ModelSettings) -> Path:
    folder = hub.download(
        settings.source, settings.revision, _HUB_FILES, instead="give a folder or a .gguf file as model.source"
    )
    if folder is None:
        raise BackboneError(
            f"model.source {settings.source!r} (revision {settings.revision or 'default'}): no such folder, .gguf file or "
            "hub model. Check the spelling; a gated model needs `hf auth login` first"
        )
    return folder


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
    """The dtype by name; "auto" is bfloat16 only if the processor multiplies it faster than float32."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(unit, False) for unit in _BFLOAT16_UNITS) else torch.float32


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the loading bars and advice of transformers; the user's settings are restored afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
