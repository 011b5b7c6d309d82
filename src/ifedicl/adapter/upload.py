"""What an upload to the hub holds, told before anything is sent."""

from __future__ import annotations

from pathlib import Path

from ifedicl.adapter.format import CARD
from ifedicl.adapter.hub_name import hub_id_of_model
from ifedicl.backbone.licence import Terms

_DESCRIBED = """\
to: {endpoint}/{repo_id}
visibility: a new repository {seen}; one that exists stays as it is
files: {files}
They hold the task (labels, label words, and the prompt with all that stands in it), means over all clients' examples, the
calibrated numbers, and the settings. They hold no text of the clients' files, no client's name and no path of this machine.

The base model's terms:
{terms}

The card, {card}:

{text}"""


def shareable_source(source: str) -> str:
    """The model's source without the folders above it, if it is a path; as a path, so that no reader takes it for a hub id."""
    return hub_id_of_model(source) or f"./{Path(source).expanduser().name}"


def described(folder: Path, repo_id: str, endpoint: str, terms: Terms, *, public: bool) -> str:
    """The upload of a folder, for the person who decides."""
    files = ", ".join(f"{file.name} ({file.stat().st_size:,} bytes)" for file in sorted(folder.iterdir()))
    return _DESCRIBED.format(
        endpoint=endpoint,
        repo_id=repo_id,
        seen="can be seen by everyone" if public else "is private",
        files=files,
        terms=terms.markdown(),
        card=CARD,
        text=(folder / CARD).read_text(encoding="utf-8"),
    )
