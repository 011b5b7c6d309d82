"""Vectors of single private and public texts, computed once and cached, so that attacks and defences take seconds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from _sets import Labelled, load_labelled
from ifedicl import seeds
from ifedicl.audit.victims import Victims
from ifedicl.backbone.load import Backbone, load_backbone
from ifedicl.backbone.scoring import Scorer
from ifedicl.bench.plan import SetSettings
from ifedicl.data import draw_pool
from ifedicl.demo.fetch import demo_model, demo_places
from ifedicl.kinds.classify import Example, Task
from ifedicl.settings import Method, ModelSettings, VectorSettings


@dataclass(frozen=True)
class Cast:
    """The attacked client's text, and public text of the attacker: the demo's sentences with random labels."""

    private: Victims
    public: Victims


def parser(docstring: str | None) -> argparse.ArgumentParser:
    """The arguments of both privacy benchmarks."""
    result = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    result.add_argument("--sets", nargs="+", default=["subj", "agnews"])
    result.add_argument(
        "--cache", type=Path, default=Path("runs/privacy"), help="folder of the cached vectors; do not share it"
    )
    result.add_argument("--out", type=Path, default=Path("docs/results/privacy"), help="folder of the figures")
    result.add_argument("--private", type=int, default=400, help="the clients' examples (default: %(default)s)")
    result.add_argument("--public", type=int, default=1000, help="public sentences (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0)
    return result


@cache
def demo_backbone(dtype: Literal["float32", "bfloat16"]) -> Backbone:
    """The demo's model, on one thread."""
    torch.set_num_threads(1)
    return load_backbone(ModelSettings(source=str(demo_model()), dtype=dtype, device="cpu"))


def private_set(arguments: argparse.Namespace, name: str) -> tuple[Labelled, tuple[Example, ...]]:
    data = load_labelled(name, SetSettings(source=str(arguments.data / name)))
    return data, draw_pool(data.train, arguments.private, arguments.seed)


def public_examples(task: Task, count: int, seed: int) -> tuple[Example, ...]:
    """The demo's sentences, equally many of each source, with random labels of the task. They belong to no client here."""
    pools = [place.pool for place in demo_places(pool=count, test=45, seed=0).values()]
    texts = [example.text for row in zip(*pools, strict=False) for example in row][:count]
    draw = seeds.generator(seed, "public labels")
    return tuple(Example(text, task.labels[int(draw.integers(len(task.labels)))]) for text in texts)


def cast(arguments: argparse.Namespace, name: str, position: Literal["label", "prompt"]) -> Cast:
    """Vectors of one data set in float32, cached."""
    data, private = private_set(arguments, name)
    public = public_examples(data.task, arguments.public, arguments.seed)
    method = Method(vectors=VectorSettings(read_position=position))
    kinds = {"private": private, "public": public}
    return Cast(*(_cached(arguments, f"{name}-{position}-{kind}", data.task, rows, method) for kind, rows in kinds.items()))


def _cached(arguments: argparse.Namespace, name: str, task: Task, rows: Sequence[Example], method: Method) -> Victims:
    file = arguments.cache / f"{name}-{len(rows)}-{arguments.seed}-float32.npz"
    if not file.exists():
        victims = Victims.of(Scorer(demo_backbone("float32"), task), rows, method)
        file.parent.mkdir(parents=True, exist_ok=True)
        lengths = [len(tokens) for tokens in victims.tokens]
        tokens = np.concatenate([sorted(tokens) for tokens in victims.tokens])
        np.savez(file, vectors=victims.vectors, labels=victims.labels, lengths=lengths, tokens=tokens)
    with np.load(file) as stored:
        parts = np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])
        return Victims(stored["vectors"], tuple(frozenset(part.tolist()) for part in parts), stored["labels"])
