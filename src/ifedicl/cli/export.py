"""``ifedicl export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ifedicl.cli.adapters import read_adapter
from ifedicl.cli.options import AnyAdapter, ModelSource


class Stored(StrEnum):
    """The dtypes of exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Form(StrEnum):
    """What is written."""

    CHECKPOINT = "checkpoint"
    LORA = "lora"
    GGUF_LORA = "gguf-lora"
    CLASSIFIER = "sequence-classification"
    LORA_CLASSIFIER = "lora-sequence-classification"


_ABOUT = {
    Form.CHECKPOINT: "an ordinary checkpoint",
    Form.LORA: "a LoRA for peft",
    Form.GGUF_LORA: "a LoRA for llama.cpp",
    Form.CLASSIFIER: "a checkpoint with a classification head",
    Form.LORA_CLASSIFIER: "a LoRA with a classification head for peft",
}
_WITHOUT_READOUT = (Form.CHECKPOINT, Form.LORA, Form.GGUF_LORA)


def export(
    adapter: AnyAdapter,
    out: Annotated[Path, typer.Argument(help="The export's folder.")],
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="An ordinary checkpoint; a LoRA for peft or llama.cpp; a checkpoint or a LoRA with a classification head.",
        ),
    ] = Form.CHECKPOINT,
    dtype: Annotated[Stored, typer.Option(help="Dtype of the stored weights; float32 is exact.")] = Stored.FLOAT32,
    model: ModelSource = None,
    hub: Annotated[str | None, typer.Option(help="Also push it to the hub, as ORGANISATION/NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --hub: make a new repository public, not private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --hub: accept the terms without a question.")] = False,
) -> None:
    """Write an adapter in a form that other programs serve: a checkpoint, a LoRA, or either with a classification head.

    The table in docs/serving.md says which adapters and model families allow which form. Without a classification head a
    readout is not part of it. Before anything is pushed to the hub, the base model's licence and terms are shown.
    """
    from ifedicl.backbone.licence import terms_of
    from ifedicl.progress import LOADING, waiting

    loaded = read_adapter(adapter, model)  # the model's folder also has the licence
    if hub is not None:
        terms_of(loaded.model).check_name(hub)
    with waiting(LOADING):
        backbone = loaded.on_model().backbone
    with waiting("computing and writing"):
        loaded.export(out, backbone, dtype=dtype.value, form=form.value)
    console = Console(markup=False)
    console.print(f"wrote {out}, {_ABOUT[form]}; its README.md says how to use it", highlight=False)
    if loaded.readout is not None and form in _WITHOUT_READOUT:
        console.print(
            "the readout is not in it: score label words, use the adapter itself, or --as sequence-classification",
            highlight=False,
        )
    if hub is not None:
        _push(out, hub, terms_of(loaded.model).markdown(), public=public, agreed=yes)


def _push(folder: Path, name: str, terms: str, *, public: bool, agreed: bool) -> None:
    from huggingface_hub import HfApi

    from ifedicl.backbone.hub import push
    from ifedicl.progress import waiting

    print(f"{name}, {'public' if public else 'private if it is new'}:\n{terms}")
    if not agreed and not typer.confirm("Push it under these terms?", default=False):
        print("nothing was pushed")
        return
    with waiting("pushing"):
        push(folder, name, public=public, api=HfApi(), message="An ifedicl adapter, exported")
    print(f"pushed to {name}")
