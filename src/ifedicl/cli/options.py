"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
ModelSource = Annotated[str | None, typer.Option(help="The model on this machine, if not where the adapter says.")]
AnyAdapter = Annotated[
    Path, typer.Argument(help="The folder that `ifedicl run` wrote, RUN or RUN/adapter; or hub:OWNER/NAME[@REVISION].")
]
AdapterFolder = Annotated[Path, typer.Argument(help="The folder that `ifedicl run` wrote: RUN or RUN/adapter.")]
TensorBoard = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard", envvar="IFEDICL_TENSORBOARD", show_envvar=True, help="Write figures for TensorBoard below this."
    ),
]
MLflow = Annotated[
    str | None,
    typer.Option("--mlflow", envvar="IFEDICL_MLFLOW", show_envvar=True, help="Send figures to MLflow at this address."),
]
Telemetry = Annotated[
    bool,
    typer.Option(
        "--telemetry",
        envvar="IFEDICL_TELEMETRY",
        show_envvar=True,
        help="Send traces and metrics by OpenTelemetry, to OTEL_EXPORTER_OTLP_ENDPOINT.",
    ),
]
TextColumn = Annotated[str, typer.Option(help="The column that holds the text.")]
IdColumn = Annotated[str | None, typer.Option(help="A column to print before each result.")]
MinConfidence = Annotated[float, typer.Option(min=0.0, max=1.0, help="The least probability of a label that is given.")]
LabelColumn = Annotated[str, typer.Option(help="The column that holds the label.")]
