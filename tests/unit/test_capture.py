"""Passes of repeated shapes that are captured and replayed: the numbers of plain ones, and nothing that is private."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from ifedicl.backbone.capture import BUCKET, Captures, Work, bucketed
from ifedicl.backbone.families import writes_of
from ifedicl.backbone.load import Backbone, wrap
from ifedicl.backbone.losses import LABELS
from ifedicl.backbone.scoring import Scorer
from ifedicl.calibrate import ClientRound, LocalUpdate, calibrate, example_gradients, gradient_sum
from ifedicl.core.coefficients import Form, cold_start
from ifedicl.core.subspace import Context
from ifedicl.extract import context_vectors
from ifedicl.kinds.classify import Task
from ifedicl.settings import ModelSettings
from tests.support import tiny
from tests.support.captured import Traced

TURN = ClientRound("clinic", round=0, phase_start=0, phase_rounds=1)


class Unrecorded:
    """A recorder that replays nothing: the padding of captures, plainly computed."""

    def __call__(self, work: Work, given: Mapping[str, Tensor]) -> Work:
        return work


class Failing:
    """A recorder that cannot capture."""

    def __init__(self) -> None:
        self.tries = 0

    def __call__(self, work: Work, given: Mapping[str, Tensor]) -> Work:
        self.tries += 1
        raise RuntimeError("operation not permitted when stream is capturing")


def _context(backbone: Backbone, first: int, rank: int, seed: int) -> Context:
    draw, shape = np.random.default_rng(seed), (backbone.layers - first, 2)
    basis = np.linalg.qr(draw.normal(size=(*shape, backbone.width, rank)))[0].swapaxes(2, 3) if rank else None
    vectors = draw.normal(size=(*shape, backbone.width)).astype(np.float32)
    return Context(vectors, None if basis is None else np.ascontiguousarray(basis, dtype=np.float32), first)


def _update(
    backbone: Backbone, task: Task = tiny.TASK, *, first: int = 0, rank: int = 0, loss: str = "labels", seed: int = 0
) -> LocalUpdate:
    scorer = Scorer(backbone, task, first_layer=first)
    method = tiny.method(calibration={"batch_size": 4, "local_steps": 6, "loss": loss})
    context = _context(backbone, first, rank, seed)
    start = cold_start(Form(backbone.layers - first, rank), method.injection)
    return calibrate(scorer, scorer.encoded(tiny.examples(9, task=task)), context, start, method, TURN)


def _assert_same(found: LocalUpdate, expected: LocalUpdate, *, rtol: float, atol: float) -> None:
    for name, array in expected.coefficients.arrays.items():
        np.testing.assert_allclose(found.coefficients.arrays[name], array, rtol=rtol, atol=atol)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "qwen2"])
def test_a_captured_step_gives_the_plain_numbers(family: str) -> None:
    backbone, record = tiny.family_backbone(family), Traced()
    captured = _update(replace(backbone, captures=Captures(record)), rank=3)
    assert record.replayed >= 3
    assert record.traced < record.replayed
    _assert_same(captured, _update(backbone, rank=3), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("task", "loss", "rank", "first"),
    [
        (tiny.TASK, "vocabulary", 0, 0),
        (tiny.MANY_TOKENS, "labels", 3, 0),
        (tiny.MANY_TOKENS, "vocabulary", 0, 1),
        (tiny.TASK, "labels", 3, 1),
        (tiny.TASK, "labels", 0, 0),
    ],
)
def test_a_replay_has_the_numbers_of_the_same_padding_run_plainly(
    backbone: Backbone, task: Task, loss: str, rank: int, first: int
) -> None:
    record = Traced()
    plain, replayed = (
        _update(replace(backbone, captures=Captures(each)), task, loss=loss, rank=rank, first=first)
        for each in (Unrecorded(), record)
    )
    assert record.replayed > 0
    # Not the bits: while it is captured, transformers makes a mask where it else tells the kernel that attention is causal.
    _assert_same(replayed, plain, rtol=1e-5, atol=1e-7)
    _assert_same(replayed, _update(backbone, task, loss=loss, rank=rank, first=first), rtol=0, atol=2e-5)


def test_a_replay_holds_no_number_of_the_pass_that_was_captured(backbone: Backbone) -> None:
    record = Traced()
    captures = replace(backbone, captures=Captures(record))
    scorer, method = Scorer(captures, tiny.TASK), tiny.method(calibration={"batch_size": 4, "local_steps": 3})
    examples, start = scorer.encoded(tiny.examples(9)), cold_start(Form(backbone.layers), method.injection)
    for seed in range(3):  # another context, and with it other coefficients, in each
        found = calibrate(scorer, examples, _context(backbone, 0, 0, seed), start, method, replace(TURN, round=seed))
        other = Scorer(backbone, tiny.TASK)
        plain = calibrate(other, examples, _context(backbone, 0, 0, seed), start, method, replace(TURN, round=seed))
        _assert_same(found, plain, rtol=0, atol=2e-5)
    assert record.replayed > 2 * record.traced


def test_a_sum_of_gradients_is_replayed_too(backbone: Backbone) -> None:
    record = Traced()
    found = []
    for each in (backbone, replace(backbone, captures=Captures(record), trained_tokens=120)):
        scorer, method = Scorer(each, tiny.TASK), tiny.method()
        start = cold_start(Form(backbone.layers), method.injection)
        examples = scorer.encoded(tiny.examples(12))
        found.append([gradient_sum(scorer, examples, _context(each, 0, 0, 0), start, method, range(12)) for _ in range(3)])
    assert record.replayed > 0
    for plain, captured in zip(*found, strict=True):
        assert captured.loss == pytest.approx(plain.loss, rel=1e-6)
        np.testing.assert_allclose(captured.arrays["scales"], plain.arrays["scales"], rtol=1e-4, atol=1e-5)


def _vectors(backbone: Backbone, balance: str) -> npt.NDArray[Any]:
    scorer, method = Scorer(backbone, tiny.TASK), tiny.method(vectors={"balance": balance})
    scorer.budget = replace(scorer.budget, tokens=160)  # several passes of one shape
    examples = scorer.encoded(tiny.examples(20))
    return context_vectors(scorer, examples.prompts.tokens, examples.labels, method).means


@pytest.mark.parametrize("balance", ["none", "class"])
def test_a_captured_extraction_gives_the_plain_vectors(backbone: Backbone, balance: str) -> None:
    record = Traced()
    found = _vectors(replace(backbone, captures=Captures(record)), balance)
    assert record.replayed > 1
    np.testing.assert_allclose(found, _vectors(backbone, balance), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found, _vectors(replace(backbone, captures=Captures(Unrecorded())), balance))


def test_a_capture_that_fails_is_tried_once_and_leaves_the_numbers_alone(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    record = Failing()
    failing = replace(backbone, captures=Captures(record))
    with caplog.at_level(logging.WARNING):
        found = [_update(failing) for _ in range(2)]
    assert record.tries == 1
    (warning,) = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
    assert "passes run without graphs" in warning
    assert "stream is capturing" in warning
    for each in found:
        _assert_same(each, _update(replace(backbone, captures=Captures(Unrecorded()))), rtol=0, atol=0)


def test_a_pass_that_asks_the_device_for_a_number_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    captures = Captures(Traced())

    def work(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (given["x"] * given["x"].sum().item(),)

    found = [captures.run("asking", {"x": torch.full((3,), float(number))}, work)[0] for number in (1, 2, 3)]
    assert [float(each[0]) for each in found] == [3.0, 12.0, 27.0]
    assert "capture failed" in caplog.text


def test_the_least_used_graph_goes_first() -> None:
    record = Traced()
    captures = Captures(record, most=2)

    def double(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (given["x"] * 2,)

    for size in (1, 1, 2, 2, 1, 3, 3, 1, 2, 2):  # 3 takes the place of 2, so 2 is new again
        (found,) = captures.run("doubled", {"x": torch.full((size,), 4.0)}, double)
        assert found.tolist() == [8.0] * size
    assert record.traced == 4


def test_private_gradients_are_neither_padded_nor_replayed(backbone: Backbone) -> None:
    record = Traced()
    found = []
    for each in (backbone, replace(backbone, captures=Captures(record), launches="captured")):
        scorer, method = Scorer(each, tiny.TASK), tiny.method()
        examples, start = scorer.encoded(tiny.examples(6)), cold_start(Form(backbone.layers), method.injection)
        context = _context(each, 0, 0, 0)
        found.append(
            [
                gradients["scales"]
                for _ in range(3)
                for _, gradients in example_gradients(scorer, examples, context, start, method, range(6), alone=True)
            ]
        )
    assert (record.traced, record.replayed) == (0, 0)
    for plain, captured in zip(*found, strict=True):
        np.testing.assert_array_equal(captured, plain)


def test_padding_counts_where_tokens_are_counted(backbone: Backbone) -> None:
    assert [bucketed(width, 100) for width in (1, BUCKET, BUCKET + 1, 99, 100)] == [BUCKET, BUCKET, 2 * BUCKET, 100, 100]
    assert bucketed(120, 100) == 120, "a row that is longer than the window is refused elsewhere, not cut here"
    captures = replace(backbone, captures=Captures(Unrecorded()), trained_tokens=4 * BUCKET)
    prompts = [tuple(range(1, 2 + BUCKET))] * 4  # one token more than a bucket
    plain, padded = (Scorer(each, tiny.TASK) for each in (replace(captures, captures=None), captures))
    assert [len(batch) for batch in plain.batches(prompts, trains=True)] != [2, 2]
    assert [len(batch) for batch in padded.batches(prompts, trains=True)] == [2, 2]
    assert len(padded.batches(prompts)) == 1, "what is not captured is not padded"
    fed = LABELS.fed(padded.words, prompts, [0, 1, 0, 1], lambda _width: 2 * BUCKET)
    assert padded.pass_inputs(fed.rows, 2 * BUCKET)["tokens"].shape == (4, 2 * BUCKET)


def test_without_a_gpu_there_is_nothing_to_capture(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    made: dict[str, Any] = {}
    for launches in ("auto", "plain", "captured"):
        settings = ModelSettings(source="m", device="cpu", launches=launches)
        writes = writes_of(backbone.model.config.model_type, None)
        made[launches] = wrap(backbone.model, backbone.tokenizer, writes, settings, "f")
        assert made[launches].captures is None
    (warning,) = caplog.records
    assert 'received "captured"' in warning.getMessage()
    assert made["captured"].padded(7) == 7
