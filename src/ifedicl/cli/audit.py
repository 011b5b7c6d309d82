"""``ifedicl audit``: attacks on what a client would send. Nothing is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifedicl.cli.options import Json, LabelColumn, TextColumn
from ifedicl.errors import ConfigError, DataError, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ifedicl.kinds.classify import Task
    from ifedicl.kinds.examples import AnyExample
    from ifedicl.settings import Method, ModelSettings

_MIN_TEXTS = 20


def audit(
    path: Annotated[Path, typer.Argument(help="A TOML config, or a file of labelled text: .jsonl, .csv, .tsv or .parquet.")],
    client: Annotated[
        str | None, typer.Option(help="With a config: the client whose text is audited. Default: the first one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With a data file: a hub id, folder or .gguf. Default: the demo's.")] = None,
    public: Annotated[
        Path | None, typer.Option(help="A file of public text that the attacker learns from. Default: the demo's sentences.")
    ] = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    examples: Annotated[int, typer.Option(min=_MIN_TEXTS, help="Maximum number of the client's texts.")] = 200,
    public_examples: Annotated[int, typer.Option(min=_MIN_TEXTS, help="Maximum number of public texts.")] = 300,
    updates: Annotated[int, typer.Option(min=2, help="Number of texts whose updates are attacked too; the slowest part.")] = 60,
    trials: Annotated[int, typer.Option(min=100, help="Trials of each membership game.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of draws and noise.")] = 0,
    out: Annotated[Path, typer.Option(help="The report's file; its plot lies beside it.")] = Path("audit.md"),
    as_json: Json = False,
) -> None:
    """Attack what a client would send, on its own text and on this machine; nothing is sent.

    Measures which words can be recovered from its vectors, whether an attacker can detect that an example was used, how closely
    the class proportions are guessed, and what a second version reveals: without a defence, and with noise for several ε. The
    report contains no text.
    """
    from ifedicl import files
    from ifedicl.backbone.source import check_source
    from ifedicl.data import draw_pool
    from ifedicl.progress import LOADING, counted, waiting

    task, method, settings, name, texts = _audited(path, client, model, (text_column, label_column))
    texts = draw_pool(texts, examples, seed)
    if len(texts) < _MIN_TEXTS:
        raise DataError(f"{name}: received {len(texts)} examples; allowed: {_MIN_TEXTS} or more. Audit a larger client")
    known = _public(public, task, public_examples, seed, text_column)
    check_source(settings)

    # From here on torch, transformers and scipy are imported.
    from ifedicl.audit.conclusion import conclusion
    from ifedicl.audit.markdown import page, summary
    from ifedicl.audit.plot import plot
    from ifedicl.audit.suite import Evidence, run_attacks
    from ifedicl.backbone.load import load_backbone
    from ifedicl.backbone.scoring import Scorer
    from ifedicl.owner.policy import LeastSettings
    from ifedicl.pictures import can_draw

    with waiting(LOADING):
        backbone = load_backbone(settings)
    scorer = Scorer(backbone, task)
    total = len(texts) + len(known) + min(updates, len(texts)) + min(updates, len(known))
    with counted("vectors and updates", total) as advance:
        evidence = Evidence.of(scorer, texts, known, method, updates=updates, on_progress=advance)
    with waiting("attacking"):
        tables = run_attacks(evidence, backbone, trials=trials, seed=seed)
    facts: dict[str, Any] = {
        "audited": name,
        "examples": len(texts),
        "public texts": len(known),
        "model": Path(settings.source).name,
        "layers": evidence.public.vectors.shape[1],
        "width": backbone.width,
        "dtype": backbone.dtype,
        "read position": method.vectors.read_position,
        "seed": seed,
    }
    limit = LeastSettings().examples
    ending, picture = conclusion(tables, limit), out.with_suffix(".svg") if can_draw() else None
    if picture is not None:
        files.write_text(picture, plot(tables, limit))
    files.write_text(out, page(f"Audit of {name}", facts, tables, ending, None if picture is None else picture.name))
    if as_json:
        print(json.dumps({"facts": facts, "page": str(out), "conclusion": ending, **tables}, ensure_ascii=False))
        return
    for sentence in (*summary(tables), *ending):
        print(sentence)
    print(f"tables: {out}")


def _audited(
    path: Path, client: str | None, model: str | None, columns: tuple[str, str]
) -> tuple[Task, Method, ModelSettings, str, Sequence[AnyExample]]:
    """Task, method, model, name and examples of the audited client. A config names its columns itself."""
    if not path.exists():
        raise DataError(f"{path}: no such file. Give a .toml config or a file of labelled text")
    if path.suffix == ".toml":
        return _client_of_config(path, client, model)
    from ifedicl.data import read_examples, read_labelled
    from ifedicl.demo.fetch import demo_model
    from ifedicl.kinds.classify import Task
    from ifedicl.settings import Method, ModelSettings, validated

    text, label = columns
    named = read_labelled(path, text=text, label=label)
    task = validated(Task, {"name": path.stem, "labels": sorted({example.stratum for example in named})}, str(path))
    examples = read_examples(path, task, text=text, label=label)
    return task, Method(), ModelSettings(source=model or str(demo_model())), path.name, examples


def _client_of_config(
    path: Path, client: str | None, model: str | None
) -> tuple[Task, Method, ModelSettings, str, Sequence[AnyExample]]:
    from ifedicl import runs
    from ifedicl.kinds.classify import as_classification
    from ifedicl.settings import load_settings

    if model is not None:
        raise ConfigError("audit", [Fault("--model", model, "no --model with a config, which names one", "Leave it out.")])
    settings = load_settings(path)
    clients = runs.client_examples(settings)
    name = client or next(iter(clients))
    if name not in clients:
        raise ConfigError("audit", [Fault("--client", name, ", ".join(clients), "Name one of these.")])
    return as_classification(settings.task, "audit"), settings.method, settings.model, name, clients[name]


def _public(path: Path | None, task: Task, count: int, seed: int, column: str) -> tuple[AnyExample, ...]:
    """Public texts with random labels: the attacker knows the label words, but no true labels."""
    from ifedicl import seeds
    from ifedicl.data import read_texts
    from ifedicl.demo.fetch import demo_places

    if path is not None:
        texts = list(read_texts(path, text=column))
    else:
        pools = [place.pool for place in demo_places(pool=count, test=3, seed=0).values()]
        texts = [example.text for row in zip(*pools, strict=False) for example in row]
    if len(texts) < _MIN_TEXTS:
        raise DataError(f"{path}: received {len(texts)} public texts; allowed: {_MIN_TEXTS} or more. Give a larger file")
    order = seeds.generator(seed, "public labels").permutation(len(texts))[:count]
    return tuple(task.example_for(texts[int(row)], number) for number, row in enumerate(order))
