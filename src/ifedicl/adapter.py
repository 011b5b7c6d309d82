"""The adapter: what a federation ends with, and what classifies text."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCardData
from pydantic import BaseModel, Field, StrictInt, StrictStr
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ifedicl import files
from ifedicl.backbone.export import export_folded
from ifedicl.backbone.hooks import Injection, applied
from ifedicl.backbone.licence import Terms, terms_of
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.multi_adapter import Placed
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients, Form
from ifedicl.core.readout import Readout
from ifedicl.core.subspace import Context
from ifedicl.core.vectors import Array32
from ifedicl.data import Example
from ifedicl.errors import AdapterError, DataError, FingerprintError
from ifedicl.metrics import Evaluation
from ifedicl.settings import ModelSettings
from ifedicl.task import Task

_log = logging.getLogger(__name__)
FORMAT_VERSION = 1
UPPER_FORMAT_VERSION = 2
"""Of an adapter that begins above the model's first layer, and says where; earlier readers would put it at the first."""
_TENSORS, _HEADER, _CARD = "adapter.safetensors", "adapter.json", "README.md"


class _ReadoutHeader(BaseModel):
    pooled_layer: StrictInt | None


class _Header(BaseModel):
    """What stands beside the tensors. Every field has its type: a header is somebody else's file."""

    task: Task
    model: ModelSettings
    fingerprint: StrictStr
    provenance: dict[str, Any]
    readout: _ReadoutHeader | None = None
    first_layer: StrictInt = Field(default=0, ge=0)


@dataclass(frozen=True)
class Prediction:
    """What the adapter says of one text.

    Attributes:
        label: the most probable label.
        probabilities: of every label, in the task's order; they sum to 1.
    """

    label: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Adapter:
    """A task, the global context and the calibrated coefficients, for one frozen model.

    Attributes:
        task: what is asked.
        context: global vectors and basis.
        coefficients: the chosen ones.
        readout: reads the labels off; None: the label words do.
        model: how the model was named and loaded.
        fingerprint: of that model.
        provenance: how it came to be, as JSON: rounds, clients, counts, settings. No times: equal runs give equal files.
    """

    task: Task
    context: Context
    coefficients: Coefficients
    model: ModelSettings
    fingerprint: str
    readout: Readout | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write the adapter as a folder that appears whole or not at all.

        Raises:
            StorageError: no space, no permission, or another disk fault.
        """
        header, tensors = self.packed()
        with files.new_folder(Path(folder), mark=_HEADER) as temporary:
            files.write_bytes(temporary / _TENSORS, tensors)
            files.write_json(temporary / _HEADER, header)
            files.write_text(temporary / _CARD, self.describe())

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read what :meth:`save` wrote. The model is not loaded yet.

        Raises:
            AdapterError: the folder is absent, torn, or of another format version.
        """
        folder = Path(folder)
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
            data = (folder / _TENSORS).read_bytes()
        except FileNotFoundError as error:
            raise AdapterError(
                f"{folder} is not an adapter: {Path(error.filename).name} is missing. Give the folder that `ifedicl run` "
                "or `ifedicl demo` wrote, usually RUN/adapter"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(f"{folder}: {_HEADER} cannot be read ({error}); copy the adapter again") from error
        return cls.unpacked(header, data, source=str(folder))

    def packed(self) -> tuple[dict[str, Any], bytes]:
        """The contents of the folder's two files: a header that is JSON, with the digest of the tensors, and the tensors."""
        tensors = save(self._tensors)
        header = {
            **self._begins,
            "task": self.task.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
            **({} if self.readout is None else {"readout": {"pooled_layer": self.readout.pooled_layer}}),
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
            "provenance": dict(self.provenance),
        }
        return header, tensors

    @classmethod
    def unpacked(cls, header: Any, data: bytes, *, source: str) -> Adapter:
        """From :meth:`packed`.

        Args:
            header: parsed JSON.
            data: the tensors.
            source: where they come from, for messages.

        Raises:
            AdapterError: torn, of another format version, or with a field of another type.
        """
        version = header.get("format_version") if isinstance(header, dict) else None
        if version not in (FORMAT_VERSION, UPPER_FORMAT_VERSION):
            known = f"{FORMAT_VERSION} and {UPPER_FORMAT_VERSION}"
            raise AdapterError(f"{source}: format version {version!r}; this ifedicl reads {known}. Update ifedicl")
        if hashlib.sha256(data).hexdigest() != header.get("tensors_sha256"):
            raise AdapterError(f"{source}: {_TENSORS} is torn or not the one written with {_HEADER}; copy the adapter again")
        try:
            tensors, said = load(data), _Header.model_validate(header)
            if version == UPPER_FORMAT_VERSION and "first_layer" not in said.model_fields_set:
                raise ValueError("first_layer is missing")
            first_layer = said.first_layer if version == UPPER_FORMAT_VERSION else 0
            context = Context(tensors["vectors.mean"], tensors.get("subspace.basis"), first_layer)
            coefficients = Coefficients(tensors["coefficients.scales"], tensors.get("subspace.core"))
            if coefficients.form != Form(len(context.vectors), context.rank):
                raise ValueError(f"{coefficients.form} with a basis of rank {context.rank}")
            layer = None if said.readout is None else said.readout.pooled_layer
            readout = Readout(tensors["readout.weights"], layer) if "readout.weights" in tensors else None
            classes, width = len(said.task.labels), context.vectors.shape[2]
            if readout is not None and not readout.fits(classes, width):
                raise ValueError(f"a readout {readout.weights.shape} for {classes} labels and a width of {width}")
            return cls(
                task=said.task,
                readout=readout,
                context=context,
                coefficients=coefficients,
                model=said.model,
                fingerprint=said.fingerprint,
                provenance=said.provenance,
            )
        except (SafetensorError, KeyError, ValueError) as error:
            raise AdapterError(f"{source}: {_HEADER} and {_TENSORS} do not fit each other ({error})") from error

    @property
    def _begins(self) -> dict[str, int]:
        """The header's first fields: the format, and the layer that the tensors begin at."""
        first = self.context.first_layer
        return {"format_version": UPPER_FORMAT_VERSION, "first_layer": first} if first else {"format_version": FORMAT_VERSION}

    @property
    def _tensors(self) -> dict[str, Array32]:
        """Under the names of the format."""
        named = {
            "vectors.mean": self.context.vectors,
            "subspace.basis": self.context.basis,
            "coefficients.scales": self.coefficients.scales,
            "subspace.core": self.coefficients.core,
            "readout.weights": None if self.readout is None else self.readout.weights,
        }
        # safetensors writes memory as it lies, whatever its strides say.
        return {name: np.ascontiguousarray(array) for name, array in named.items() if array is not None}

    def located(self, source: str | None) -> Adapter:
        """The same adapter with its model at another place; with None, as it is."""
        return self if source is None else replace(self, model=self.model.model_copy(update={"source": source}))

    def classifier(self, backbone: Backbone | None = None) -> Classifier:
        """Put the adapter on its model.

        Args:
            backbone: the model, where it is loaded already; left out: it is loaded from ``self.model``.

        Raises:
            FingerprintError: it is another model than the adapter was made with.
            BackboneError: the model cannot be loaded.
        """
        return Classifier(self, backbone or load_backbone(self.model))

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """Load the model and label texts. To label more than once, keep a :meth:`classifier`."""
        return self.classifier().classify(texts)

    def export(self, folder: str | Path, backbone: Backbone | None = None, *, dtype: str = "float32") -> None:
        """Fold the adapter into an ordinary checkpoint, which any server runs at the price of the plain model.

        The folder holds model, tokenizer, a model card, the base model's licence where it has one, and under ``ifedicl/`` this
        adapter: label words and readout are no part of a checkpoint.

        Args:
            folder: made whole or not at all; an earlier export there is replaced.
            backbone: the model, where it is loaded already.
            dtype: of the stored weights: ``float32``, ``bfloat16`` or ``float16``.

        Raises:
            BackboneError: the family cannot store it; the adapter stays of use beside the model.
            StorageError: as :meth:`save`.
        """
        folder, backbone = Path(folder), self.classifier(backbone).backbone
        terms = terms_of(self.model)
        with files.new_folder(folder, mark=f"{_BESIDE}/{_HEADER}") as temporary:
            export_folded(backbone, self.context, self.coefficients, temporary, dtype=dtype)
            card = self.describe() + _EXPORTED.format(dtype=dtype, terms=terms.described())
            files.write_text(temporary / "README.md", self._metadata(terms) + card)
            for notice in terms.files:
                shutil.copyfile(notice, temporary / notice.name)
            self.save(temporary / _BESIDE)

    def _metadata(self, terms: Terms) -> str:
        """The front matter of a hub's model card."""
        named = not Path(self.model.source).expanduser().exists()  # a hub id
        facts = ModelCardData(
            license=terms.licence,
            base_model=self.model.source if named else None,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["ifedicl", "text-classification", "federated-learning"],
        )
        return f"---\n{facts.to_yaml()}\n---\n\n"

    @property
    def _figures(self) -> str:
        """A line of the card on how good it is, where that is known."""
        gate = self.provenance.get("gate") or {}
        if "examples" not in gate:
            return ""
        return (
            f"- figures: {gate['accuracy']:.1%} of {gate['examples']} held-out examples of the clients right, "
            f"{gate['zero_shot_accuracy']:.1%} by the raw model; nothing was chosen by these examples\n"
        )

    @property
    def model_name(self) -> str:
        """The model's hub id or the last part of its path."""
        return Path(self.model.source).name if Path(self.model.source).is_absolute() else self.model.source

    def describe(self) -> str:
        """A model card in Markdown."""
        task, layers, width = self.task, self.context.layers, self.context.vectors.shape[2]
        where = f", from layer {layers.start} on (the lowest is 0)" if layers.start else ""
        provenance = json.dumps(dict(self.provenance), indent=2, ensure_ascii=False)
        return (
            f"# {task.name}: an ifedicl adapter\n\n"
            f"Labels text as {', '.join(task.labels)} with the frozen model `{self.model_name}` "
            f"(fingerprint `{self.fingerprint[:16]}…`), without demonstrations in the prompt.\n\n"
            f"- prompt: `{task.template!r}`, {task.turn} turn\n"
            f"- label words: {', '.join(task.label_words)}\n"
            f"- context vectors: {len(layers)} layers × 2 writes × {width}{where}\n"
            f"- coefficients: {self.coefficients.count} calibrated"
            f"{', and a readout of hidden states' if self.readout else ''}\n"
            f"{self._figures}"
            "- limits: it answers among its labels only, and is as good as the clients' examples; measure it on your own "
            "text before you rely on it\n"
            "- licence: the base model's terms apply to its use\n\n"
            "```python\nfrom ifedicl import Adapter\n\n"
            'Adapter.load("this/folder").classify(["a text"])\n```\n\n'
            f"How it came to be:\n\n```json\n{provenance}\n```\n"
        )


_BESIDE = "ifedicl"
_EXPORTED = """
## This checkpoint

The adapter is folded into the weights, stored as {dtype}: an ordinary checkpoint, of another family's name where its own has no
place for biases. Ask it with the prompt above and compare the probabilities of the label words. A readout is not in it; it
stands, with the adapter itself, in `ifedicl/`.

## Terms

{terms}
"""


class Classifier:
    """An adapter on its model, ready for any number of texts."""

    def __init__(self, adapter: Adapter, backbone: Backbone) -> None:
        """Check that adapter and model belong together.

        Raises:
            FingerprintError: they do not.
            AdapterError: it tells of layers that the model does not have.
        """
        if backbone.fingerprint != adapter.fingerprint:
            raise FingerprintError(
                f"the adapter was made with {adapter.model.source} (fingerprint {adapter.fingerprint[:12]}…), not with "
                f"{backbone.source} ({backbone.fingerprint[:12]}…). Its vectors mean nothing to another model, tokenizer or "
                "quantisation: load the same one, or calibrate an adapter for this one"
            )
        readout = adapter.readout
        fits = readout is None or readout.fits(len(adapter.task.labels), backbone.width, backbone.layers)
        if adapter.context.layers.stop > backbone.layers or not fits:
            raise AdapterError(
                f"the adapter {adapter.task.name!r} tells of layers beyond the model's {backbone.layers}: its {_HEADER} was "
                "changed. Copy the adapter again"
            )
        self.adapter = adapter
        self.backbone = backbone
        self._scorer = Scorer(backbone, adapter.task)

    def placed(self) -> tuple[Placed, Placed]:
        """The adapter, and the raw model asked the same, for shared passes (:mod:`~ifedicl.backbone.multi_adapter`)."""
        adapter = self.adapter
        injection = Injection.of(adapter.context, adapter.coefficients, self.backbone.device)
        return Placed(self._scorer, injection, adapter.readout), Placed(self._scorer)

    def log_probabilities(self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None) -> Array32:
        """``(N, C)`` log-probabilities among the labels, in the order of ``texts``.

        Raises:
            DataError: a text has no tokens.
        """
        if isinstance(texts, str):
            raise DataError("texts is a single string; give a list of texts: classify([text])")
        prompts = self._scorer.encoder.prompts(texts)
        if prompts.truncated:
            _log.warning("%d of %d texts were cut to fit the model's window", prompts.truncated, len(texts))
        with applied(self.backbone, self.adapter.context, self.adapter.coefficients):
            return self._scorer.log_probabilities(prompts, readout=self.adapter.readout, on_progress=on_progress)

    def classify(self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None) -> list[Prediction]:
        """Label texts.

        Raises:
            DataError: a text has no tokens.
        """
        labels = self.adapter.task.labels
        return [
            Prediction(labels[int(row.argmax())], dict(zip(labels, map(float, np.exp(row)), strict=True)))
            for row in self.log_probabilities(texts, on_progress=on_progress)
        ]

    def evaluate(self, examples: Sequence[Example], *, on_progress: Callable[[int], None] | None = None) -> Evaluation:
        """Predictions against the truth.

        Raises:
            DataError: a text has no tokens.
        """
        logs = self.log_probabilities([example.text for example in examples], on_progress=on_progress)
        task = self.adapter.task
        return Evaluation.of(task.labels, logs, [task.index(example.label) for example in examples])
