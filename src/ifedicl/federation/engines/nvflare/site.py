"""A site's own file says which data and which model its client holds."""

from __future__ import annotations

import secrets
import tomllib
from pathlib import Path

from pydantic import Field

from ifedicl import files
from ifedicl.backbone.load import load_backbone
from ifedicl.data import Example, rows_of
from ifedicl.federation.client import Client
from ifedicl.federation.engines.nvflare.door import Door
from ifedicl.federation.engines.nvflare.names import CLIENT_FILE
from ifedicl.settings import ModelSettings, Section, validated

_KEY = "client.secret"


class SiteData(Section):
    """The owner's labelled text."""

    file: str = Field(description="a .jsonl, .csv, .tsv or .parquet file")
    text_column: str = Field(default="text", description="the column that holds the text")
    label_column: str = Field(default="label", description="the column that holds the label")


class SiteFile(Section):
    """The data and the model of one site."""

    data: SiteData
    model: ModelSettings = Field(description="the model that this site loads")


def open_site(folder: Path, name: str) -> Door:
    """The client of the site whose kit lies in ``folder``, with its model loaded."""
    path = folder / CLIENT_FILE
    site = validated(SiteFile, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    rows = rows_of(folder / site.data.file)
    examples = [Example(str(row[site.data.text_column]), str(row[site.data.label_column])) for _, row in rows]
    return Client(name, examples, load_backbone(site.model), secret=_secret(folder / _KEY))


def _secret(path: Path) -> bytes:
    """Made at the first start and kept: the same after a restart."""
    if not path.exists():
        files.write_bytes(path, secrets.token_bytes(32), private=True)
    return path.read_bytes()
