"""The model ``ifedicl`` of lm-evaluation-harness: a frozen model under an adapter's injection.

The harness finds it by the entry point ``lm_eval.models``; versions that know no entry points, by
:mod:`ifedicl.lm_evaluation.__main__`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from ifedicl.adapter import Adapter
from ifedicl.adapter.hub_name import HubName
from ifedicl.backbone.hooks import applied
from ifedicl.backbone.turn import Turn
from ifedicl.errors import InputError
from ifedicl.kinds.classify import as_classification
from ifedicl.lm_evaluation.task_file import TEXT
from ifedicl.settings import ModelSettings, validated


class AdapterLM(HFLM):  # type: ignore[misc]
    """The harness's own model of transformers; every forward pass, also of generation, runs under the injection.

    It runs the frozen weights themselves: nothing is folded or copied.
    """

    def __init__(
        self,
        adapter: str,
        backbone: str | None = None,
        use_readout: bool = False,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        max_length: int | None = None,
    ) -> None:
        """Load adapter and model.

        Args:
            adapter: a folder, RUN or RUN/adapter; or ``hub:OWNER/NAME[@REVISION]``.
            backbone: the model on this machine, if not where the adapter says.
            use_readout: the readout answers, with log-probabilities among the labels. It knows only the adapter's own prompts
                and label words, so it answers no task but the one of :func:`~ifedicl.lm_evaluation.task_file.write_task`.
            device: where the model runs; a GPU that is not there, the harness's default, is ignored. None: as the adapter says.
            dtype: as ``model.dtype``. None: as the adapter says.
            batch_size: rows of a pass, or ``auto``.
            max_batch_size: most rows that ``auto`` tries.
            max_length: most tokens of a row, within the model's window.

        Raises:
            AdapterError: there is no such adapter, or it is incomplete.
            BackboneError: the model cannot be loaded, or is another one than the adapter's.
            ConfigError: device or dtype is wrong.
            InputError: ``use_readout`` is true and the adapter has no readout.
            TaskError: ``use_readout`` is true and the adapter's task is no classification.
        """
        name = str(adapter)  # the harness reads a number as one
        loaded = Adapter.from_pretrained(name) if HubName.of(name) else Adapter.load(name)
        loaded = replace(loaded, model=_placed(loaded.model, backbone, device, dtype))
        if use_readout and loaded.readout is None:
            raise InputError("use_readout: received true, but the adapter has no readout; allowed: false. Leave it out")
        self._reader = loaded.classifier() if use_readout else None
        self._adapter = self._reader or loaded.on_model()
        model = self._adapter.backbone
        tokenizer = copy.deepcopy(model.tokenizer)  # the harness sets its padding
        self._turn = Turn(tokenizer, loaded.task, loaded.model_name)
        super().__init__(
            pretrained=model.model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            max_length=min(max_length or model.context_window, model.context_window),
            softmax_dtype="float32",  # as label words are scored
        )

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each request's continuation, and whether no other is more probable.

        With ``use_readout`` it is among the labels.

        Raises:
            InputError: with ``use_readout``: a request is not the adapter's own prompt and one of its label words.
        """
        if self._reader is None:
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return answers
        asked = [self._label_of(request) for request in requests]
        texts = list(dict.fromkeys(text for text, _ in asked))
        logs = dict(zip(texts, self._reader.log_probabilities(texts), strict=True))
        return [(float(logs[text][label]), int(logs[text].argmax()) == label) for text, label in asked]

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results; no path of this machine."""
        adapter = self._adapter.adapter
        about = {"task": adapter.task.name, "task_digest": adapter.task.digest, "model": adapter.model_name}
        used = {"model_fingerprint": adapter.fingerprint, "use_readout": self._reader is not None}
        return {**super().get_model_info(), "adapter": about | used}

    def _label_of(self, request: Any) -> tuple[str, int]:
        """The text and the position of the label that a request asks about."""
        task = as_classification(self._adapter.adapter.task, "use_readout")
        prompt, continuation = request.args
        text = request.doc.get(TEXT)
        words = [task.separator + word for word in task.label_words]
        if not isinstance(text, str) or self._turn.prompt(text) != prompt or continuation not in words:
            raise self._not_own()
        return text, words.index(continuation)

    def _not_own(self) -> InputError:
        return InputError(
            "use_readout: received a request that is not the adapter's own prompt with one of its label words; allowed: the "
            "task that `ifedicl harness` writes, without examples in the prompt. Leave use_readout out for other tasks"
        )

    def _injection(self) -> AbstractContextManager[None]:
        if self._reader is not None:
            raise self._not_own()
        adapter = self._adapter.adapter
        return applied(self._adapter.backbone, adapter.context, adapter.coefficients)

    def _model_call(self, *arguments: Any, **options: Any) -> torch.Tensor:
        with self._injection():
            logits: torch.Tensor = super()._model_call(*arguments, **options)
        return logits

    def _model_generate(self, *arguments: Any, **options: Any) -> torch.Tensor:
        with self._injection():
            tokens: torch.Tensor = super()._model_generate(*arguments, **options)
        return tokens


def _placed(model: ModelSettings, source: str | None, device: str | None, dtype: str | None) -> ModelSettings:
    """The adapter's model with what the harness was told about it."""
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = None
    told = {"source": source, "device": device, "dtype": dtype}
    changes = {field: value for field, value in told.items() if value is not None}
    return validated(ModelSettings, model.model_dump(exclude_none=True) | changes, "--model_args")
