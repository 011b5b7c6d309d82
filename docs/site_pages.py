"""Writes the pages of the site from the documents of this repository: python docs/site_pages.py FOLDER.

README, changelog and the notebook become pages; so does each source file that a page names. Links are written for a code host,
relative to the file they stand in. Here they become links of the site. Any builder that reads `mkdocs.yml` takes the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat

ROOT = Path(__file__).parents[1]
_PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "docs/notebook.ipynb": "notebook.md",
}
"""Where a file of the repository stands in the site, if not at its place below ``docs``."""
_FENCES = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!\w+:)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
_NAMED = re.compile(r"(?<!\[)`(?P<path>[\w./-]+\.(?:py|toml))[^`\n]*`")
_CODE = re.compile(r"`[^`\n]+`")
_KINDS = {".py": "python", ".toml": "toml"}


def main(folder: Path) -> None:
    """Write all pages and pictures into an empty folder."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(ROOT / "docs" / "images", folder / "images")
    origins = [*_PLACES, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
    named: set[str] = set()
    for origin in origins:
        path = ROOT / origin
        text = "\n".join(_cells(path)) if path.suffix == ".ipynb" else path.read_text()
        parts = _FENCES.split(text)
        for number in range(0, len(parts), 2):
            parts[number] = _linked(parts[number], origin, named)
        _write(folder / _place(origin), "".join(parts))
    for source in named:
        text = (ROOT / source).read_text()
        fenced = f"````{_KINDS.get(Path(source).suffix, 'text')}\n{text}\n````\n"
        _write(folder / _place(source), f"---\nsearch:\n  exclude: true\n---\n# {source}\n\n{fenced}")


def _linked(text: str, origin: str, named: set[str]) -> str:
    """A part of a page, with its links, and its names of source files, as links of the site; adds the files to ``named``."""
    page = _place(origin)

    def link(match: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(origin).parent / match["path"])
        if _place(target).startswith("source/") and (ROOT / target).is_file():
            named.add(target)
        return _relative(target, page) + (match["anchor"] or "")

    def name(match: re.Match[str]) -> str:
        source = _source(match["path"])
        if source is None:
            return match[0]
        named.add(source)
        return f"[{match[0]}]({_relative(source, page)})"

    text = _CODE.sub(lambda match: match[0].replace(r"\|", "|"), text)  # a code host's tables want the backslash
    return _NAMED.sub(name, _LINK.sub(link, text))


def _source(path: str) -> str | None:
    """The source file that a code span names, from the root, ``src/ifedicl`` or ``benchmarks``."""
    places = (path, f"src/ifedicl/{path}", f"benchmarks/{path}")
    return next((place for place in places if not place.startswith("docs/") and (ROOT / place).is_file()), None)


def _place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path in _PLACES:
        return _PLACES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _relative(target: str, page: str) -> str:
    return os.path.relpath(_place(target), PurePosixPath(page).parent)


def _cells(path: Path) -> Iterator[str]:
    """A notebook as Markdown: its text, its code, and what the code printed."""
    notebook: Any = nbformat.reads(path.read_text(), as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield f"{cell.source}\n"
            continue
        yield f"```python\n{cell.source}\n```\n"
        for output in cell.outputs:
            shown = output.get("text") or output.get("data", {}).get("text/plain", "")
            yield f"```text\n{shown.rstrip()}\n```\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
