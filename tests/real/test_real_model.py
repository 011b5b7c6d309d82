"""The real thing: SmolLM2-135M and real sentences, out of registry packages. Everything the demo's user relies on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from rich.console import Console

from ifedicl import Adapter, Backbone, ModelSettings, Prediction, Task, load_backbone, load_preset, runs
from ifedicl.backbone.scoring import Scorer
from ifedicl.core.coefficients import Coefficients
from ifedicl.demo import story
from ifedicl.demo.fetch import MODEL_SHA256, demo_model, demo_places
from ifedicl.settings import changed
from tests.support.serving import serving

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
POOL, TEST = 18, 3
"""Sentences of each place: a fifth and a fifteenth of the demo's."""
SHORT = {
    "injection": {"from_depth": 0.7},
    "rounds": {"rounds": 2, "evaluate_every": 1},
    "calibration": {"local_steps": 1, "batch_size": 4},
}
"""An eighth of the demo's examples in steps, and a third of its layers."""


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short demo: its folder and what it printed."""
    folder, printed = tmp_path_factory.mktemp("demo"), io.StringIO()
    method = changed(load_preset("demo"), SHORT, "test")
    story.tell(folder, Console(file=printed, width=160), method=method, pool=POOL, test=TEST)
    return folder, printed.getvalue()


def test_the_model_is_the_published_one_and_its_digest_is_its_fingerprint(real_backbone: Backbone) -> None:
    assert hashlib.sha256(demo_model().read_bytes()).hexdigest() == MODEL_SHA256 == real_backbone.fingerprint
    assert (real_backbone.layers, real_backbone.width) == (30, 576)


def test_the_places_are_balanced_and_no_test_sentence_is_held_by_a_client() -> None:
    places = demo_places(pool=36, test=24, seed=0)
    assert len(places) == 4
    client_texts = {example.text for place in places.values() for example in place.pool}
    for place in places.values():
        assert [sum(row.label == label for row in place.pool) for label in story.TASK.labels] == [12, 12, 12]
        assert [sum(row.label == label for row in place.test) for label in story.TASK.labels] == [8, 8, 8]
        assert not client_texts & {row.text for row in place.test}


def test_label_words_of_several_tokens_score_as_one_sequence_a_label_does(real_backbone: Backbone) -> None:
    words = ("auto and commute", "auto and home", "banking", "credit cards")
    task = Task(name="domain", labels=words, template="Query: {text}\nDomain:")
    scorer = Scorer(real_backbone, task)
    prompts = scorer.encoder.prompts(["my card was declined", "when is my next service due, and where do I park?"])
    assert max(map(len, scorer.encoder.tree.words)) >= 3
    assert len(scorer.encoder.tree.paths) < len(words)
    naive = np.empty((2, len(words)))
    with torch.inference_mode():
        for row, prompt in enumerate(prompts.tokens):
            for column, word in enumerate(scorer.encoder.tree.words):
                logits = real_backbone.model(input_ids=torch.tensor([prompt + word])).logits[0].log_softmax(-1)
                naive[row, column] = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(word))
    naive -= np.log(np.exp(naive).sum(axis=1, keepdims=True))
    assert np.allclose(scorer.log_probabilities(prompts), naive, atol=1e-3)


def test_ten_label_words_in_one_row_say_what_one_sequence_a_path_says(real_backbone: Backbone) -> None:
    words: tuple[str, ...] = ("home insurance", "car insurance claim", "credit card", "credit card fraud", "savings account")
    words += ("cash withdrawal fee", "lost luggage", "late delivery", "broken screen repair", "spam call")
    task = Task(name="topic", labels=words, template="Message: {text}\nTopic:")
    things = ("the parcel", "my phone", "a letter from the bank")
    ends = (" never arrived", " is broken again, and nobody answers", " asked for money", "?")
    prompts = Scorer(real_backbone, task).encoder.prompts([thing + end for thing in things for end in ends])
    one_row, by_paths = Scorer(real_backbone, task), Scorer(replace(real_backbone, branch_limit=0), task)
    assert one_row.layout(prompts.tokens).branches
    assert len(by_paths.layout(prompts.tokens).tails) == 9
    ours, theirs = one_row.log_probabilities(prompts), by_paths.log_probabilities(prompts)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
    assert np.ptp(theirs, axis=0).min() > 0.1, "texts alike would hide a mix-up"
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_the_demo_learns_and_tells_everything(demo_run: tuple[Path, str]) -> None:
    folder, printed = demo_run
    for part in (
        "Examples of each client",
        "zero-shot",
        "tweets alone",
        "the federation",
        "95% interval",
        "Traffic",
        "paired p",
    ):
        assert part in printed, part
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["held_out"]["loss_sum"] for line in metrics if line["event"] == "round" and line["held_out"]]
    zero_shot = next(line for line in metrics if line["event"] == "exchange" and line["step"] == "evaluate")
    assert zero_shot["round"] == 0
    assert losses[-1] < losses[0]


def test_the_report_opens_offline_and_shows_no_row_of_the_data(demo_run: tuple[Path, str]) -> None:
    folder, printed = demo_run
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="https?:', page)
    assert page.count("<svg") == 7
    for place in demo_places(pool=POOL, test=TEST, seed=0).values():
        for row in (*place.pool, *place.test):
            assert row.text not in page
            assert row.text not in printed
    assert all(sentence in page for sentence in story.SENTENCES)


@pytest.fixture(scope="module")
def predicted(demo_run: tuple[Path, str]) -> list[Prediction]:
    """What the saved adapter says of the demo's own sentences in this process."""
    return list(Adapter.load(demo_run[0] / "adapter").classify(story.SENTENCES))


def test_the_saved_adapter_classifies_from_the_shell(demo_run: tuple[Path, str], predicted: list[Prediction]) -> None:
    command = [sys.executable, "-m", "ifedicl.cli", "classify", str(demo_run[0] / "adapter"), "--json", *story.SENTENCES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr.splitlines()[0].endswith("takes half a minute)")  # what it waits for, for whoever watches a log
    assert [line["text"] for line in lines] == list(story.SENTENCES)
    assert [line["label"] for line in lines] == [prediction.label for prediction in predicted]


def test_the_demos_adapter_is_served_as_it_stands(
    demo_run: tuple[Path, str], predicted: list[Prediction], tmp_path: Path
) -> None:
    with serving(tmp_path, str(demo_run[0] / "adapter")) as running:
        body = {"texts": list(story.SENTENCES), "zero_shot": True}
        answer = httpx.post(f"{running.url}v1/classify", json=body, timeout=60, trust_env=False).json()
    assert answer["adapter"]["name"] == demo_run[0].name
    assert [item["label"] for item in answer["results"]] == [item.label for item in predicted]
    for own, theirs in zip(answer["results"], predicted, strict=True):
        assert own["probabilities"] == pytest.approx(dict(theirs.probabilities), abs=1e-3)
    assert len(answer["zero_shot"]) == len(story.SENTENCES)


def test_the_ten_lines_of_the_python_page_run_as_they_stand(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert len(code.strip().splitlines()) <= 12
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.strip() in {"good", "bad"}
    assert (tmp_path / "runs" / "mood" / "adapter.json").is_file()


@pytest.fixture(scope="module")
def drawn(demo_run: tuple[Path, str], real_backbone: Backbone) -> Adapter:
    """The demo's vectors with drawn coefficients and a core of rank 4, no readout: all that a fold writes into weights."""
    adapter = Adapter.load(demo_run[0] / "adapter")
    draws, shape = np.random.default_rng(0), adapter.context.vectors.shape[:2]
    scales = np.array([0.1, 1.0]) + 0.03 * draws.normal(size=(*shape, 2))
    rows = np.linalg.qr(draws.normal(size=(*shape, real_backbone.width, 4)))[0].swapaxes(2, 3)
    core = 0.05 * draws.normal(size=(*shape, 4, 4))
    context = replace(adapter.context, basis=np.ascontiguousarray(rows, dtype=np.float32))
    coefficients = Coefficients(scales.astype(np.float32), core.astype(np.float32))
    return replace(adapter, context=context, coefficients=coefficients, readout=None)


@pytest.mark.parametrize("form", [pytest.param("scalars", marks=pytest.mark.soak), "core"])
def test_a_folded_checkpoint_says_what_the_adapter_says(
    form: str, drawn: Adapter, model: ModelSettings, real_backbone: Backbone, tmp_path: Path
) -> None:
    """Scalars, and both with a core within a subspace: read back by plain transformers, in float32."""
    adapter = drawn
    if form == "scalars":
        adapter = replace(
            drawn, context=replace(drawn.context, basis=None), coefficients=Coefficients(drawn.coefficients.scales)
        )
    texts = [*story.SENTENCES, *(example.text for example in demo_places(pool=3, test=3, seed=0)["tweets"].test)]
    expected = adapter.classifier(real_backbone).log_probabilities(texts)
    adapter.export(tmp_path / "out", real_backbone)
    exported = load_backbone(ModelSettings(source=str(tmp_path / "out"), dtype="float32", device="cpu"))
    plain = runs.zero_shot_adapter(exported, model, story.TASK).classifier(exported).log_probabilities(texts)
    np.testing.assert_allclose(plain, expected, atol=1e-4)
    raw = runs.zero_shot_adapter(real_backbone, model, story.TASK).classifier(real_backbone).log_probabilities(texts)
    assert np.abs(expected - raw).max() > 0.1
