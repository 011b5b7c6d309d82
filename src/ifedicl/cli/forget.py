"""``ifedicl forget``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from ifedicl.cli.options import Json
from ifedicl.cli.run import report_of


def forget(
    config: Annotated[Path, typer.Argument(help="The run's config, in which the removed text is no longer named.")],
    client: Annotated[
        list[str] | None, typer.Option(help="A client that left: its whole share is removed. May be given several times.")
    ] = None,
    changed: Annotated[
        list[str] | None, typer.Option(help="A client that removed examples from its file. May be given several times.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of calibration without the removed text.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME of the config.")] = None,
    agreed: Annotated[
        bool, typer.Option("--agreed", help="Secure sums: the owners concerned accept that two sums show their share.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove clients, or removed examples, from a finished run on this machine, and go on without them.

    Context vectors, directions, readout sums and held-out figures are collected anew: they are those of a run that never held
    the removed text. The coefficients are not: they go on from where they were for --rounds rounds without it. For coefficients
    that never saw the text, start a new run. Adapter, model card and ledgers say what was done; the report is written anew.
    """
    from ifedicl import runs
    from ifedicl.backbone.source import check_source
    from ifedicl.federation.run_folder import RunFolder
    from ifedicl.settings import load_settings

    start = time.perf_counter()
    settings = load_settings(config)
    folder = out or Path("runs") / config.stem
    check_source(settings.model)
    data = runs.RunData.read(settings)

    # From here on torch and transformers are imported.
    from ifedicl.federation.forgetting import Forgetting
    from ifedicl.progress import federation_bars
    from ifedicl.report import write_report

    forgetting = Forgetting(frozenset(data.clients), frozenset(client or ()), frozenset(changed or ()), rounds, agreed)
    with federation_bars(settings.task.name, rounds) as observer:
        result = runs.forget(settings, folder, forgetting, observer=observer, data=data)
    write_report(report_of(settings.task.name, result, time.perf_counter() - start), RunFolder(folder).report)
    assert result.federated is not None
    (*_, note) = result.federated.outcome.state.forgotten
    facts = {"adapter": str(folder / "adapter"), "exact": not note.more_rounds, **note.facts}
    if as_json:
        print(json.dumps(facts))
        return
    print("as in a run that never held it: context vectors, directions, readout sums, held-out figures")
    if note.more_rounds:
        print(f"not so: the coefficients, which went on for {note.more_rounds} rounds without it, and what they change")
    print(f"adapter: {folder / 'adapter'}")
