"""``ifedicl audit``: attacks on what one's own client would send, before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.errors import ConfigError, DataError, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ifedicl.data import Example
    from ifedicl.settings import Method, ModelSettings
    from ifedicl.task import Task

_FEWEST = 20


def audit(
    path: Annotated[Path, typer.Argument(help="A TOML config, or a file of labelled text: .jsonl, .csv, .tsv or .parquet.")],
    client: Annotated[
        str | None, typer.Option(help="Whose text of the config is audited. Default: its first client's.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With a data file: a hub id, folder or .gguf. Default: the demo's.")] = None,
    public: Annotated[
        Path | None, typer.Option(help="Other people's text for the attackers to learn from. Default: the demo's sentences.")
    ] = None,
    examples: Annotated[int, typer.Option(min=_FEWEST, help="So many of the client's texts at most.")] = 200,
    public_examples: Annotated[int, typer.Option(min=_FEWEST, help="So many public texts at most.")] = 300,
    updates: Annotated[int, typer.Option(min=2, help="Of how many texts updates are attacked too; these take longest.")] = 60,
    trials: Annotated[int, typer.Option(min=100, help="Of each membership game.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of draws and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The page in plain words.")] = Path("audit.md"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Attack what a client would send, on its own text and on this machine; nothing is sent.

    Says which words come back from its vectors, whether an example can be told to be there, how near the mix of classes is
    guessed, and what a second version gives away: without a defence, and with noise for several ε. No text is in the page.
    """
    from ifedicl import files
    from ifedicl.audit.markdown import page, summary
    from ifedicl.audit.suite import Evidence, attacked
    from ifedicl.backbone.load import load_backbone
    from ifedicl.backbone.scoring import Scorer
    from ifedicl.data import draw_pool
    from ifedicl.progress import LOADING, counted, waiting

    task, method, settings, name, own = _audited(path, client, model)
    own = draw_pool(own, examples, seed)
    if len(own) < _FEWEST:
        raise DataError(f"{name}: {len(own)} examples; the attacks need {_FEWEST} to say anything. Audit a larger client")
    known = _public(public, task, public_examples, seed)
    with waiting(LOADING):
        backbone = load_backbone(settings)
    scorer = Scorer(backbone, task)
    total = len(own) + len(known) + min(updates, len(own)) + min(updates, len(known))
    with counted("vectors and updates", total) as advance:
        evidence = Evidence.of(scorer, own, known, method, updates=updates, on_progress=advance)
    with waiting("attacking"):
        tables = attacked(evidence, backbone, trials=trials, seed=seed)
    facts: dict[str, Any] = {
        "audited": name,
        "examples": len(own),
        "public texts": len(known),
        "model": Path(settings.source).name,
        "layers": evidence.public.vectors.shape[1],
        "width": backbone.width,
        "dtype": backbone.dtype,
        "read position": method.vectors.read_position,
        "seed": seed,
    }
    files.write_text(out, page(f"Audit of {name}", facts, tables))
    if as_json:
        print(json.dumps({"facts": facts, "page": str(out), **tables}, ensure_ascii=False))
        return
    for sentence in summary(tables):
        print(sentence)
    print(f"tables: {out}")


def _audited(path: Path, client: str | None, model: str | None) -> tuple[Task, Method, ModelSettings, str, Sequence[Example]]:
    """What is asked, how, of which model, and whose text is audited."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give a .toml config or a file of labelled text")
    if path.suffix == ".toml":
        return _of_config(path, client, model)
    from ifedicl.data import read_examples
    from ifedicl.demo.fetch import demo_model
    from ifedicl.rows import rows_of
    from ifedicl.settings import Method, ModelSettings, validated
    from ifedicl.task import Task

    labels = sorted({str(row["label"]) for _, row in rows_of(path) if row.get("label") is not None})
    task = validated(Task, {"name": path.stem, "labels": labels}, str(path))
    return task, Method(), ModelSettings(source=model or str(demo_model())), path.name, read_examples(path, task)


def _of_config(path: Path, client: str | None, model: str | None) -> tuple[Task, Method, ModelSettings, str, Sequence[Example]]:
    from ifedicl import runs
    from ifedicl.settings import load_settings

    if model is not None:
        fault = Fault("--model", model, "a model with a data file; a config names its own", "Leave it out.")
        raise ConfigError("audit", [fault])
    settings = load_settings(path)
    clients = runs.client_examples(settings)
    name = client or next(iter(clients))
    if name not in clients:
        fault = Fault("--client", name, ", ".join(clients), "Name one of these.")
        raise ConfigError("audit", [fault])
    return settings.task, settings.method, settings.model, name, clients[name]


def _public(path: Path | None, task: Task, count: int, seed: int) -> tuple[Example, ...]:
    """Texts with labels that are drawn: an attacker knows the label words, not which of them would fit."""
    from ifedicl import seeds
    from ifedicl.data import Example, read_texts
    from ifedicl.demo.fetch import demo_places

    if path is not None:
        texts = list(read_texts(path))
    else:
        pools = [place.pool for place in demo_places(pool=count, test=3, seed=0).values()]
        texts = [example.text for row in zip(*pools, strict=False) for example in row]
    if len(texts) < _FEWEST:
        raise DataError(f"{path}: {len(texts)} public texts; the attackers need {_FEWEST} to learn from. Give more")
    draw = seeds.generator(seed, "public labels")
    order = draw.permutation(len(texts))[:count]
    labels = [task.labels[place % len(task.labels)] for place in range(len(order))]
    return tuple(Example(texts[int(row)], label) for row, label in zip(order, labels, strict=True))
