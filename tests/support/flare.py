"""Clients behind a FLARE transport within the process, and jobs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifedicl.backbone.load import Backbone
from ifedicl.flare.jobs import JobSettings
from ifedicl.settings import Coordination, ModelSettings
from tests.support import tiny

SITES = ("a", "b", "c")


def job(backbone: Backbone, *, coordination: Coordination | None = None, **sections: Any) -> JobSettings:
    return JobSettings(
        name="mood",
        sites=SITES,
        task=tiny.TASK,
        method=tiny.method(**sections),
        coordination=coordination or Coordination(),
        model=ModelSettings(source="here"),
        fingerprint=backbone.fingerprint,
        layers=backbone.layers,
        width=backbone.width,
    )


def project(folder: Path, **changes: str) -> Path:
    lines = {"name": '"p"', "coordinator": '"a@b.org"', "sites": '["a", "b"]'} | changes
    text = "\n".join(f"{name} = {value}" for name, value in lines.items())
    (folder / "project.toml").write_text(text + '\n[server]\nhost = "fl.example.org"\n')
    return folder / "project.toml"
