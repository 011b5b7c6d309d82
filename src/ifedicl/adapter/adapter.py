"""An adapter: in its folder, on the hub, and on its model.

Only what runs the model imports torch, when it is called: a FLARE server makes adapters and has no model.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import huggingface_hub

from ifedicl import files
from ifedicl.adapter import card
from ifedicl.adapter.classifier import Classifier, Prediction
from ifedicl.adapter.content import Content
from ifedicl.adapter.format import BESIDE, CARD, HEADER, TENSORS, adapter_folder, pack, unpack, write_files
from ifedicl.adapter.hub_name import HubName
from ifedicl.adapter.on_model import OnModel
from ifedicl.adapter.upload import described, shareable_source
from ifedicl.backbone import hub
from ifedicl.backbone.licence import terms_of
from ifedicl.errors import AdapterError, BackboneError

if TYPE_CHECKING:
    from ifedicl.backbone.load import Backbone

_log = logging.getLogger(__name__)
_LOADING = threading.Lock()
"""Held while an adapter puts itself on its model, so that several threads load it once."""


@dataclass(frozen=True)
class Adapter(Content):
    """A task, the global context and the calibrated coefficients, for one frozen model.

    Attributes:
        task: labels, label words and prompt.
        context: global vectors and basis.
        coefficients: the coefficients of the chosen round.
        readout: scores the labels; None: the label words score them.
        model: source and loading settings of the model.
        fingerprint: the model's fingerprint.
        provenance: rounds, clients, counts and settings, as JSON. It holds no times: equal runs give equal files.
    """

    def save(self, folder: str | Path) -> None:
        """Write the adapter as a folder that appears whole or not at all.

        Raises:
            StorageError: no space, no permission, or another disk fault.
        """
        with files.new_folder(Path(folder), mark=HEADER) as temporary:
            write_files(self, temporary, self.describe())

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read what :meth:`save` wrote, from its folder or the run's. The model is not loaded yet.

        Raises:
            AdapterError: the folder is absent, torn, or of another format version.
        """
        folder = adapter_folder(Path(folder))
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            data = (folder / TENSORS).read_bytes()
        except FileNotFoundError as error:
            raise AdapterError(
                f"{folder} is not an adapter: {Path(error.filename).name} is missing. Give the folder that `ifedicl run` "
                "or `ifedicl demo` wrote: RUN or RUN/adapter"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(f"{folder}: {HEADER} cannot be read ({error}); copy the adapter again") from error
        return cls.unpacked(header, data, source=str(folder))

    def push_to_hub(self, repo_id: str, *, confirm: Callable[[str], bool], public: bool = False) -> str | None:
        """Upload the adapter to the hub, if ``confirm`` agrees to what goes.

        That are the adapter's three files, and the licence texts beside the base model. The card begins with the hub's header.
        If the model is named by a path on this machine, its last part alone goes. Uploads need a login (`hf auth login`);
        ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` count as everywhere.

        Args:
            repo_id: ``OWNER/NAME``.
            confirm: is called once with a description of the upload (destination, files, terms, card), before anything is sent.
            public: whether a new repository can be seen by everyone.

        Returns:
            The address of the repository; None if ``confirm`` did not agree.

        Raises:
            ConfigError: ``repo_id`` is no such name, or the base model's licence does not allow it.
            DownloadError: the hub cannot be reached, or refuses.
        """
        hub.check_id(repo_id)
        terms = terms_of(self.model)
        terms.check_name(repo_id)
        with TemporaryDirectory() as temporary:
            upload = Path(temporary) / "adapter"
            shown = self.with_model_source(shareable_source(self.model.source))
            shown.save(upload)
            files.write_text(upload / CARD, card.adapter_hub_card(shown, terms, repo_id))
            terms.copy_files(upload)
            api = huggingface_hub.HfApi()
            if not confirm(described(upload, repo_id, api.endpoint, terms, public=public)):
                return None
            hub.push(upload, repo_id, public=public, api=api, message="An ifedicl adapter")
            return f"{api.endpoint}/{repo_id}"

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Adapter:
        """Read an adapter from a folder or from the hub. Its model is not loaded yet.

        Only the adapter's files (safetensors, JSON, Markdown) are downloaded; those of an exported checkpoint are under
        ``ifedicl/``. With ``HF_HUB_OFFLINE=1`` a repository that was downloaded before is read from the cache.

        Args:
            name: a folder, a hub id, or ``hub:OWNER/NAME[@REVISION]``, which is never taken for a folder.
            revision: a branch, tag or commit of the hub id.

        Raises:
            AdapterError: there is no such folder or hub id, or the adapter is incomplete.
            DownloadError: the hub cannot be reached.
        """
        named = HubName.of(str(name))
        folder = Path(name).expanduser()
        if named is not None or not folder.is_dir():
            folder = (named or HubName(str(name), revision)).downloaded()
        is_checkpoint = not (folder / HEADER).is_file() and (folder / BESIDE / HEADER).is_file()
        return cls.load(folder / BESIDE if is_checkpoint else folder)

    def header_and_tensors(self) -> tuple[dict[str, Any], bytes]:
        """The contents of the folder's two files: a JSON header with the digest of the tensors, and the tensors."""
        return pack(self)

    @classmethod
    def unpacked(cls, header: Any, data: bytes, *, source: str) -> Adapter:
        """From :meth:`header_and_tensors`.

        Raises:
            AdapterError: torn, of another format version, or with a field of another type; ``source`` names the adapter.
        """
        return unpack(cls, header, data, source)

    def with_model_source(self, source: str | None) -> Adapter:
        """The adapter with another source of the model; with None the adapter itself."""
        return self if source is None else replace(self, model=self.model.model_copy(update={"source": source}))

    def classifier(self, backbone: Backbone | None = None) -> Classifier:
        """Put the adapter of a classification on its model.

        Args:
            backbone: the loaded model; None: it is loaded from ``self.model``.

        Raises:
            FingerprintError: it is another model than the adapter was made with.
            BackboneError: the model cannot be loaded.
            TaskError: its task is of another kind.
        """
        from ifedicl.backbone.load import load_backbone

        return Classifier(self, backbone or load_backbone(self.model))

    def on_model(self, backbone: Backbone | None = None) -> OnModel:
        """Put the adapter on its model, whatever the kind of its task; arguments and errors as :meth:`classifier`."""
        from ifedicl.backbone.load import load_backbone

        return OnModel(self, backbone or load_backbone(self.model))

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Label texts. The first call loads the model, and the adapter keeps it until :meth:`release`.

        Raises:
            BackboneError: the model cannot be loaded.
            DataError: a text has no tokens.
            FingerprintError: it is another model than the adapter was made with.
        """
        with _LOADING:
            classifier = self._classifier
        return classifier.classify(texts)

    def release(self) -> None:
        """Drop the model that :meth:`classify` keeps. Its memory is free once nothing else refers to the model."""
        self.__dict__.pop("_classifier", None)

    @cached_property
    def _classifier(self) -> Classifier:
        return self.classifier()

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process loads the model itself.
        return {name: value for name, value in self.__dict__.items() if name != "_classifier"}

    def export(
        self, folder: str | Path, backbone: Backbone | None = None, *, dtype: str = "float32", form: str = "checkpoint"
    ) -> None:
        """Write the adapter in a form that other programs run at the cost of the plain model.

        The folder holds a model card with code to use it, the base model's licence if it has one, and under ``ifedicl/`` this
        adapter.

        Args:
            folder: appears whole or not at all; an earlier export there is replaced.
            backbone: the loaded model; None: it is loaded from ``self.model``.
            dtype: of the stored weights: ``float32``, ``bfloat16`` or ``float16``.
            form: ``checkpoint``: folded into an ordinary checkpoint, without readout. ``lora`` and ``gguf-lora``: for
                ``peft`` and for llama.cpp, without readout.
                ``sequence-classification``: folded, with readout or label words as the head ``score``.
                ``lora-sequence-classification``: a LoRA with this head.

        Raises:
            InputError: there is no such form.
            AdapterError: the adapter does not fit the form: λ or β was moved, or the readout is no head.
            BackboneError: the family cannot store it, or the weights are quantised.
            StorageError: as :meth:`save`.
        """
        from ifedicl.adapter.exports import export  # imports transformers

        quantisation = self.model.quantisation if backbone is None else backbone.quantisation
        if quantisation is not None:
            raise BackboneError(
                f'export: the adapter was made with {quantisation} weights (model.quantisation = "{quantisation}"), into which '
                "nothing can be folded; allowed: a model with whole weights. Use the adapter with the model: Adapter.load, "
                "ifedicl classify"
            )
        export(self, Path(folder), self.on_model(backbone).backbone, dtype=dtype, form=form)

    def describe(self) -> str:
        """A model card in Markdown."""
        return card.card(self)
