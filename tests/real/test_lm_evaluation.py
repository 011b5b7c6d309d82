"""SmolLM2-135M in lm-evaluation-harness: its figures are ours on the same rows, from its command line and in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from ifedicl import Adapter, Backbone, Example, ModelSettings, federate, load_preset, simulate
from ifedicl.adapter import Classifier
from ifedicl.backbone.hooks import applied
from ifedicl.demo import story
from ifedicl.demo.fetch import demo_places
from ifedicl.lm_evaluation.adapter_lm import AdapterLM
from ifedicl.settings import changed
from tests.support.command_line import run
from tests.support.tiny import write_rows

NAME = "ifedicl_sentiment_of_a_sentence"
TOLD = """
task: told
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}, cache_dir: FOLDER/cache}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: ""
generation_kwargs: {max_gen_toks: 12, until: ["###"]}
metric_list: [{metric: exact_match}]
"""
"""A generation task."""


@pytest.fixture(scope="module")
def places() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples to calibrate on, and others to measure with."""
    found = demo_places(pool=8, test=5, seed=0).values()
    return tuple(row for place in found for row in place.pool), tuple(row for place in found for row in place.test)


@pytest.fixture(scope="module")
def folder(places: Any, real_backbone: Backbone, model: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of one round with a readout, the task of its test rows, and a generation task."""
    short = {"rounds": {"rounds": 1, "select_by": "last"}, "calibration": {"learning_rate": 0.1}}
    halves = {"north": places[0][::2], "south": places[0][1::2]}
    engine = simulate(real_backbone, story.TASK, halves)
    root = tmp_path_factory.mktemp("harness")
    federate(engine, model, story.TASK, changed(load_preset("subspace"), short, "test")).adapter.save(root / "adapter")
    write_rows(root / "test.jsonl", [{"text": row.text, "label": row.label} for row in places[1]])
    assert run("harness", root / "adapter", root / "test.jsonl", root / "tasks") == 0
    write_rows(root / "texts.jsonl", [{"text": text} for text in story.SENTENCES])
    (root / "tasks" / "told.yaml").write_text(TOLD.replace("FOLDER", str(root)))
    return root


def _are_ours(classifier: Classifier, rows: tuple[Example, ...], accuracy: float, samples: list[dict[str, Any]]) -> None:
    """The harness's accuracy and log-likelihoods are those of ``classifier``."""
    in_order = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    logs = np.array([[float(response[0][0]) for response in sample["resps"]] for sample in in_order])
    among = logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)
    np.testing.assert_allclose(among, classifier.log_probabilities([row.text for row in rows]), atol=1e-3)
    assert accuracy == pytest.approx(classifier.evaluate(rows).accuracy, abs=1e-3)


def test_the_harness_s_command_finds_our_figures_and_generates_our_text(
    folder: Path, places: Any, real_backbone: Backbone
) -> None:
    """In a process of its own, without a network."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    words = ["--model", "ifedicl", "--model_args", "adapter=adapter", "--tasks", f"{NAME},told", "--include_path", "tasks"]
    words += ["--batch_size", "8", "--output_path", "results", "--log_samples"]
    command = [sys.executable, "-m", "ifedicl.lm_evaluation", "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    assert f"|{NAME}|" in done.stdout

    results, *_ = (json.loads(path.read_text()) for path in (folder / "results").rglob("results_*.json"))
    samples = {
        name: [
            json.loads(line)
            for path in (folder / "results").rglob(f"samples_{name}_*")
            for line in path.read_text().splitlines()
        ]
        for name in (NAME, "told")
    }
    adapter = Adapter.load(folder / "adapter")
    ours = replace(adapter, readout=None).classifier(real_backbone)
    _are_ours(ours, places[1], results["results"][NAME]["acc,none"], samples[NAME])
    assert results["config"]["adapter"]["model_fingerprint"] == adapter.fingerprint

    told = {sample["doc"]["text"]: sample["resps"][0][0] for sample in samples["told"]}
    raw = {text: _told(real_backbone, text) for text in told}
    with applied(real_backbone, adapter.context, adapter.coefficients):
        assert {text: _told(real_backbone, text) for text in told} == told
    assert raw != told


def _told(backbone: Backbone, text: str) -> str:
    """What transformers' own greedy generation says behind a text."""
    row = torch.tensor([backbone.tokenizer(text)["input_ids"]])
    tokens = backbone.model.generate(input_ids=row, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, row.shape[1] :]
    return str(backbone.tokenizer.decode(tokens, skip_special_tokens=True))


def test_with_its_readout_the_adapter_has_its_own_figures(folder: Path, places: Any, real_backbone: Backbone) -> None:
    adapter = Adapter.load(folder / "adapter")
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    lm = AdapterLM(str(folder / "adapter"), use_readout=True)
    found = simple_evaluate(lm, tasks=[NAME], task_manager=manager, bootstrap_iters=0, log_samples=True)
    ours = adapter.classifier(real_backbone)
    _are_ours(ours, places[1], found["results"][NAME]["acc,none"], found["samples"][NAME])
    texts = [row.text for row in places[1]]
    words = replace(adapter, readout=None).classifier(real_backbone)
    assert np.abs(ours.log_probabilities(texts) - words.log_probabilities(texts)).max() > 0.01
