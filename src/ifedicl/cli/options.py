"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ModelSource = Annotated[str | None, typer.Option(help="Where the model lies here, if not where the adapter says.")]
AdapterFolder = Annotated[Path, typer.Argument(help="The folder that `ifedicl run` wrote, usually RUN/adapter.")]
