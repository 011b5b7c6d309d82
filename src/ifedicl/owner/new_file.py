"""A new ``client.toml``: the shipped template, or one for a job, with what the job needs as comments."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ifedicl import files
from ifedicl.backbone.source import shape_of
from ifedicl.federation.manifest import Manifest
from ifedicl.kinds import USUAL
from ifedicl.kinds.any_task import SHOWN_TEXT, AnyTask
from ifedicl.owner.approval import manifest_of
from ifedicl.owner.needs import Need, marked, needs_of
from ifedicl.owner.policy import Policy
from ifedicl.settings import RunSettings

_KIND = f'# kind = "{USUAL.kind}"'
_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class NewFile:
    """The text of a ``client.toml``.

    Attributes:
        text: of the file.
        manifest: of the job that it was written for; None: for none.
        needs: of the job; they stand in the text as comments.
    """

    text: str
    manifest: Manifest | None = None
    needs: tuple[Need, ...] = ()


def new_client_file(job: Manifest | RunSettings | None) -> NewFile:
    """The file for a job; with None one that allows no task and no model.

    Raises:
        BackboneError, DownloadError: the model of a config is not on this machine. A manifest needs none.
    """
    empty = {"tasks": "", "models": "", "source": json.dumps(_MODEL), "model_note": "", "prompt_note": "", "kind": _KIND}
    if job is None:
        return NewFile(files.template("client.toml", **empty))
    manifest = manifest_of(job, None if isinstance(job, Manifest) else shape_of(job.model))
    fingerprint, prompt = manifest.model.fingerprint, prompt_lines(manifest.task)
    notes = {"prompt_note": "\n# The job's prompt:" + "".join(f"\n#   | {line}" for line in prompt)}
    if not isinstance(manifest.task, USUAL):
        notes["kind"] = f'kind = "{manifest.task.kind}"'
    if isinstance(job, Manifest):
        notes["model_note"] = (
            f"\n# The job's model has the fingerprint {fingerprint[:16]}...; `ifedicl policy check` shows yours."
        )
    else:
        notes["source"] = json.dumps(job.model.source)
    values = empty | {"tasks": f'"{manifest.task.digest}"', "models": f'"{fingerprint}"'} | notes
    needs = needs_of(manifest, Policy())
    return NewFile(marked(files.template("client.toml", **values), needs), manifest, needs)


def prompt_lines(task: AnyTask) -> list[str]:
    """The prompt around a text and the answers that may follow it, for people to read: nothing in it moves a cursor."""
    lines = (task.prompt(SHOWN_TEXT) + task.separator + task.asks).splitlines() or [""]
    return ["".join(character if character.isprintable() else ascii(character)[1:-1] for character in line) for line in lines]
